// The overview: what an operator looks at first. It changes in place, once a second.

import { follow, post, resultOf, sentence } from "../api.js";
import { ago, bytes, duration, h, marked, moment, number, replace, setText, svg } from "../dom.js";

export const title = "Overview";

const SAMPLES = 120;

/** One card: `value` and `more` make its texts of the overview, `tone` its mark: ok, warn, bad, or null. */
const CARDS = [
  {
    name: "Newest snapshot",
    value: ({ store }) => {
      if (!store) return "…";
      if (!store.reachable) return "Unknown";
      return store.last_snapshot ? ago(store.last_snapshot.created_at) : "None yet";
    },
    more: ({ store }) => {
      if (!store) return "";
      if (!store.reachable) return sentence(store.message);
      const last = store.last_snapshot;
      if (!last) return "A snapshot is a whole copy in the store.";
      return [last.label ?? "no label", bytes(last.size_bytes), `${number(store.snapshots)} in the store`].join(" · ");
    },
    mark: ({ store }) => {
      const last = store?.last_snapshot;
      if (!store || (store.reachable && !last)) return null;
      if (!store.reachable) return ["store away", "bad"];
      if (last.state === "damaged") return ["damaged", "bad"];
      if (!last.verified) return ["not verified", ""];
      return last.verified.ok ? ["verified", "ok"] : ["verification failed", "bad"];
    },
  },
  {
    name: "Not in the store yet",
    value: ({ journal, snapshots }) => (journal.on ? duration(journal.lag_s) : duration(snapshots.unsaved_s)),
    more: ({ journal }) => {
      if (!journal.on) return journal.problem ? sentence(journal.problem) : "The journal is off: only snapshots save writes.";
      if (journal.lag_s === 0) return "Everything written is in the store.";
      return "Age of the oldest write that a lost machine would take along.";
    },
    mark: ({ journal }) => {
      if (!journal.on) return ["journal off", "warn"];
      if (journal.problem) return ["journal fails", "bad"];
      return journal.lag_s > 10 ? ["behind", "warn"] : ["journal on", "ok"];
    },
  },
  {
    name: "Recovery time now",
    value: ({ restore_s }) => (restore_s === null ? "–" : `≈ ${duration(restore_s)}`),
    more: ({ journal, restore_s }) =>
      restore_s === null ? "There is nothing to restore yet." : `Of that, the journal ${duration(journal.recovery_s)}.`,
  },
  {
    name: "Can be restored since",
    value: ({ journal }) => (journal.restorable_from ? ago(journal.restorable_from) : "–"),
    more: ({ journal }) =>
      journal.restorable_from ? `Any moment since ${moment(journal.restorable_from)}.` : "See the timeline for single moments.",
  },
  {
    name: "Requests a second",
    wide: true,
    value: ({ requests: { reads_per_s: reads, writes_per_s: writes } }) => (reads === null ? "…" : number(reads + writes)),
    more: ({ requests: { reads_per_s: reads, writes_per_s: writes } }) =>
      reads === null ? "" : `${number(reads)} reads · ${number(writes)} writes`,
    mark: ({ requests }) => (requests.failed_per_s ? [`${number(requests.failed_per_s)} fail`, "bad"] : null),
    spark: true,
  },
  {
    name: "Chroma",
    value: ({ chroma }) => (chroma.up ? "Up" : "Down"),
    more: ({ chroma, chroma_version }) => {
      const restarts = Math.max(0, chroma.starts - 1);
      return `Version ${chroma_version} · ${restarts === 0 ? "no restart" : restarts === 1 ? "1 restart" : `${restarts} restarts`}`;
    },
    mark: ({ chroma }) => {
      const unreadable = Object.keys(chroma.unreadable).length;
      return unreadable ? [`${unreadable} unreadable`, "bad"] : chroma.up ? null : ["down", "bad"];
    },
  },
  {
    name: "Writer",
    value: ({ lease }) => (lease.role === "writer" ? "This gateway" : lease.role),
    more: ({ lease }) =>
      lease.reason ? sentence(lease.reason) : [lease.holder, lease.epoch !== null && `epoch ${lease.epoch}`].filter(Boolean).join(" · "),
    mark: ({ lease }) => (lease.role === "writer" ? null : ["not the writer", "warn"]),
  },
  {
    name: "Data",
    value: ({ totals }) => `${number(totals.records)}`,
    more: ({ totals }) => `records in ${number(totals.collections)} ${totals.collections === 1 ? "collection" : "collections"}`,
  },
  {
    name: "Disk",
    value: ({ data_dir }) => bytes(data_dir.free_bytes),
    more: ({ data_dir, totals }) =>
      data_dir.problem
        ? sentence(data_dir.problem)
        : `free · ${bytes(data_dir.size_bytes)} used, of it ${bytes(totals.hnsw_bytes)} indexes`,
    mark: ({ data_dir }) =>
      data_dir.free_bytes !== null && data_dir.free_bytes < Math.max(data_dir.size_bytes ?? 0, 1e9) ? ["low", "warn"] : null,
  },
  {
    name: "Store requests",
    value: ({ journal }) => number(journal.requests_last_hour),
    more: ({ journal }) =>
      `of the journal in the last hour, ${dollars(journal.requests_last_hour_usd)} at S3's list price`,
  },
  {
    name: "Memory",
    value: ({ memory }) => bytes(memory.gateway_bytes),
    more: () => "of the gateway's process",
  },
];

