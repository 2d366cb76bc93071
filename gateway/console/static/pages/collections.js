// The collections, with their records and sizes.

import { get } from "../api.js";
import { bytes, h, number, replace } from "../dom.js";

export const title = "Collections";

export async function mount({ root, signal }) {
  const { collections } = await get("/admin/status", { signal });
  if (!collections.length) return void replace(root, h("p", { class: "card empty" }, "There is no collection yet."));
  const heads = [["Name"], ["Tenant"], ["Database"], ["Records", "right"], ["Dimension", "right"], ["Index", "right"]];
  replace(
    root,
    h(
      "section",
      { class: "card flush" },
      h(
        "div",
        { class: "table", tabindex: "0", role: "region", "aria-label": "Collections" },
        h(
          "table",
          {},
          h("thead", {}, h("tr", {}, heads.map(([name, side]) => h("th", { scope: "col", class: side }, name)))),
          h(
            "tbody",
            {},
            collections.map((each) =>
              h(
                "tr",
                {},
                h("th", { scope: "row" }, each.name),
                h("td", {}, each.tenant),
                h("td", {}, each.database),
                h("td", { class: "right" }, number(each.records)),
                h("td", { class: "right" }, number(each.dimension)),
                h("td", { class: "right" }, bytes(each.hnsw_bytes)),
              ),
            ),
          ),
        ),
      ),
    ),
  );
}
