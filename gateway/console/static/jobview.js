// What people see of a job: its progress, its result and its error.

import { sentence } from "./api.js";
import { bytes, duration, h, number, setText } from "./dom.js";

const KINDS = {
  snapshot: "Snapshot",
  restore: "Restore",
  preview: "Preview of a restore",
  verify: "Verification",
  archive: "Download of a snapshot",
  upload: "Upload of a snapshot",
  delete: "Deletion of a snapshot",
  gc: "Garbage collection",
  repair: "Repair of an index",
  train: "Training",
  "delete-avatar": "Deletion of an avatar",
};
export const STATES = { running: "Running", succeeded: "Succeeded", failed: "Failed", cancelled: "Cancelled" };
export const TONES = { running: "info", succeeded: "ok", failed: "bad", cancelled: "warn" };
const MOST_SHOWN = 200;
const MOST_CHARACTERS = 2000;

/** "train" → "Training". A kind that is not known is shown as it is. */
export function kindOf(job) {
  return KINDS[job.kind] ?? job.kind;
}

/** `count` of `unit`, for people. */
function amount(count, unit) {
  return unit === "bytes" ? bytes(count) : `${number(count)} ${unit}`;
}

/** "indexing · 1,200 of 5,000 vectors · 310 vectors/s · about 12 s left" */
export function progressText(job) {
  const parts = [job.phase ?? "starting"];
  if (job.total) {
    const done = job.unit === "bytes" ? bytes(job.done) : number(job.done);
    parts.push(`${done} of ${amount(job.total, job.unit)}`);
  } else if (job.done) {
    parts.push(amount(job.done, job.unit));
  }
  if (job.rate_per_s !== null) parts.push(`${amount(job.rate_per_s, job.unit)}/s`);
  if (job.remaining_s !== null) parts.push(`about ${duration(job.remaining_s)} left`);
  return parts.join(" · ");
}

/** A progress bar with its text. `update(job)` changes both. */
export function progressBar(label) {
  const bar = h("progress", { "aria-label": label, max: 1 });
  const text = h("p", { class: "small number" });
  return {
    element: h("div", { class: "job-progress" }, bar, text),
    update(job) {
      if (job.total) {
        bar.max = job.total;
        bar.value = Math.min(job.done, job.total);
      } else {
        bar.removeAttribute("value"); // how far it is, is not known
      }
      setText(text, progressText(job));
    },
  };
}

/** How a job ended, as elements; nothing while it runs. */
export function outcome(job) {
  if (job.state === "running") return [];
  if (job.error) {
    const { message, hint } = job.error;
    const tone = job.state === "cancelled" ? "warn" : "bad";
    return [h("div", { class: `box ${tone}` }, h("p", { class: "box-title" }, sentence(message)), hint && h("p", {}, sentence(hint)))];
  }
  if (!job.result) return [];
  return job.kind === "train" ? trainingResult(job.result) : [fields(job.result)];
}

// ---------------------------------------------------------------------- a training

const OUTCOMES = [
  ["failed", "Failed", "bad"],
  ["partial", "In part", "warn"],
  ["added", "Added", "ok"],
  ["changed", "Changed", "ok"],
  ["removed", "Removed", "info"],
];

/** What became of each document, the failures first. */
export function trainingResult(result) {
  const rows = OUTCOMES.flatMap(([field, label, tone]) => {
    const found = result[field] ?? [];
    const named = Array.isArray(found) ? found.map((name) => [name, ""]) : Object.entries(found);
    return named.map(([name, why]) => ({ name, label, tone, why: Array.isArray(why) ? why.join("; ") : why }));
  });
  const heads = ["Document", "Outcome", ...(rows.some(({ why }) => why) ? ["Reason"] : [])];
  const title = result.dry_run
    ? `Training would write to ${result.collection}`
    : `${number(result.written)} chunks written to ${result.collection}, ${number(result.deleted)} deleted`;
  const unchanged = `${number(result.unchanged)} ${result.unchanged === 1 ? "document" : "documents"} unchanged.`;
  return [
    h("p", {}, h("strong", {}, title), ". ", unchanged),
    rows.length > 0 &&
      h(
        "div",
        { class: "table", role: "region", "aria-label": "Documents of the training", tabindex: 0 },
        h(
          "table",
          {},
          h("thead", {}, h("tr", {}, heads.map((each) => h("th", { scope: "col" }, each)))),
          h(
            "tbody",
            {},
            rows.slice(0, MOST_SHOWN).map(({ name, label, tone, why }) =>
              h("tr", {}, h("td", {}, name), h("td", {}, badge(label, tone)), heads.length > 2 && h("td", {}, cut(why))),
            ),
          ),
        ),
      ),
    rows.length > MOST_SHOWN && h("p", { class: "muted" }, `${number(rows.length - MOST_SHOWN)} more are not shown.`),
  ];
}

// ---------------------------------------------------------------------- any result

/** A word with a colour. */
export function badge(text, tone = "info") {
  return h("span", { class: `badge ${tone}` }, text);
}

/** The fields of an object as a list of names and values; long lists and texts are cut. */
export function fields(object) {
  return h(
    "dl",
    { class: "pairs" },
    Object.entries(object).map(([name, value]) => [h("dt", {}, name.replaceAll("_", " ")), h("dd", {}, shown(name, value))]),
  );
}

function shown(name, value) {
  if (value === null || value === "") return "–";
  if (typeof value === "number") {
    if (name.endsWith("bytes")) return bytes(value);
    if (name.endsWith("_s")) return duration(value);
    return number(value);
  }
  if (typeof value === "boolean") return value ? "yes" : "no";
  if (typeof value !== "object") return cut(String(value));
  const many = Array.isArray(value) ? value.length : Object.keys(value).length;
  if (many === 0) return "none";
  const element = h("details", {}, h("summary", {}, `${number(many)} ${many === 1 ? "entry" : "entries"}`));
  // Only what is opened is built: a result may name 10,000 records.
  element.addEventListener("toggle", () => element.childElementCount === 1 && element.append(entries(value)), { once: true });
  return element;
}

function entries(value) {
  const all = Object.entries(value);
  const lines = all.slice(0, MOST_SHOWN).map(([name, each]) => {
    const text = typeof each === "string" ? each : JSON.stringify(each);
    return h("li", {}, Array.isArray(value) ? cut(text) : `${name}: ${cut(text)}`);
  });
  return h("ul", { class: "entries" }, lines, all.length > MOST_SHOWN && h("li", {}, `and ${number(all.length - MOST_SHOWN)} more`));
}

/** A text that is not longer than what a list can show. */
export function cut(text, most = MOST_CHARACTERS) {
  return text.length > most ? `${text.slice(0, most)}… (${number(text.length)} characters)` : text;
}
