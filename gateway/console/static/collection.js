// One collection, its records, and one record with its neighbours.

import { at, errorBox, follow, get, post, resultOf, sentence } from "./api.js";
import { confirm } from "./dialog.js";
import { bytes, h, number, replace, setText } from "./dom.js";
import { cut, fields, progressBar } from "./jobview.js";
import { indexBadge, indexMeaning } from "./pages/collections.js";
import { OPERATORS, exportRecords, readNeighbours, readPage, readRecord, stringifyExactly, whereOf } from "./records.js";

const PAGE = 20;
const NEIGHBOURS = 10;
const MOST_IN_LIST = 300;
const MOST_AT_FIRST = 20_000;
const MOST_AT_ALL = 1_000_000;
const MOST_OF_VALUE = 120;
const MOST_VALUES = 12;

// ---------------------------------------------------------------------- a collection

/** #/collections/<id> */
export async function mountCollection(page) {
  const [id] = page.params;
  const { root, signal } = page;
  let collection = await get(at`/admin/collections/${id}`, { signal });
  page.title(collection.name);

  const facts = h("section", { class: "card facts" });
  const work = h("div", { class: "stack" });
  root.append(
    crumbs(page, ["collections", "Collections"]),
    facts,
    work,
    h("h2", { class: "section-title" }, "Records"),
    records(page, collection),
  );
  draw();
  describe();

  function draw() {
    const { index } = collection;
    replace(
      facts,
      h(
        "dl",
        { class: "pairs" },
        pair("Tenant and database", `${collection.tenant} / ${collection.database}`),
        pair("ID", h("span", { class: "mono" }, collection.id)),
        pair("Records", number(collection.records)),
        pair("Dimension", collection.dimension === null ? "none yet" : number(collection.dimension)),
        pair("Distance function", collection.space),
        pair("HNSW", `max_neighbors ${collection.max_neighbors}, ef_construction ${collection.ef_construction}`),
        pair("Index", [indexBadge(collection), " ", h("span", { class: "muted" }, indexMeaning(collection))]),
        pair("Index files", bytes(index.size_bytes)),
        pair("Log backlog", index.log_backlog ? `${rows(index.log_backlog)} of Chroma's log not in the files` : "none, the files have all of Chroma's log"),
      ),
      index.problem && h("div", { class: "box bad" }, h("p", { class: "box-title" }, sentence(index.problem))),
      h(
        "div",
        { class: "row actions" },
        h("button", { class: "button", type: "button", onclick: (event) => check(event.target) }, "Check the index"),
        page.mayAct && h("button", { class: "button", type: "button", onclick: () => repair() }, "Repair the index"),
        h("button", { class: "button", type: "button", onclick: (event) => startExport(event.target) }, "Export"),
      ),
    );
  }

  /** What only Chroma says: the embedding function and the metadata. */
  async function describe() {
    const list = facts.querySelector("dl");
    try {
      const path = at`/api/v2/tenants/${collection.tenant}/databases/${collection.database}/collections/${collection.name}`;
      const { configuration_json: configuration, metadata } = await get(path, { signal });
      list.append(
        ...pair("Embedding function", configuration?.embedding_function?.name ?? "none is stored"),
        ...pair("Metadata", metadata && Object.keys(metadata).length ? values(metadata) : "none"),
      );
    } catch (error) {
      if (error.name !== "AbortError") list.append(...pair("Metadata", sentence(error.message)));
    }
  }

  async function check(button) {
    button.disabled = true;
    setText(button, "Checking…");
    try {
      collection = await get(at`/admin/collections/${id}`, { query: { check: true }, signal });
      draw();
      describe();
      const tone = collection.index.problem ? "bad" : "ok";
      page.notify(collection.index.problem ? "The index is not sound." : indexMeaning(collection), tone);
    } catch (error) {
      if (error.name === "AbortError") return;
      page.notify(error.message, "bad");
      button.disabled = false;
      setText(button, "Check the index");
    }
  }

  async function repair() {
    const sure = await confirm({
      title: "Repair the index?",
      body: [
        "Chroma is stopped and started once. Writes wait meanwhile, and reads get 503 with Retry-After.",
        "A sound index is left as it is, unless its collection is in quarantine.",
      ],
      action: "Repair the index",
      danger: true,
    });
    if (!sure || signal.aborted) return;
    const bar = progressBar("Repair of the index");
    replace(work, h("section", { class: "card stack" }, h("h2", {}, "Repair"), bar.element));
    try {
      const job = await post(at`/admin/collections/${id}/repair`, undefined, { query: { wait: false }, signal });
      const result = resultOf(await follow(job, { signal, onChange: (each) => bar.update(each) }));
      replace(work, h("section", { class: "card stack" }, h("h2", {}, "Repair"), fields(result)));
      collection = await get(at`/admin/collections/${id}`, { signal });
      draw();
      describe();
      page.say("The repair has ended.");
    } catch (error) {
      if (error.name !== "AbortError") replace(work, errorBox(error));
    }
  }

  async function startExport(button) {
    const stop = new AbortController();
    signal.addEventListener("abort", () => stop.abort(), { once: true });
    const bar = h("progress", { max: Math.max(1, collection.records), value: 0, "aria-label": "Export" });
    const text = h("p", { class: "small number" }, "Reading…");
    const cancel = h("button", { class: "button", type: "button", onclick: () => stop.abort() }, "Cancel");
    replace(work, h("section", { class: "card stack" }, h("h2", {}, "Export"), bar, text, h("div", {}, cancel)));
    button.disabled = true;
    try {
      let exported = 0;
      const blob = await exportRecords(collection, {
        signal: stop.signal,
        onProgress(count) {
          exported = count;
          bar.value = Math.min(count, bar.max);
          setText(text, `${number(count)} of ${number(collection.records)} records`);
        },
      });
      save(blob, `${collection.name}.jsonl`);
      const { records: now } = await get(at`/admin/collections/${id}`, { signal });
      const moved = now === exported ? "" : ` The collection has ${number(now)} now: it was written to meanwhile.`;
      replace(work, h("div", { class: "box ok" }, h("p", { class: "box-title" }, `${number(exported)} records were exported as JSON lines.${moved}`)));
    } catch (error) {
      if (signal.aborted) return;
      replace(work, error.name === "AbortError" ? [] : errorBox(error));
    } finally {
      button.disabled = false;
    }
  }
}

