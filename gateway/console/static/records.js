// Reading the records of a collection from Chroma, through the gateway: pages, one record, its neighbours, an export.
//
// A document may have many megabytes, so an answer is read only up to a limit. JSON knows numbers that JavaScript does not:
// integers of more than 53 bits stay what they are.

import { ApiError, at, errorOf } from "./api.js";

const MOST_BYTES = 24e6;
const MOST_OF_ONE_RECORD = 200e6;
const EXPORTED_AT_ONCE = 200;

/** What an answer is that has more bytes than were asked for. */
export class TooLarge extends ApiError {
  constructor() {
    super(0, "TooLarge", "the answer is too large to be shown", "ask for fewer records");
  }
}

/** The path of a collection in Chroma's API. */
function pathOf({ tenant, database, id }) {
  return at`/api/v2/tenants/${tenant}/databases/${database}/collections/${id}`;
}

/** POST `body`, a read, and return the JSON of the answer. Throws TooLarge above `most` bytes. */
async function ask(path, body, { most = MOST_BYTES, signal, exactly = false }) {
  const stop = new AbortController();
  const abort = () => stop.abort();
  signal?.addEventListener("abort", abort, { once: true });
  try {
    const answer = await fetch(path, {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify(body),
      credentials: "same-origin",
      signal: stop.signal,
    });
    const text = await readText(answer, most);
    if (!answer.ok) throw errorOf(answer.status, text);
    return parseExactly(text, exactly);
  } catch (error) {
    if (error instanceof ApiError || (error.name === "AbortError" && signal?.aborted)) throw error;
    throw new ApiError(0, "Unavailable", "the gateway does not answer", "is it running, and can it be reached?");
  } finally {
    stop.abort();
    signal?.removeEventListener("abort", abort);
  }
}

async function readText(answer, most) {
  const decoder = new TextDecoder(), reader = answer.body.getReader(), parts = [];
  for (let size = 0; ; ) {
    const { done, value } = await reader.read();
    if (done) return parts.join("") + decoder.decode();
    size += value.byteLength;
    if (size > most) throw new TooLarge();
    parts.push(decoder.decode(value, { stream: true }));
  }
}

