"""Upload documents and ask them, in the browser: Gradio."""