function rows(count) {
  return `${number(count)} ${count === 1 ? "row" : "rows"}`;
}

function pair(name, value) {
  return [h("dt", {}, name), h("dd", {}, value)];
}

function crumbs(page, ...steps) {
  return h(
    "nav",
    { class: "crumbs", "aria-label": "Where this is" },
    steps.map(([...parts]) => {
      const text = parts.pop();
      return [h("a", { href: page.address(...parts) }, text), h("span", { "aria-hidden": "true" }, " ›")];
    }),
  );
}

function save(blob, name) {
  const address = URL.createObjectURL(blob);
  const link = h("a", { href: address, download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(address), 60_000);
}

// ---------------------------------------------------------------------- its records

function records(page, collection) {
  const { signal } = page;
  const text = h("input", { type: "search", id: "records-text", autocomplete: "off", placeholder: "Any text" });
  const key = h("input", { id: "records-key", autocomplete: "off", spellcheck: "false", list: "records-keys", placeholder: "Key" });
  const operator = h("select", { id: "records-operator" }, Object.entries(OPERATORS).map(([each, label]) => h("option", { value: each }, label)));
  const value = h("input", { id: "records-value", autocomplete: "off", spellcheck: "false", placeholder: "Value", "aria-describedby": "records-hint" });
  const more = h("ul", { class: "row conditions", "aria-label": "Conditions" });
  const keys = h("datalist", { id: "records-keys" });
  const count = h("p", { class: "muted", role: "status" });
  const list = h("ol", { class: "stack" });
  const empty = h("p", { class: "card empty", hidden: true });
  const back = h("button", { class: "button", type: "button", onclick: () => turn(-PAGE) }, "Previous");
  const next = h("button", { class: "button", type: "button", onclick: () => turn(PAGE) }, "Next");
  const pager = h("div", { class: "row" }, back, next);
  let chosen = [], filter = { where: null, text: "" }, offset = 0, asked = 0;

  const form = h(
    "form",
    { class: "card stack", onsubmit: search },
    h(
      "div",
      { class: "filters" },
      h("div", { class: "field" }, h("label", { for: "records-text" }, "The document contains"), text),
      h("div", { class: "field" }, h("label", { for: "records-key" }, "Metadata"), key, keys),
      h("div", { class: "field fit" }, h("label", { for: "records-operator" }, "Condition"), operator),
      h("div", { class: "field" }, h("label", { for: "records-value" }, "Value"), value),
    ),
    more,
    h(
      "div",
      { class: "row between" },
      h("p", { class: "hint", id: "records-hint" }, "42, true or a text; \"42\" in quotes is a text. Case matters."),
      h(
        "div",
        { class: "row" },
        h("button", { class: "button", type: "button", onclick: () => (form.reset(), (chosen = []), drawConditions(), search()) }, "Reset"),
        h("button", { class: "button", type: "button", onclick: addCondition }, "Add condition"),
        h("button", { class: "button primary", type: "submit" }, "Filter"),
      ),
    ),
  );

  function addCondition() {
    if (!key.value.trim()) return void key.focus();
    chosen.push({ key: key.value.trim(), operator: operator.value, value: value.value });
    key.value = value.value = "";
    drawConditions();
    key.focus();
  }

  function drawConditions() {
    replace(
      more,
      chosen.map((each, index) =>
        h(
          "li",
          {},
          h("code", {}, cut(`${each.key} ${OPERATORS[each.operator]} ${each.value}`, MOST_OF_VALUE)),
          h("button", { class: "button quiet", type: "button", "aria-label": `Remove the condition on ${each.key}`, onclick: () => (chosen.splice(index, 1), drawConditions(), search()) }, "×"),
        ),
      ),
    );
    more.hidden = !chosen.length;
  }

  function search(event) {
    event?.preventDefault();
    const typed = { key: key.value.trim(), operator: operator.value, value: value.value };
    filter = { where: whereOf([...chosen, typed]), text: text.value };
    offset = 0;
    load();
  }

  async function turn(by) {
    offset = Math.max(0, offset + by);
    await load();
    form.scrollIntoView({ block: "start" });
  }

  async function load() {
    const number_ = (asked += 1);
    list.setAttribute("aria-busy", "true");
    try {
      const found = await readPage(collection, { ...filter, offset, limit: PAGE }, signal);
      if (number_ === asked) draw(found);
    } catch (error) {
      if (error.name === "AbortError" || number_ !== asked) return;
      replace(list, h("li", {}, errorBox(error, load)));
      empty.hidden = true;
      setText(count, "");
    } finally {
      if (number_ === asked) list.removeAttribute("aria-busy");
    }
  }

  function draw({ records: found, hasMore, withoutDocuments }) {
    const isFiltered = filter.where !== null || filter.text !== "";
    replace(list, found.map((record) => h("li", {}, card(page, collection, record, withoutDocuments))));
    replace(keys, [...new Set(found.flatMap(({ metadata }) => Object.keys(metadata ?? {})))].sort().map((each) => h("option", { value: each })));
    empty.hidden = found.length > 0;
    setText(empty, isFiltered ? "No record fits the filter." : "This collection has no record yet.");
    const range = `${number(offset + 1)} to ${number(offset + found.length)}`;
    const of = isFiltered ? (hasMore ? " of those that fit" : ` of ${number(offset + found.length)} that fit`) : ` of ${number(Math.max(collection.records, offset + found.length))}`;
    setText(count, found.length ? range + of : "");
    back.disabled = offset === 0;
    next.disabled = !hasMore;
    pager.hidden = offset === 0 && !hasMore;
  }

  drawConditions();
  load();
  return h("div", { class: "stack" }, form, h("div", { class: "row between" }, count, pager), empty, list);
}

/** A record in a list: its id leads to it, and what is long is cut. */
function card(page, collection, record, withoutDocument) {
  const text = withoutDocument ? "The documents of this page are too large to be shown together." : record.document;
  return h(
    "article",
    { class: "card stack record" },
    h(
      "div",
      { class: "row between" },
      h("h3", {}, h("a", { class: "mono", href: page.address("collections", collection.id, record.id) }, cut(record.id, MOST_IN_LIST))),
      record.distance !== undefined && h("span", { class: "muted number" }, `distance ${round(record.distance)}`),
    ),
    text === null
      ? h("p", { class: "muted" }, "No document.")
      : h("p", { class: withoutDocument ? "muted" : "text" }, text.length > MOST_IN_LIST ? `${text.slice(0, MOST_IN_LIST)}…` : text),
    record.metadata && Object.keys(record.metadata).length > 0 && values(record.metadata),
  );
}

function round(distance) {
  return typeof distance === "number" ? Number(distance.toPrecision(4)) : "–";
}

/** Metadata, a few of its values, each cut. */
function values(metadata) {
  const all = Object.entries(metadata);
  return h(
    "dl",
    { class: "tags" },
    all.slice(0, MOST_VALUES).map(([key, value]) =>
      h("div", {}, h("dt", {}, cut(key, MOST_OF_VALUE)), h("dd", {}, cut(typeof value === "string" ? value : stringifyExactly(value), MOST_OF_VALUE))),
    ),
    all.length > MOST_VALUES && h("div", {}, h("dt", {}, `and ${number(all.length - MOST_VALUES)} more`)),
  );
}

// ---------------------------------------------------------------------- a record

/** #/collections/<id>/<record's id> */
export async function mountRecord(page) {
  const [id, recordId] = page.params;
  const { root, signal } = page;
  const collection = await get(at`/admin/collections/${id}`, { signal });
  page.title(cut(recordId, 80));
  const record = await readRecord(collection, recordId, signal);
  root.append(crumbs(page, ["collections", "Collections"], ["collections", id, collection.name]));
  if (record === null) {
    root.append(h("p", { class: "card empty" }, "There is no record with this ID now."));
    return;
  }
  const nearest = h("ol", { class: "stack", "aria-busy": "true" });
  root.append(
    documentCard(record),
    h(
      "section",
      { class: "card" },
      h("h2", {}, "Metadata"),
      record.metadata && Object.keys(record.metadata).length
        ? h("dl", { class: "pairs" }, Object.entries(record.metadata).map(([key, value]) => pair(key, cut(typeof value === "string" ? value : stringifyExactly(value)))))
        : h("p", { class: "muted" }, "None."),
    ),
    h("h2", { class: "section-title" }, "Neighbours"),
    nearest,
  );
  if (!record.embedding) {
    replace(nearest, h("li", { class: "card empty" }, "The record has no vector."));
    nearest.removeAttribute("aria-busy");
    return;
  }
  try {
    const found = await readNeighbours(collection, record, NEIGHBOURS, signal);
    replace(nearest, found.length ? found.map((each) => h("li", {}, card(page, collection, each, false))) : h("li", { class: "card empty" }, "It is the only record."));
  } catch (error) {
    if (error.name === "AbortError") return;
    replace(nearest, h("li", {}, errorBox(error)));
  }
  nearest.removeAttribute("aria-busy");
}

function documentCard({ id, document: text }) {
  if (text === null) return h("section", { class: "card" }, h("h2", {}, "Document"), h("p", { class: "muted" }, "None."));
  const shown = h("pre", { class: "text", tabindex: "0" }, text.slice(0, MOST_AT_FIRST));
  const note = h("p", { class: "small" });
  const more = h("button", { class: "button", type: "button", onclick: showMore }, "Show more");
  const keep = h("button", { class: "button", type: "button", onclick: () => save(new Blob([text], { type: "text/plain" }), `${id.replace(/[^\w.-]+/g, "_").slice(0, 80)}.txt`) }, "Save as a file");
  update(Math.min(text.length, MOST_AT_FIRST));

  function showMore() {
    shown.textContent = text.slice(0, MOST_AT_ALL);
    update(Math.min(text.length, MOST_AT_ALL));
    shown.focus();
  }

  function update(count) {
    setText(note, count < text.length ? `The first ${number(count)} of ${number(text.length)} characters are shown.` : `${number(text.length)} characters`);
    more.hidden = count >= Math.min(text.length, MOST_AT_ALL);
  }

  return h("section", { class: "card stack" }, h("h2", {}, "Document"), shown, h("div", { class: "row between" }, note, h("div", { class: "row" }, more, keep)));
}
