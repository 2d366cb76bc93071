"""Upload documents and ask them, in the browser: Streamlit."""
