// Jobs: progress, rate and estimate of the running ones, results and errors of the last hundred.

import { at, del, get, pause } from "../api.js";
import { confirm } from "../dialog.js";
import { duration, h, number, replace, setText, timeAgo } from "../dom.js";
import { STATES, TONES, cut, kindOf, outcome, progressBar } from "../jobview.js";

export const title = "Jobs";

const RUNNING_EVERY_MS = 1000;
const IDLE_EVERY_MS = 4000;

export async function mount(page) {
  const only = h(
    "select",
    { id: "jobs-state", onchange: () => filter() },
    h("option", { value: "" }, "All states"),
    Object.entries(STATES).map(([state, label]) => h("option", { value: state }, label)),
  );
  const count = h("p", { class: "muted", role: "status" });
  const list = h("ul", { class: "stack" });
  const empty = h("p", { class: "card empty", hidden: true });
  page.root.append(
    h("div", { class: "row between" }, h("div", { class: "narrow" }, h("label", { class: "visually-hidden", for: "jobs-state" }, "State"), only), count),
    empty,
    list,
  );
  const rows = new Map();

  function filter() {
    let shown = 0;
    for (const row of rows.values()) {
      row.element.hidden = only.value !== "" && row.job.state !== only.value;
      if (!row.element.hidden) shown += 1;
    }
    const running = [...rows.values()].filter((row) => row.job.state === "running").length;
    const jobs = `${number(rows.size)} ${rows.size === 1 ? "job" : "jobs"}`;
    setText(count, rows.size ? `${jobs}, ${running ? number(running) : "none"} running` : "");
    empty.hidden = shown > 0;
    setText(empty, rows.size ? "No job is in this state." : "No job has run since the start of the gateway.");
    return running;
  }

  function update(jobs) {
    const ids = new Set(jobs.map((job) => job.id));
    for (const [id, row] of rows) {
      if (!ids.has(id)) (row.element.remove(), rows.delete(id));
    }
    // Newest first: a new one goes above those that are there, which stay as they are, with focus and open details.
    for (const job of [...jobs].reverse()) {
      let row = rows.get(job.id);
      if (!row) {
        row = jobRow(page, job);
        rows.set(job.id, row);
        list.prepend(row.element);
      } else if (row.job.state === "running" && job.state !== "running") {
        page.say(`${kindOf(job)} ${job.subject}: ${STATES[job.state]}`);
      }
      row.update(job);
    }
    return filter();
  }

  let running = update((await get("/admin/jobs", { signal: page.signal })).jobs);
  poll();

  async function poll() {
    while (!page.signal.aborted) {
      try {
        await pause(running ? RUNNING_EVERY_MS : IDLE_EVERY_MS, page.signal);
        if (document.visibilityState === "hidden") continue;
        running = update((await get("/admin/jobs", { signal: page.signal })).jobs);
      } catch (error) {
        if (error.name === "AbortError") return;
        // The shell says that the gateway does not answer. What is shown stays, and is asked for again.
      }
    }
  }
}

function jobRow(page, first) {
  const state = h("span", { class: "badge" });
  const bar = progressBar(`${kindOf(first)} ${first.subject}`);
  const took = h("p", { class: "small" });
  const cancel = h("button", { class: "button", type: "button", onclick: () => ask() }, "Cancel");
  const result = h("details", { class: "result", hidden: true }, h("summary", {}, "Result"));
  result.addEventListener("toggle", () => result.open && build());
  const problem = h("div");
  const row = {
    job: first,
    element: h(
      "li",
      { class: "card stack job", dataset: { job: first.id } },
      h(
        "div",
        { class: "row between" },
        h(
          "div",
          { class: "fills" },
          h("h2", {}, kindOf(first), first.subject && h("span", { class: "muted" }, ` ${cut(first.subject, 200)}`)),
          took,
        ),
        h("div", { class: "row" }, state, page.mayAct && cancel),
      ),
      bar.element,
      problem,
      result,
    ),
    update,
  };
  cancel.setAttribute("aria-label", `Cancel ${kindOf(first)} ${first.subject}`);
  replace(took, `No. ${first.id}, began `, timeAgo(first.started_at));
  let ended = false;

  function build() {
    if (result.childElementCount === 1) result.append(...elementsOf(outcome(row.job)));
  }

  function update(job) {
    row.job = job;
    const running = job.state === "running";
    setText(state, STATES[job.state]);
    state.className = `badge ${TONES[job.state]}`;
    bar.element.hidden = !running;
    cancel.hidden = !running;
    if (running) bar.update(job);
    if (running || ended) return;
    ended = true;
    const seconds = (new Date(job.ended_at) - new Date(job.started_at)) / 1000;
    replace(took, `No. ${job.id}, began `, timeAgo(job.started_at), `, took ${duration(seconds)}`);
    result.hidden = Boolean(job.error) || !job.result;
    if (job.error) problem.append(...elementsOf(outcome(job)));
  }

  async function ask() {
    const stays =
      row.job.kind === "train"
        ? "What is trained so far stays. The next training does the rest."
        : "It stops as soon as it can, and removes what it had begun.";
    const sure = await confirm({ title: "Cancel this job?", body: [`${kindOf(row.job)} ${row.job.subject}`, stays], action: "Cancel the job", danger: true });
    if (!sure || page.signal.aborted) return;
    cancel.disabled = true;
    try {
      update(await del(at`/admin/jobs/${row.job.id}`, { signal: page.signal }));
      page.notify(`${kindOf(row.job)}: ${STATES[row.job.state]}`, row.job.state === "cancelled" ? "ok" : "warn");
    } catch (error) {
      if (error.name !== "AbortError") page.notify(error.message, "bad");
    } finally {
      cancel.disabled = false;
    }
  }

  return row;
}

function elementsOf(parts) {
  return parts.filter((each) => each instanceof Node);
}
