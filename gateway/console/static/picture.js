// The picture of the timeline: writes as bars, snapshots, restores, takeovers and gaps, drawn as SVG.

import { ago, bytes, moment, number, svg } from "./dom.js";

const HEIGHT = 196, MARKS = 14, TOP = 30, BASE = 132, SNAPSHOTS = 149, AXIS = 184;
const STEPS_S = [10, 30, 60, 120, 300, 600, 1800, 3600, 7200, 14400, 28800, 86400, 172800, 604800, 2592000];
const LABEL_WIDTH = 84, PAD = 9;
const SHAPES = {
  seal: "M0,-6 L6,5 L-6,5 Z",
  restore: "M4.5,-4 A6,6 0 1 0 6,1 M5.5,-7 L5,-3 L1,-3.5",
  run: "M-4,-4 L4,4 M4,-4 L-4,4",
};

/**
 * Draw the history from `begin` to `end` (ms) in `width` pixels. `pick(ms)` is called when a moment is pointed at.
 *
 * Returns the element, and `mark(ms)`, which shows the chosen moment; null for none.
 */
export function draw(history, begin, end, width, pick) {
  width = Math.max(width, 280);
  const inner = width - 2 * PAD;
  const x = (at) => PAD + Math.min(1, Math.max(0, (+new Date(at) - begin) / (end - begin))) * inner;
  const inside = (at) => +new Date(at) >= begin && +new Date(at) <= end;
  const { oldest, full_since: full, snapshots, marks, timeline } = history;
  const parts = timeline?.parts ?? [];
  const most = Math.max(1, ...parts.map((each) => each.stored_bytes));
  const wide = Math.max(1.5, ((timeline?.step_s ?? 1) * 1000 * inner) / (end - begin) - 1);

  const layers = [
    // From the oldest moment on everything can be restored; before `full` to the minute.
    oldest && band(x(oldest), x(end), "restorable"),
    oldest && full && new Date(full) > new Date(oldest) && band(x(oldest), x(full), "merged"),
    ticks(begin, end, x, width),
    svg("path", { class: "base", d: `M0,${BASE}.5H${width}` }),
    // The square root keeps single writes visible beside an import.
    parts.map((each) => {
      const high = Math.max(2, Math.sqrt(each.stored_bytes / most) * (BASE - TOP));
      return svg("rect", { class: "volume", x: x(each.at).toFixed(1), y: (BASE - high).toFixed(1), width: wide.toFixed(1), height: high.toFixed(1) });
    }),
    (timeline?.holes ?? []).map(({ after, before }) => band(x(after ?? begin), Math.max(x(before ?? end), x(after ?? begin) + 3), "hole")),
    snapshots.filter((each) => inside(each.at)).map((each) =>
      svg("circle", { class: OWN.has(each.label) ? "snapshot own" : "snapshot", cx: x(each.at).toFixed(1), cy: SNAPSHOTS, r: OWN.has(each.label) ? 3 : 5 }),
    ),
    shownMarks(marks).filter((each) => inside(each.at)).map((each) =>
      svg(
        "g",
        { class: `mark ${each.kind}`, transform: `translate(${x(each.at).toFixed(1)},0)` },
        svg("path", { class: "stem", d: `M0,${MARKS + 8}V${BASE}` }),
        svg("path", { class: "shape", transform: `translate(0,${MARKS})`, d: SHAPES[each.kind] }),
      ),
    ),
  ];

  const cursor = svg("g", { class: "cursor", visibility: "hidden" }, svg("path", { d: `M0,0V${SNAPSHOTS + 12}` }), svg("circle", { cy: 4, r: 4 }));
  const hover = svg("g", { class: "hover", visibility: "hidden" }, svg("path", { d: `M0,${TOP - 6}V${SNAPSHOTS + 12}` }), svg("text", { y: TOP - 12 }));
  const written = parts.reduce((sum, each) => sum + each.entries, 0);
  const element = svg(
    "svg",
    {
      width, height: HEIGHT, viewBox: `0 0 ${width} ${HEIGHT}`, role: "img",
      "aria-label":
        `From ${moment(begin)} to ${moment(end)}: ${number(written)} journal entries, ${bytes(parts.reduce((sum, each) => sum + each.stored_bytes, 0))}; ` +
        `${snapshots.filter((each) => inside(each.at)).length} snapshots; ${marks.filter((each) => inside(each.at)).length} marks.`,
    },
    layers, hover, cursor,
  );

  const moved = (event) => begin + Math.min(1, Math.max(0, (event.clientX - element.getBoundingClientRect().left - PAD) / inner)) * (end - begin);
  element.addEventListener("pointermove", (event) => {
    const at = moved(event);
    show(hover, x(at));
    const text = hover.lastElementChild;
    text.textContent = `${moment(at)} · ${ago(at)}`;
    const side = x(at) > width - 110 ? "end" : x(at) < 110 ? "start" : "middle";
    text.setAttribute("text-anchor", side);
    if (event.buttons === 1) pick(Math.round(at / 1000) * 1000);
  });
  element.addEventListener("pointerleave", () => hover.setAttribute("visibility", "hidden"));
  element.addEventListener("pointerdown", (event) => event.button === 0 && pick(Math.round(moved(event) / 1000) * 1000));

  return {
    element,
    mark(at) {
      if (at === null || at < begin || at > end) cursor.setAttribute("visibility", "hidden");
      else show(cursor, x(at));
    },
  };
}

/** The marks that tell something of their own: a journal begins with each takeover and restore anyway. */
export function shownMarks(marks) {
  const told = new Set(marks.filter((each) => each.kind !== "run").map((each) => each.epoch));
  return marks.filter((each) => each.kind !== "run" || !told.has(each.epoch));
}

// The gateway's own labels.
const OWN = new Set(["checkpoint", "scheduled", "final", "handover"]);

function show(group, at) {
  group.setAttribute("transform", `translate(${at.toFixed(1)},0)`);
  group.setAttribute("visibility", "visible");
}

function band(from, to, name) {
  return to > from ? svg("rect", { class: `band ${name}`, x: from.toFixed(1), y: TOP, width: (to - from).toFixed(1), height: BASE - TOP }) : null;
}

function ticks(begin, end, x, width) {
  const step = (STEPS_S.find((each) => x(begin + each * 1000) - PAD >= LABEL_WIDTH) ?? STEPS_S.at(-1)) * 1000;
  const zone = new Date(begin).getTimezoneOffset() * 60000;
  const options = step >= 86400_000 ? { day: "numeric", month: "short" } : step < 60_000 ? { timeStyle: "medium" } : { timeStyle: "short" };
  const format = new Intl.DateTimeFormat(undefined, options);
  const found = [];
  for (let at = Math.ceil((begin - zone) / step) * step + zone; at < end; at += step) {
    if (x(at) < 18 || x(at) > width - 18) continue;
    found.push(
      svg("path", { class: "tick", d: `M${x(at).toFixed(1)},${TOP}V${SNAPSHOTS + 14}` }),
      svg("text", { class: "tick-text", x: x(at).toFixed(1), y: AXIS, "text-anchor": "middle" }, format.format(at)),
    );
  }
  return found;
}
