// The production check: what people who run Chroma are told to do, looked up on the live system.

import { get, sentence } from "../api.js";
import { duration, h, marked, number, replace, setText, timeAgo } from "../dom.js";

export const title = "Check";

// In the order in which they are shown: the worst first.
const STATUSES = [
  ["fail", "bad", "Failed", "to be settled before production"],
  ["warn", "warn", "Warnings", "worth a look"],
  ["unknown", "info", "Not known", "could not be looked up, which is not a pass"],
  ["pass", "ok", "Passed", "as it should be"],
];

export async function mount({ root, signal, say }) {
  const button = h("button", { class: "button primary", type: "button", onclick: () => again() }, "Check again");
  const about = h("p", { class: "muted" });
  const counts = h("div", { class: "row" });
  const groups = h("div", { class: "page" });
  replace(
    root,
    h("section", { class: "card row between", "aria-label": "Result" }, h("div", { class: "stack" }, counts, about), button),
    groups,
  );
  await look();

  async function again() {
    button.disabled = true;
    try {
      await look();
      say(`Checked again: ${counts.textContent}`);
    } finally {
      button.disabled = false;
    }
  }

  async function look() {
    setText(about, "Looking…");
    const report = await get("/admin/check", { signal });
    const groupsOf = STATUSES.map(([status, tone, name, meaning]) => {
      const found = report.findings.filter((each) => each.status === status);
      return { status, tone, name, meaning, found };
    }).filter(({ found }) => found.length);
    replace(
      counts,
      groupsOf.map(({ tone, name, found }) => h("span", { class: `badge ${tone}` }, `${number(found.length)} ${found.length === 1 ? name.toLowerCase().replace(/s$/, "") : name.toLowerCase()} `)),
    );
    replace(
      about,
      "Looked up ",
      timeAgo(report.at),
      ` in ${duration(report.duration_s)}. `,
      report.collections === null
        ? "The collections cannot be read."
        : report.collections > report.collections_looked_at
          ? `Of ${number(report.collections)} collections, the ${number(report.collections_looked_at)} with the most records.`
          : `${number(report.collections)} ${report.collections === 1 ? "collection" : "collections"}.`,
    );
    replace(groups, groupsOf.map(section));
  }
}

function section({ status, tone, name, meaning, found }) {
  return h(
    "details",
    { class: "card flush", open: status !== "pass" },
    h(
      "summary",
      { class: "check-head" },
      h("h2", {}, name),
      h("span", { class: `badge ${tone}` }, number(found.length)),
      h("span", { class: "small" }, meaning),
    ),
    h("ul", {}, found.map(finding)),
  );
}

function finding({ code, where, message, advice }) {
  return h(
    "li",
    { class: "finding" },
    h("p", { class: "small mono" }, code),
    h(
      "div",
      { class: "stack tight" },
      h("p", {}, marked(sentence(message)), where && h("span", { class: "muted" }, ` ${where}`)),
      advice && h("p", { class: "advice" }, marked(sentence(advice))),
    ),
  );
}
