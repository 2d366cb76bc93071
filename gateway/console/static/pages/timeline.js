// The timeline: which moments can be restored, what happened in between, and the way back to any of them.

import { errorBox, follow, get, post, resultOf, sentence } from "../api.js";
import { confirm } from "../dialog.js";
import { ago, bytes, duration, h, moment, number, replace, setText, timeAgo } from "../dom.js";
import { draw, shownMarks } from "../picture.js";

export const title = "Timeline";

const RANGES = [["10 min", 600], ["1 h", 3600], ["6 h", 21600], ["24 h", 86400], ["All", null]];
const PARTS = 160;
const LOOK_AGAIN_MS = 60_000;
const MOST_EVENTS = 100;
const MOST_ROWS = 200;
const LEGEND = [["written", "Written"], ["snapshot", "Snapshot"], ["own", "Checkpoint"], ["takeover", "Takeover"], ["restored", "Restore"], ["hole", "Gap"]];
const MARKS = {
  seal: ({ where, epoch }) => ["Takeover", `${where} became the writer, epoch ${epoch}`],
  restore: ({ restored_to }) => ["Restore", `back to ${moment(restored_to)}`],
  run: ({ snapshot }) => ["Journal began", `on snapshot ${snapshot}`],
};

export async function mount({ root, live, signal, mayAct, say }) {
  let history = null;
  let range; // seconds before now; null is all; undefined is not chosen yet
  let chosen = null; // { at: ms, name: what the gateway is asked for, text }
  let drawn = null;

  const notes = h("div", { class: "stack" });
  const summary = h("p", { class: "muted" });
  const ranges = h("div", { class: "segments", role: "group", "aria-label": "Range" });
  const picture = h("div", { class: "picture" });
  const slider = h("input", { type: "range", id: "moment", step: "1000", oninput: () => choose(Number(slider.value)) });
  const exact = h("input", { type: "datetime-local", id: "exact", step: "1", onchange: () => chooseExact() });
  const panel = h("div", { class: "stack" });
  const happened = h("section", { class: "card", "aria-labelledby": "happened" });
  const chart = h(
    "section",
    { class: "card stack", "aria-labelledby": "restorable" },
    h("div", { class: "row between" }, h("h2", { id: "restorable" }, "What can be restored"), ranges),
    summary,
    picture,
    h("ul", { class: "legend", "aria-hidden": "true" }, LEGEND.map(([name, text]) => h("li", { class: name }, text))),
    h(
      "div",
      { class: "moment-fields" },
      h("div", { class: "field grow" }, h("label", { for: "moment" }, "Choose a moment"), slider),
      h("div", { class: "field" }, h("label", { for: "exact" }, "To the second"), exact),
    ),
  );
  const columns = h("div", { class: "columns" }, h("section", { class: "card stack", "aria-label": "The chosen moment" }, panel), happened);
  replace(root, notes, chart, columns);

  await look();

  // The picture follows the width of the page, and new snapshots.
  const observer = new ResizeObserver(() => history && render());
  observer.observe(picture);
  const timer = setInterval(() => look().catch(() => {}), LOOK_AGAIN_MS);
  signal.addEventListener("abort", () => (observer.disconnect(), clearInterval(timer)));
  let seen = null;
  live.on(({ store, current }) => {
    const state = JSON.stringify([store?.last_snapshot?.id, current.operation === null]);
    if (seen !== null && seen !== state && current.operation === null) look().catch(() => {});
    seen = state;
  }, signal);

  // -------------------------------------------------------------------- what there is

  async function look() {
    const query = { parts: PARTS, until: new Date().toISOString() };
    if (range) query.since = `-${range}s`;
    history = await get("/admin/history", { query, signal });
    if (range === undefined) {
      // The shortest range with all that there is.
      const span = history.oldest ? (Date.now() - new Date(history.oldest)) / 1000 : 0;
      range = RANGES.map(([, seconds]) => seconds).find((each) => each === null || each >= span);
      if (range) return look();
    }
    render();
  }

  function bounds() {
    const now = Date.now();
    const oldest = Math.min(...[history.oldest, history.snapshots.at(-1)?.at].filter(Boolean).map((each) => +new Date(each)));
    const begin = range ? now - range * 1000 : Number.isFinite(oldest) ? oldest : now - 3_600_000;
    // Whole seconds, as the slider has them.
    return [Math.floor(begin / 1000) * 1000, Math.ceil(Math.max(now, begin + 1000) / 1000) * 1000];
  }

  function render() {
    const { oldest, full_since: full, snapshots, entries, stored_bytes: stored, gaps } = history;
    setText(
      summary,
      oldest
        ? `Any moment since ${moment(oldest)} (${ago(oldest)}), to the second since ${moment(full)}. The journal has ` +
            `${number(entries)} ${entries === 1 ? "entry" : "entries"}, ${bytes(stored)}.` +
            (gaps.length ? ` ${number(gaps.length)} ${gaps.length === 1 ? "gap" : "gaps"}: moments in it cannot be restored.` : "")
        : snapshots.length
          ? "Only the moments of snapshots can be restored: there is no journal after them."
          : "Nothing can be restored yet. What is written from now on will be.",
    );
    replace(
      ranges,
      RANGES.map(([name, seconds]) =>
        h("button", { type: "button", "aria-pressed": String(seconds === range), onclick: () => ((range = seconds), look()) }, name),
      ),
    );
    const [begin, end] = bounds();
    Object.assign(slider, { min: begin, max: end });
    slider.disabled = exact.disabled = !snapshots.length;
    if (chosen) slider.value = chosen.at;
    else slider.value = end;
    drawn = draw(history, begin, end, picture.clientWidth, (at) => choose(at));
    replace(picture, drawn.element);
    mark();
    renderEvents(begin);
    if (!panel.children.length) renderPanel();
  }

  function renderEvents(begin) {
    const found = [
      ...history.snapshots.map((each) => ({
        at: each.at,
        kind: "Snapshot",
        text: each.label ?? "no label",
        id: each.id,
        pick: () => choose(+new Date(each.at), each.id, `the snapshot ${each.id}`),
      })),
      ...shownMarks(history.marks).map((each) => {
        const [kind, text] = MARKS[each.kind](each);
        const before = each.kind === "restore" ? +new Date(each.at) - 1 : +new Date(each.at);
        return { at: each.at, kind, text, pick: () => choose(before), action: each.kind === "restore" ? "Before it" : "Choose" };
      }),
    ]
      .filter((each) => +new Date(each.at) >= begin)
      .sort((one, other) => new Date(other.at) - new Date(one.at));
    replace(
      happened,
      h("h2", { id: "happened" }, "What happened"),
      found.length
        ? h(
            "ul",
            { class: "events", tabindex: "0", "aria-label": "What happened" },
            found.slice(0, MOST_EVENTS).map(({ at, kind, text, id, pick, action = "Choose" }) =>
              h(
                "li",
                { class: "event" },
                h("span", { class: `event-mark ${kind.toLowerCase().split(" ")[0]}`, "aria-hidden": "true" }),
                h("div", {}, h("p", {}, h("strong", {}, kind), " ", timeAgo(at)), h("p", { class: "small" }, text), id && h("p", { class: "small mono" }, id)),
                h("button", { class: "button quiet", type: "button", onclick: pick, "aria-label": `${action}: ${kind}, ${moment(at)}` }, action),
              ),
            ),
          )
        : h("p", { class: "muted" }, "Nothing in this range."),
      found.length > MOST_EVENTS && h("p", { class: "small" }, `And ${number(found.length - MOST_EVENTS)} older ones.`),
    );
  }

  // -------------------------------------------------------------------- the chosen moment

  function choose(at, name = new Date(at).toISOString(), text = moment(at)) {
    if (chosen?.name === name) return;
    chosen = { at, name, text };
    slider.value = at;
    mark();
    renderPanel();
  }

  function chooseExact() {
    const at = new Date(exact.value).getTime();
    if (!Number.isNaN(at)) choose(at);
  }

  function mark() {
    const at = chosen?.at ?? null;
    drawn?.mark(at);
    const shown = new Date(at ?? Date.now());
    slider.setAttribute("aria-valuetext", moment(shown));
    exact.value = new Date(shown - shown.getTimezoneOffset() * 60000).toISOString().slice(0, 19);
  }

  function renderPanel() {
    if (!chosen) {
      replace(
        panel,
        h("h2", {}, "No moment is chosen"),
        h("p", { class: "muted" }, "Choose one in the picture, with the slider, or from the list of what happened."),
      );
      return;
    }
    if (!restorable()) {
      replace(
        panel,
        h("h2", {}, sentence(chosen.text).replace(/\.$/, "")),
        h("p", { class: "box" }, `Nothing can be restored from so long ago. ${history.oldest ? `The oldest moment is ${moment(history.oldest)}.` : ""}`),
      );
      return;
    }
    const compare = h("button", { class: "button primary", type: "button", onclick: () => preview() }, "Compare with now");
    replace(
      panel,
      h("h2", {}, sentence(chosen.text).replace(/\.$/, "")),
      h("p", { class: "muted" }, `${sentence(ago(chosen.at))} Nothing changes before you restore it.`),
      mayAct
        ? h("div", { class: "row" }, compare, restoreButton())
        : h("p", { class: "small" }, "An admin's key may compare it with now, and restore it."),
    );
  }

  /** Whether there may be something at the chosen moment: a snapshot, or anything after the oldest one. */
  function restorable() {
    const oldest = history.snapshots.at(-1)?.at;
    return history.snapshots.some((each) => each.id === chosen.name) || (oldest && chosen.at >= +new Date(oldest));
  }

  function restoreButton(target = chosen, text = "Restore…") {
    return h("button", { class: "button danger", type: "button", onclick: () => restore(target) }, text);
  }

  function progressOf(what) {
    const bar = h("progress", { "aria-label": what });
    const text = h("p", { class: "small" }, what);
    return {
      element: h("div", { class: "stack" }, text, bar),
      show({ phase, done, total, unit }) {
        const amount = (value) => (unit === "bytes" ? bytes(value) : number(value));
        setText(text, `${what}: ${phase ?? "…"}${total ? `, ${amount(done)} of ${amount(total)}` : ""}`);
        if (total) Object.assign(bar, { max: total, value: done });
        else bar.removeAttribute("value");
      },
    };
  }

  async function preview() {
    const target = chosen;
    const progress = progressOf("Looking");
    replace(panel, h("h2", {}, sentence(target.text).replace(/\.$/, "")), progress.element);
    try {
      const job = await post("/admin/restore", { at: target.name, dry_run: true }, { query: { wait: false }, signal });
      const found = resultOf(await follow(job, { signal, onChange: (each) => progress.show(each) }));
      if (chosen !== target) return;
      const rows = compared(found);
      replace(
        panel,
        h("h2", {}, sentence(target.text).replace(/\.$/, "")),
        h(
          "p",
          { class: "muted" },
          `The data as they were at ${moment(found.at)}: snapshot ${found.snapshot} and ${number(found.entries)} entries of the ` +
            `journal. A restore fetches ${bytes(found.fetched_bytes)} and takes ${found.duration_s < 1 ? "less than a second" : `about ${duration(found.duration_s)}`}.`,
        ),
        rows,
        h("p", { class: "small" }, "Equal numbers do not mean equal records."),
        h("div", { class: "row" }, restoreButton(target)),
      );
      say("The comparison is there.");
    } catch (error) {
      if (error.name !== "AbortError" && chosen === target) replace(panel, errorBox(error, () => preview()));
    }
  }

  async function restore(target) {
    const sure = await confirm({
      title: "Restore this moment?",
      body: [
        `All collections become those of ${target.text}. Clients get errors for a moment, and what was written since then is no longer served.`,
        "What is served now is stored first, so you can go back.",
      ],
      action: "Restore",
      typed: "restore",
    });
    if (!sure) return;
    const progress = progressOf("Restoring");
    replace(notes, h("div", { class: "box info" }, h("p", { class: "box-title" }, `Going back to ${target.text}`), progress.element));
    notes.scrollIntoView({ block: "nearest" });
    try {
      const job = await post("/admin/restore", { at: target.name }, { query: { wait: false }, signal });
      const found = resultOf(await follow(job, { signal, onChange: (each) => progress.show(each) }));
      const back = found.return_to && { at: +new Date(found.return_to), name: found.return_to, text: moment(found.return_to) };
      chosen = null;
      replace(panel);
      replace(
        notes,
        h(
          "div",
          { class: `box ${found.stored ? "ok" : "warn"}`, tabindex: "-1" },
          h("p", { class: "box-title" }, `The data of ${moment(found.at)} are served now.`),
          !found.stored && h("p", {}, "The store does not know it yet: a lost disk would bring back the data as they were before."),
          back
            ? h("p", {}, `To undo it, go back to ${back.text}, or run `, h("code", {}, found.undo), ".")
            : h("p", {}, "There is no way back: what was served could not be stored."),
          back && h("div", { class: "row" }, restoreButton(back, `Go back to ${back.text}…`)),
        ),
      );
      notes.firstElementChild.focus();
      say("The restore is done.");
      await look();
    } catch (error) {
      if (error.name === "AbortError") return;
      replace(notes, errorBox(error));
      notes.scrollIntoView({ block: "nearest" });
    }
  }
}

