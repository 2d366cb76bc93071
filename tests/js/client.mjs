// Chroma's own JavaScript client against a gateway with keys; tests/system/test_js_client.py runs it.
// PORT, and a token each for a writer, a reader and one whose scope is the collections js-*.
import assert from "node:assert/strict";
import { ChromaClient, ChromaForbiddenError, ChromaNotFoundError, ChromaUnauthorizedError } from "chromadb";

const { PORT, WRITER, READER, SCOPED } = process.env;
const client = (headers) => new ChromaClient({ host: "127.0.0.1", port: Number(PORT), ssl: false, headers });
const embeddings = [[1, 0, 0], [0, 1, 0], [0, 0, 1]];

for (const headers of [{ Authorization: `Bearer ${WRITER}` }, { "X-Chroma-Token": WRITER }]) {
  const chroma = client(headers);
  assert.equal(typeof (await chroma.heartbeat()), "number");
  const made = await chroma.createCollection({ name: "js-notes", embeddingFunction: null });
  await made.add({ ids: ["a", "b", "c"], embeddings, documents: ["one", "two", "three"] });
  await made.update({ ids: ["b"], metadatas: [{ seen: true }] });
  const found = await made.query({ queryEmbeddings: [[0, 1, 0]], nResults: 1 });
  assert.deepEqual(found.ids, [["b"]]);
  assert.deepEqual((await made.get({ where: { seen: true } })).documents, ["two"]);
  await made.delete({ ids: ["a"] });
  assert.equal(await made.count(), 2);

  const scoped = client({ Authorization: `Bearer ${SCOPED}` });
  await chroma.createCollection({ name: "hidden", embeddingFunction: null });
  assert.deepEqual((await scoped.listCollections()).map((each) => each.name), ["js-notes"]);
  await assert.rejects(scoped.getCollection({ name: "hidden", embeddingFunction: null }), ChromaNotFoundError);

  const reader = await client({ Authorization: `Bearer ${READER}` }).getCollection({ name: "js-notes", embeddingFunction: null });
  assert.equal(await reader.count(), 2);
  await assert.rejects(reader.add({ ids: ["d"], embeddings: [[1, 1, 1]] }), ChromaForbiddenError);

  await chroma.deleteCollection({ name: "hidden" });
  await chroma.deleteCollection({ name: "js-notes" });
}
await assert.rejects(client({ Authorization: "Bearer cg_wrong" }).listCollections(), ChromaUnauthorizedError);
await assert.rejects(client({}).listCollections(), ChromaUnauthorizedError);
console.log("all as expected");
