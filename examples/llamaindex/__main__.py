"""Ingest a folder of Markdown and text with LlamaIndex, and answer a question from it.

    examples/run llamaindex var/course "How do I read a compressed file?" --only gzip.md

GATEWAY_EMBEDDING names the embedding function, as for the gateway. `examples.answers` says which model answers.
"""

import argparse
import os
from pathlib import Path
from typing import Any

from llama_index.core import SimpleDirectoryReader, VectorStoreIndex
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.ingestion import IngestionPipeline
from llama_index.core.node_parser import SentenceSplitter
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.response_synthesizers import ResponseMode
from llama_index.core.schema import NodeWithScore
from llama_index.core.vector_stores import MetadataFilter, MetadataFilters
from llama_index.llms.openai_like import OpenAILike
from llama_index.vector_stores.chroma import ChromaVectorStore
from pydantic import PrivateAttr

from examples.answers import Passage, extract, model_name
from examples.connection import client
from examples.embedding import named

_RESULTS = 5
_SUFFIXES = [".md", ".txt"]


class ChromaFunction(BaseEmbedding):
    """An embedding function of Chroma as one of LlamaIndex."""

    _function: Any = PrivateAttr()

    def __init__(self, function: Any) -> None:
        super().__init__(model_name=function.name())
        self._function = function

    def _get_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        return [[float(number) for number in vector] for vector in self._function(texts)]

    def _get_text_embedding(self, text: str) -> list[float]:
        return self._get_text_embeddings([text])[0]

    def _get_query_embedding(self, query: str) -> list[float]:
        return self._get_text_embedding(query)

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return self._get_text_embedding(query)


def ingest(store: ChromaVectorStore, embedding: ChromaFunction, folder: Path) -> tuple[int, int]:
    """Make the store hold the folder's chunks, and no others. Return the numbers of files and of chunks."""
    documents = SimpleDirectoryReader(str(folder), recursive=True, required_exts=_SUFFIXES).load_data()
    for document in documents:
        document.doc_id = Path(document.metadata["file_path"]).relative_to(folder.resolve()).as_posix()
        document.metadata = {"document": document.doc_id}
    for stale in {metadata["ref_doc_id"] for metadata in store.client.get(include=["metadatas"])["metadatas"]}:
        store.delete(stale)
    pipeline = IngestionPipeline(
        transformations=[SentenceSplitter(chunk_size=256, chunk_overlap=32), embedding], vector_store=store
    )
    return len(documents), len(pipeline.run(documents=documents))


def ask(index: VectorStoreIndex, question: str, only: str | None) -> tuple[str, list[NodeWithScore]]:
    """The answer, and the chunks that it is made of."""
    filters = MetadataFilters(filters=[MetadataFilter(key="document", value=only)]) if only else None
    retriever = index.as_retriever(similarity_top_k=_RESULTS, filters=filters)
    if model_name() is None:
        found = retriever.retrieve(question)
        return extract(question, [_passage(each) for each in found]), found
    model = OpenAILike(
        model=str(model_name()),
        api_base=os.environ.get("LLM_BASE_URL", "https://api.openai.com/v1"),
        api_key=os.environ.get("LLM_API_KEY", "none"),
        is_chat_model=True,
    )
    answered = RetrieverQueryEngine.from_args(retriever, llm=model, response_mode=ResponseMode.COMPACT).query(question)
    return str(answered), answered.source_nodes


def _passage(found: NodeWithScore) -> Passage:
    document = found.node.metadata["document"]
    return Passage(found.node.node_id, document, found.node.get_content(), found.score or 0.0, found.node.metadata)


def main() -> None:
    parser = argparse.ArgumentParser(prog="examples/run llamaindex")
    parser.add_argument("folder", type=Path)
    parser.add_argument("question")
    parser.add_argument("--only", help="ask only this document")
    parser.add_argument("--collection", default="llamaindex-example")
    asked = parser.parse_args()
    collection = client().get_or_create_collection(
        asked.collection, embedding_function=None, configuration={"hnsw": {"space": "cosine"}}
    )
    store, embedding = ChromaVectorStore(chroma_collection=collection), ChromaFunction(named())
    files, chunks = ingest(store, embedding, asked.folder)
    print(f"{files} files, {chunks} chunks in {asked.collection}\n")
    index = VectorStoreIndex.from_vector_store(store, embed_model=embedding)
    answer, found = ask(index, asked.question, asked.only)
    print(answer, "\n")
    for number, each in enumerate(found, 1):
        print(f"[{number}] {each.score:.2f} {each.node.metadata['document']}")


main()