/** A table of the collections then and now. The largest differences come first. */
function compared({ collections, now }) {
  const rows = new Map();
  for (const [side, list] of [["then", collections], ["now", now]]) {
    for (const each of list) {
      const key = JSON.stringify([each.tenant, each.database, each.name]);
      const row = rows.get(key) ?? { ...each, then: null, now: null };
      rows.set(key, { ...row, [side]: each.records });
    }
  }
  if (!rows.size) return h("p", { class: "box" }, "There was no collection then, and there is none now.");
  const difference = ({ then, now: at }) => (then ?? 0) - (at ?? 0);
  const sorted = [...rows.values()].sort(
    (one, other) =>
      (one.then === null || one.now === null ? 0 : 1) - (other.then === null || other.now === null ? 0 : 1) ||
      Math.abs(difference(other)) - Math.abs(difference(one)) ||
      one.name.localeCompare(other.name),
  );
  const elsewhere = ({ tenant, database }) =>
    tenant === "default_tenant" && database === "default_database" ? null : h("p", { class: "small" }, `${tenant} / ${database}`);
  const change = (row) => {
    if (row.now === null) return h("span", { class: "badge ok" }, "comes back");
    if (row.then === null) return h("span", { class: "badge bad" }, "goes");
    const by = difference(row);
    return by === 0 ? h("span", { class: "muted" }, "same number") : `${by > 0 ? "+" : "−"}${number(Math.abs(by))}`;
  };
  return h(
    "div",
    {},
    h(
      "div",
      { class: "table inset", tabindex: "0", role: "region", "aria-label": "Collections then and now" },
      h(
        "table",
        {},
        h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "Collection"), ["Then", "Now", "Change"].map((each) => h("th", { scope: "col", class: "right" }, each)))),
        h(
          "tbody",
          {},
          sorted.slice(0, MOST_ROWS).map((row) =>
            h(
              "tr",
              {},
              h("th", { scope: "row" }, row.name, elsewhere(row)),
              h("td", { class: "right" }, number(row.then)),
              h("td", { class: "right" }, number(row.now)),
              h("td", { class: "right" }, change(row)),
            ),
          ),
        ),
      ),
    ),
    sorted.length > MOST_ROWS && h("p", { class: "small" }, `And ${number(sorted.length - MOST_ROWS)} more, with smaller differences.`),
  );
}
