// The timeline: which moments can be restored, and what happened in between.

import { get } from "../api.js";
import { h, moment, replace, timeAgo } from "../dom.js";

export const title = "Timeline";

export async function mount({ root, signal }) {
  const history = await get("/admin/history", { signal });
  replace(
    root,
    h(
      "section",
      { class: "card" },
      h("h2", {}, "What can be restored"),
      h(
        "p",
        {},
        history.oldest ? `Any moment from ${moment(history.oldest)} to ${moment(history.newest)}.` : "Nothing yet.",
      ),
    ),
    h(
      "section",
      { class: "card flush" },
      h(
        "div",
        { class: "table", tabindex: "0", role: "region", "aria-label": "Snapshots" },
        h(
          "table",
          {},
          h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "Snapshot"), h("th", { scope: "col" }, "Label"), h("th", { scope: "col" }, "Taken"))),
          h(
            "tbody",
            {},
            history.snapshots.map((each) =>
              h("tr", {}, h("td", { class: "mono" }, each.id), h("td", {}, each.label ?? "–"), h("td", {}, timeAgo(each.at))),
            ),
          ),
        ),
      ),
    ),
  );
}
