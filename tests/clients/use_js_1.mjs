// The JavaScript client before 2.0, as docs/clients.md connects it. PORT and CHROMA_KEY.
import { ChromaClient } from "chromadb";

const fetchOptions = { headers: { "X-Chroma-Token": process.env.CHROMA_KEY } };
const client = new ChromaClient({ path: `http://127.0.0.1:${process.env.PORT}`, fetchOptions });
const embeddingFunction = { generate: async (texts) => texts.map(() => [0.1, 0.2, 0.3]) };
const notes = await client.getOrCreateCollection({ name: "js1-notes", embeddingFunction });
console.log(await notes.count());
await notes.upsert({ ids: ["1"], embeddings: [[0.1, 0.2, 0.3]], documents: ["remember the milk"] });
console.log((await notes.query({ queryEmbeddings: [[0.1, 0.2, 0.3]], nResults: 1 })).documents);
