// The jobs of this process: those under way, and the last hundred that ended.

import { get } from "../api.js";
import { h, replace, timeAgo } from "../dom.js";

export const title = "Jobs";

export async function mount({ root, signal }) {
  const { jobs } = await get("/admin/jobs", { signal });
  if (!jobs.length) return void replace(root, h("p", { class: "card empty" }, "No job has run since the gateway started."));
  replace(
    root,
    h(
      "ul",
      { class: "stack" },
      jobs.map((each) =>
        h("li", { class: "card row between" }, h("p", {}, `${each.kind} ${each.subject}`), h("p", { class: "muted" }, each.state, " · ", timeAgo(each.started_at))),
      ),
    ),
  );
}
