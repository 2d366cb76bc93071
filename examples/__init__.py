"""Programs that use the gateway. docs/examples.md says how each is started, and what was measured.

    examples/run NAME …      makes an environment of its own for NAME, and starts it

- `rag_api`         questions and answers over HTTP: FastAPI, streaming, any OpenAI-compatible model
- `chat_gradio`     upload documents, ask them in the browser: Gradio
- `chat_streamlit`  the same in Streamlit
- `langchain`, `llamaindex`, `javascript`   ingest a folder, ask it with a filter
- `notebook`        a tour: documents, questions, a snapshot, a restore
- `mlflow`          an ingest as a run, and from a run back to its index
- `migrate`         from Milvus Lite, or a folder of PDFs, to the gateway
- `sample`          writes documents and thirty questions to try the others with

They share `connection` (where the gateway is), `ingest` (files into a collection), `answers` (passages into an answer),
`embedding` (a function that works offline) and `recall` (do questions find their documents).
"""
