"""LangChain on the gateway: ingest a folder, ask it with a filter."""