/** JSON.parse, but integers that a number cannot hold become BigInts. `always`: throw ApiError where the browser cannot. */
function parseExactly(text, always) {
  if (!/[:[,]\s*-?\d{16}/.test(text)) return JSON.parse(text);
  if (always && !("rawJSON" in JSON)) {
    throw new ApiError(0, "Unsupported", "this browser cannot read integers of more than 53 bits", "use a newer one");
  }
  return JSON.parse(text, (_, value, context) => {
    const isWhole = typeof value === "number" && !Number.isSafeInteger(value) && /^-?\d+$/.test(context?.source ?? "");
    return isWhole ? BigInt(context.source) : value;
  });
}

/** JSON.stringify, of what `parseExactly` returned. */
export function stringifyExactly(value) {
  return JSON.stringify(value, (_, each) => (typeof each === "bigint" ? JSON.rawJSON(String(each)) : each));
}

/** Chroma's conditions: `where` of metadata and `where_document` of a text; empty ones are left out. */
function conditions({ where, text }) {
  return {
    ...(where ? { where } : {}),
    ...(text ? { where_document: { $contains: text } } : {}),
  };
}

function recordsOf(answer) {
  return answer.ids.map((id, index) => ({
    id,
    document: answer.documents?.[index] ?? null,
    metadata: answer.metadatas?.[index] ?? null,
    embedding: answer.embeddings?.[index] ?? null,
  }));
}

/**
 * A page of records, in the order in which they were first added. `{ records, hasMore, withoutDocuments }`: if the documents
 * of the page are too large together, they are left out.
 */
export async function readPage(collection, { where, text, offset, limit }, signal) {
  const path = `${pathOf(collection)}/get`;
  const body = { ...conditions({ where, text }), offset, limit: limit + 1 };
  let answer, withoutDocuments = false;
  try {
    answer = await ask(path, { ...body, include: ["documents", "metadatas"] }, { signal });
  } catch (error) {
    if (!(error instanceof TooLarge)) throw error;
    withoutDocuments = true;
    answer = await ask(path, { ...body, include: ["metadatas"] }, { signal });
  }
  const records = recordsOf(answer);
  return { records: records.slice(0, limit), hasMore: records.length > limit, withoutDocuments };
}

/** One record with its vector, null if there is none of this id. */
export async function readRecord(collection, id, signal) {
  const body = { ids: [id], include: ["documents", "metadatas", "embeddings"] };
  const answer = await ask(`${pathOf(collection)}/get`, body, { signal, most: MOST_OF_ONE_RECORD });
  return recordsOf(answer)[0] ?? null;
}

/** The records whose vectors are nearest to that of `record`, without itself: each with `distance`, the nearest first. */
export async function readNeighbours(collection, record, count, signal) {
  const body = { query_embeddings: [record.embedding], n_results: count + 1, include: ["documents", "metadatas", "distances"] };
  let answer;
  try {
    answer = await ask(`${pathOf(collection)}/query`, body, { signal });
  } catch (error) {
    if (!(error instanceof TooLarge)) throw error;
    answer = await ask(`${pathOf(collection)}/query`, { ...body, include: ["metadatas", "distances"] }, { signal });
  }
  const distances = answer.distances[0];
  const found = recordsOf({ ids: answer.ids[0], documents: answer.documents?.[0], metadatas: answer.metadatas?.[0] });
  return found
    .map((each, index) => ({ ...each, distance: distances[index] }))
    .filter((each) => each.id !== record.id)
    .slice(0, count);
}

/**
 * All records as JSON lines, in a Blob: id, document, metadata, embedding. `onProgress` gets how many there are so far.
 *
 * Pages are read one after the other, so records that are written meanwhile may be missing.
 */
export async function exportRecords(collection, { signal, onProgress }) {
  const parts = [];
  let offset = 0, count = EXPORTED_AT_ONCE;
  for (;;) {
    let records;
    try {
      const body = { offset, limit: count, include: ["documents", "metadatas", "embeddings"] };
      const most = count > 1 ? MOST_BYTES : MOST_OF_ONE_RECORD;
      records = recordsOf(await ask(`${pathOf(collection)}/get`, body, { signal, most, exactly: true }));
    } catch (error) {
      if (!(error instanceof TooLarge) || count === 1) throw error;
      count = Math.max(1, count >> 3);
      continue;
    }
    if (!records.length) return new Blob(parts, { type: "application/x-ndjson" });
    // A Blob for each page: a browser keeps large ones on the disk.
    parts.push(new Blob(records.map(({ id, document, metadata, embedding }) => `${stringifyExactly({ id, document, metadata, embedding })}\n`)));
    offset += records.length;
    count = Math.min(EXPORTED_AT_ONCE, count * 2);
    onProgress(offset);
  }
}

// ---------------------------------------------------------------------- a filter by metadata

export const OPERATORS = {
  $eq: "is",
  $ne: "is not",
  $gt: "is above",
  $gte: "is at least",
  $lt: "is below",
  $lte: "is at most",
  $in: "is one of",
};

/** 3 → 3, "true" → true, all else is a text; "3" in quotes is a text too. */
function valueOf(text) {
  const trimmed = text.trim();
  if (/^-?(?:\d+|\d*\.\d+)(?:e[+-]?\d+)?$/i.test(trimmed)) return Number(trimmed);
  if (trimmed === "true" || trimmed === "false") return trimmed === "true";
  return /^".*"$/s.test(trimmed) ? trimmed.slice(1, -1) : text;
}

/** Chroma's `where` of conditions `{ key, operator, value }`; null if none has a key. */
export function whereOf(given) {
  const all = given
    .filter(({ key }) => key)
    .map(({ key, operator, value }) => ({ [key]: { [operator]: operator === "$in" ? value.split(",").map((each) => valueOf(each.trim())) : valueOf(value) } }));
  return all.length > 1 ? { $and: all } : (all[0] ?? null);
}