export async function mount({ root, live, signal, mayAct, say, notify }) {
  const light = h("span", { class: "light" });
  const headline = h("p", { class: "headline-text" }, "…");
  const detail = h("p", { class: "muted" });
  const actions = h("div", { class: "actions" });
  const warnings = h("ul", { class: "stack", "aria-label": "Warnings" });
  const under = h("div", { class: "stack" });
  const cards = CARDS.map(card);
  replace(
    root,
    h("section", { class: "card headline", "aria-label": "Readiness" }, light, h("div", {}, headline, detail), actions),
    under,
    warnings,
    h("section", { class: "grid", "aria-label": "Figures" }, cards.map((each) => each.element)),
  );
  if (mayAct) {
    actions.append(
      h("button", { class: "button primary", type: "button", onclick: takeSnapshot }, "Take a snapshot"),
      h("button", { class: "button", type: "button", onclick: verifyNewest }, "Verify the newest"),
    );
  }

  let shown = "", spoken = null;
  live.on((now, state) => {
    const tone = !now.ready ? "bad" : now.warnings.length ? "warn" : "ok";
    light.className = `light ${state === "live" ? tone : ""}`;
    setText(headline, now.ready ? (now.warnings.length ? "Ready, with warnings" : "Ready") : "Not ready");
    setText(
      detail,
      now.ready ? `Version ${now.version} · up for ${duration(now.uptime_s)}` : sentence(now.reason ?? now.phase),
    );
    if (spoken !== null && spoken !== now.ready) say(now.ready ? "The gateway is ready." : "The gateway is not ready.");
    spoken = now.ready;
    const changed = JSON.stringify([now.warnings, now.last_error, now.gate.refusal, now.gate.state, now.current]);
    if (changed !== shown) {
      shown = changed;
      replace(warnings, now.warnings.map(warning), now.last_error && lastError(now.last_error));
      warnings.hidden = !warnings.children.length;
      replace(under, underWay(now));
      under.hidden = !under.children.length;
    }
    cards.forEach((each) => each.show(now));
  }, signal);

  async function run(button, job, done) {
    button.disabled = true;
    try {
      notify(done(resultOf(await follow(await job, { signal }))));
    } catch (error) {
      if (error.name === "AbortError") return;
      notify(`${sentence(error.message)} ${error.hint ? sentence(error.hint) : ""}`, "bad");
    } finally {
      button.disabled = false;
    }
  }

  function takeSnapshot({ currentTarget }) {
    const job = post("/admin/snapshot", {}, { query: { wait: false } });
    run(currentTarget, job, (found) => `Snapshot ${found.id} is in the store: ${bytes(found.size_bytes)}.`);
  }

  function verifyNewest({ currentTarget }) {
    const job = post("/admin/snapshot/latest/verify", {}, { query: { wait: false } });
    run(currentTarget, job, (found) =>
      found.ok ? "The newest snapshot can be restored." : `The newest snapshot is damaged: ${found.problems.join("; ")}.`);
  }
}

function dollars(amount) {
  return amount < 0.01 ? "less than $0.01" : `about $${amount.toFixed(2)}`;
}

function card({ name, value, more, mark = () => null, wide, spark }) {
  const badge = h("span", { class: "badge", hidden: true });
  const text = h("p", { class: "stat-value" }, "…");
  const below = h("p", { class: "stat-more" });
  const chart = spark ? sparkline() : null;
  const element = h(
    "div",
    { class: `card stat${wide ? " wide" : ""}` },
    h("h2", { class: "stat-name" }, name, badge),
    text,
    below,
    chart?.element,
  );
  return {
    element,
    show(now) {
      setText(text, value(now));
      setText(below, more(now));
      const found = mark(now);
      badge.hidden = !found;
      if (found) {
        badge.className = `badge ${found[1]}`;
        setText(badge, found[0]);
      }
      chart?.add(now.requests.reads_per_s === null ? 0 : now.requests.reads_per_s + now.requests.writes_per_s);
    },
  };
}

function sparkline() {
  const samples = [];
  const line = svg("path"), area = svg("path", { class: "area" });
  const element = svg("svg", { class: "spark", viewBox: `0 0 ${SAMPLES - 1} 30`, preserveAspectRatio: "none", "aria-hidden": "true" }, area, line);
  return {
    element,
    add(sample) {
      samples.push(sample);
      if (samples.length > SAMPLES) samples.shift();
      const most = Math.max(1, ...samples);
      const points = samples.map((each, index) => `${SAMPLES - samples.length + index},${(28.5 - (each / most) * 26).toFixed(1)}`);
      line.setAttribute("d", `M${points.join("L")}`);
      area.setAttribute("d", `M${SAMPLES - samples.length},30L${points.join("L")}L${SAMPLES - 1},30Z`);
    },
  };
}

function warning({ message, hint }) {
  return h("li", { class: "box warn" }, h("p", { class: "box-title" }, marked(sentence(message))), h("p", {}, marked(hint)));
}

function lastError({ at: when, message, hint }) {
  return h(
    "li",
    { class: "box bad" },
    h("p", { class: "box-title" }, marked(sentence(message))),
    hint && h("p", {}, marked(sentence(hint))),
    h("p", { class: "small" }, moment(when)),
  );
}

function underWay({ current, gate }) {
  const found = [];
  if (current.operation) {
    const { bytes_done: done, bytes_total: total } = current;
    found.push(
      h(
        "div",
        { class: "box info" },
        h("p", { class: "box-title" }, sentence(`${current.operation} is under way`)),
        total ? h("progress", { max: total, value: done ?? 0, "aria-label": current.operation }) : null,
      ),
    );
  }
  if (gate.refusal) found.push(h("div", { class: "box bad" }, h("p", { class: "box-title" }, sentence(`requests are refused: ${gate.refusal}`))));
  return found;
}
