"""Questions and answers over HTTP, from a collection behind the gateway.

    examples/run rag_api --collection avatar-ada

- `app`        the routes: `POST /query`, `GET /health`, `GET /stats`
- `retriever`  a question into passages, by Chroma's client for asyncio
- `models`     what is asked and answered
- `stats`      what `/stats` counts
"""
