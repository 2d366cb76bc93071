// Ingest a folder of Markdown and text, and answer a question from it.
//
//     examples/run javascript var/course "How do I read a compressed file?" --only gzip.md
//
// CHROMA_URL and CHROMA_KEY say where the gateway is. LLM_MODEL, LLM_BASE_URL and LLM_API_KEY name a language model;
// without one, the answer is the best sentence of each passage.
import { createHash } from "node:crypto";
import { readFile, readdir } from "node:fs/promises";
import { join } from "node:path";
import { parseArgs } from "node:util";
import { ChromaClient, registerEmbeddingFunction } from "chromadb";

const RESULTS = 5;
const DIMENSIONS = 1024;
const BATCH = 300;

/** Words that are not in almost every text. */
const wordsOf = (text) => (text.toLowerCase().match(/[\p{L}\p{N}]+/gu) ?? []).filter((word) => word.length > 2);

/** An embedding function without a model: hashed words. `@chroma-core/openai` and others are used in its place. */
class HashedWords {
  name = "hashed_words_js";

  async generate(texts) {
    return texts.map((text) => {
      const vector = new Array(DIMENSIONS).fill(0);
      for (const word of wordsOf(text)) {
        vector[createHash("sha1").update(word).digest().readUInt32BE() % DIMENSIONS] += 1;
      }
      const length = Math.hypot(...vector) || 1;
      return vector.map((each) => each / length);
    });
  }

  getConfig() {
    return {};
  }

  static buildFromConfig() {
    return new HashedWords();
  }

  defaultSpace() {
    return "cosine";
  }
}
registerEmbeddingFunction("hashed_words_js", HashedWords);

/** Paragraphs of a text, put together up to 800 characters. */
function* split(text) {
  let chunk = "";
  for (const paragraph of text.split(/\n\s*\n/)) {
    if (chunk && chunk.length + paragraph.length > 800) {
      yield chunk;
      chunk = "";
    }
    chunk += (chunk && "\n\n") + paragraph;
  }
  if (chunk.trim()) yield chunk;
}

async function connect() {
  const url = new URL(process.env.CHROMA_URL ?? "http://127.0.0.1:8000");
  const ssl = url.protocol === "https:";
  const headers = process.env.CHROMA_KEY ? { "X-Chroma-Token": process.env.CHROMA_KEY } : {};
  return new ChromaClient({ host: url.hostname, port: Number(url.port || (ssl ? 443 : 80)), ssl, headers });
}

/** Make the collection hold the folder's chunks, and no others. */
async function ingest(collection, folder) {
  const names = (await readdir(folder, { recursive: true })).filter((name) => /\.(md|txt)$/.test(name)).sort();
  const chunks = [];
  for (const document of names) {
    const texts = [...split(await readFile(join(folder, document), "utf8"))];
    texts.forEach((text, chunk) => chunks.push({ id: `${document}#${chunk}`, text, metadata: { document, chunk } }));
  }
  const ids = new Set(chunks.map((each) => each.id));
  const stale = (await collection.get({ include: [] })).ids.filter((id) => !ids.has(id));
  if (stale.length) await collection.delete({ ids: stale });
  for (let at = 0; at < chunks.length; at += BATCH) {
    const batch = chunks.slice(at, at + BATCH);
    await collection.upsert({
      ids: batch.map((each) => each.id),
      documents: batch.map((each) => each.text),
      metadatas: batch.map((each) => each.metadata),
    });
  }
  return { files: names.length, chunks: chunks.length };
}

async function search(collection, question, only) {
  const found = await collection.query({
    queryTexts: [question],
    nResults: RESULTS,
    where: only ? { document: only } : undefined,
    include: ["documents", "metadatas", "distances"],
  });
  return found.ids[0].map((id, at) => ({
    id,
    document: found.metadatas[0][at].document,
    text: found.documents[0][at],
    score: 1 - found.distances[0][at],
  }));
}

async function answer(question, found) {
  const { LLM_MODEL: model, LLM_BASE_URL: base = "https://api.openai.com/v1", LLM_API_KEY: key } = process.env;
  if (!model) return extract(question, found);
  const sources = found.map((each, at) => `[${at + 1}] ${each.text}`).join("\n\n");
  const reply = await fetch(`${base}/chat/completions`, {
    method: "POST",
    headers: { "Content-Type": "application/json", ...(key && { Authorization: `Bearer ${key}` }) },
    body: JSON.stringify({
      model,
      messages: [
        { role: "system", content: "Answer from the numbered sources alone, and name them like [1]." },
        { role: "user", content: `Sources:\n\n${sources}\n\nQuestion: ${question}` },
      ],
    }),
    signal: AbortSignal.timeout(60_000),
  });
  if (!reply.ok) throw new Error(`the model answered ${reply.status}: ${(await reply.text()).slice(0, 300)}`);
  return (await reply.json()).choices[0].message.content;
}

/** Of each of the first three passages, the sentence with the most of the question's words. */
function extract(question, found) {
  const asked = new Set(wordsOf(question));
  const shared = (sentence) => new Set(wordsOf(sentence).filter((word) => asked.has(word))).size;
  return found
    .slice(0, 3)
    .map(({ text }, at) => {
      const sentences = text.split(/\n\s*\n|(?<=[.!?])\s+(?=[A-Z])/).map((each) => each.replace(/\s+/g, " ").replace(/^[#\- ]+/, ""));
      return `${sentences.sort((one, other) => shared(other) - shared(one))[0]} [${at + 1}]`;
    })
    .join(" ");
}

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: { only: { type: "string" }, collection: { type: "string", default: "javascript-example" } },
});
const [folder, question] = positionals;
if (!question) {
  console.error('usage: examples/run javascript FOLDER "QUESTION" [--only DOCUMENT] [--collection NAME]');
  process.exit(2);
}
const client = await connect();
const collection = await client.getOrCreateCollection({
  name: values.collection,
  embeddingFunction: new HashedWords(),
  configuration: { hnsw: { space: "cosine" } },
});
const { files, chunks } = await ingest(collection, folder);
console.log(`${files} files, ${chunks} chunks in ${values.collection}\n`);
const found = await search(collection, question, values.only);
console.log(await answer(question, found), "\n");
found.forEach((each, at) => console.log(`[${at + 1}] ${each.score.toFixed(2)} ${each.document}`));
