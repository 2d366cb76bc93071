// Collections: all of them in pages; one, with its index and its records; one record, with its neighbours.

import { get } from "../api.js";
import { bytes, h, number, replace, setText } from "../dom.js";
import { badge } from "../jobview.js";

export const title = "Collections";

const PAGE = 50;
const TYPING_MS = 250;
const MOST_DATABASES = 1000;

const INDEX = {
  sound: ["Sound", "ok", "Its files were read, and have not changed since."],
  changed: ["Changed", "info", "Chroma has written its files since they were last read."],
  empty: ["In memory", "info", "Chroma has not synced it to files yet. Its records are in Chroma's log."],
  torn: ["Torn", "bad", "Its files are damaged. They are repaired at Chroma's next start, or now."],
  unreadable: ["Unreadable", "bad", "Chroma does not read the collection. All others are served."],
  quarantined: ["Quarantined", "bad", "Chroma ended while it read the collection, so it is not asked to."],
};

export async function mount(page) {
  if (page.params.length) {
    const { mountCollection, mountRecord } = await import("../collection.js");
    return page.params.length > 1 ? mountRecord(page) : mountCollection(page);
  }
  return mountList(page);
}

/** A badge of the state of a collection's index. */
export function indexBadge({ index: { state }, records }) {
  if (state === "empty" && records === 0) return h("span", { class: "muted" }, "–");
  const [label, tone, why] = INDEX[state] ?? [state, "info", ""];
  const element = badge(label, tone);
  element.title = why;
  return element;
}

/** What the state of an index means, in a sentence. */
export function indexMeaning({ index: { state }, records }) {
  return state === "empty" && records === 0 ? "There is no record yet." : (INDEX[state]?.[2] ?? "");
}

async function mountList(page) {
  const { query, root, signal } = page;
  const databases = await get("/admin/databases", { query: { limit: MOST_DATABASES }, signal });
  // Where each page before this one began: there is no address of "the page before".
  let before = [], after = query.get("after") ?? "", first = Number(query.get("first")) || 1;

  const name = h("input", { type: "search", id: "collections-name", value: query.get("name") ?? "", autocomplete: "off", spellcheck: "false", placeholder: "Part of a name", oninput: typed });
  const within = h(
    "select",
    { id: "collections-database", onchange: () => restart() },
    h("option", { value: "" }, `All databases`),
    databases.databases.map((each) =>
      h("option", { value: JSON.stringify([each.tenant, each.name]) }, `${each.tenant} / ${each.name} (${number(each.collections)})`),
    ),
  );
  if (query.has("in")) within.value = query.get("in");
  const count = h("p", { class: "muted", role: "status" });
  const body = h("tbody");
  const table = h(
    "section",
    { class: "card flush" },
    h(
      "div",
      { class: "table", tabindex: "0", role: "region", "aria-label": "Collections" },
      h(
        "table",
        {},
        h(
          "thead",
          {},
          h(
            "tr",
            {},
            [["Name"], ["Records", "right"], ["Index"], ["Dimension", "right"], ["Distance"], ["Index files", "right"], ["Log backlog", "right"]].map(([text, side]) =>
              h("th", { scope: "col", class: side }, text),
            ),
          ),
        ),
        body,
      ),
    ),
  );
  const empty = h("p", { class: "card empty", hidden: true });
  const back = h("button", { class: "button", type: "button", onclick: goBack }, "Previous");
  const next = h("button", { class: "button", type: "button", onclick: goOn }, "Next");
  root.append(
    h(
      "div",
      { class: "filters" },
      h("div", { class: "field" }, h("label", { for: "collections-name" }, "Name"), name),
      h("div", { class: "field" }, h("label", { for: "collections-database" }, "Tenant and database"), within),
    ),
    h("div", { class: "row between" }, count, h("div", { class: "row" }, back, next)),
    table,
    empty,
  );

  let shown = null, timer = 0, asked = 0;
  signal.addEventListener("abort", () => clearTimeout(timer), { once: true });

  function typed() {
    clearTimeout(timer);
    timer = setTimeout(restart, TYPING_MS);
  }

  function restart() {
    [before, after, first] = [[], "", 1];
    load();
  }

  function goOn() {
    before.push([after, first]);
    [after, first] = [shown.next, first + shown.collections.length];
    load();
  }

  function goBack() {
    [after, first] = before.pop() ?? ["", 1];
    load();
  }

  async function load() {
    const turn = (asked += 1);
    const [tenant, database] = within.value ? JSON.parse(within.value) : [null, null];
    table.setAttribute("aria-busy", "true");
    try {
      const found = await get("/admin/collections", {
        query: { name: name.value.trim() || null, tenant, database, limit: PAGE, after: after || null },
        signal,
      });
      if (turn !== asked) return; // somebody typed on
      shown = found;
      draw();
    } catch (error) {
      if (error.name !== "AbortError" && turn === asked) page.notify(error.message, "bad");
    } finally {
      if (turn === asked) table.removeAttribute("aria-busy");
    }
  }

  function draw() {
    const { collections, total } = shown;
    replace(body, collections.map((each) => row(page, each)));
    table.hidden = !collections.length;
    empty.hidden = collections.length > 0;
    setText(empty, name.value || within.value ? "No collection has such a name." : "There is no collection yet.");
    const last = first + collections.length - 1;
    setText(count, collections.length ? `${number(first)} to ${number(last)} of ${number(total)}` : "0 collections");
    back.disabled = first === 1;
    next.disabled = shown.next === null;
    back.hidden = next.hidden = first === 1 && shown.next === null;
    remember();
  }

  /** Put what is shown into the address, so that it is there after a visit to a collection. */
  function remember() {
    const kept = { name: name.value.trim(), in: within.value, after, first: first > 1 ? first : "" };
    const given = Object.entries(kept).filter(([, value]) => value);
    history.replaceState(null, "", `${page.address("collections")}${given.length ? `?${new URLSearchParams(given)}` : ""}`);
  }

  await load();
}

function row(page, each) {
  const isDefault = each.tenant === "default_tenant" && each.database === "default_database";
  return h(
    "tr",
    {},
    h(
      "th",
      { scope: "row" },
      h("a", { href: page.address("collections", each.id) }, each.name),
      !isDefault && h("div", { class: "small" }, `${each.tenant} / ${each.database}`),
    ),
    h("td", { class: "right" }, number(each.records)),
    h("td", {}, indexBadge(each)),
    h("td", { class: "right" }, number(each.dimension)),
    h("td", {}, each.space),
    h("td", { class: "right" }, bytes(each.index.size_bytes)),
    h("td", { class: "right" }, number(each.index.log_backlog)),
  );
}
