"""Serves the API until Ctrl-C."""

import argparse

import uvicorn

from examples.rag_api.app import build
from examples.rag_api.retriever import Retriever


def main() -> None:
    parser = argparse.ArgumentParser(prog="examples/run rag_api", description=__doc__)
    parser.add_argument("--collection", required=True, help="the collection that is asked")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8100)
    parser.add_argument("--at-once", type=int, default=32, help="questions that are answered at a time; others get 503")
    parser.add_argument("--timeout-s", type=float, default=10, help="of a search; a longer one gets 504")
    asked = parser.parse_args()
    retriever = Retriever(asked.collection, asked.timeout_s)
    uvicorn.run(build(retriever, asked.at_once), host=asked.host, port=asked.port)


main()
