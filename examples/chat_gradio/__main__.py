"""Upload documents and ask them, in the browser.

    examples/run chat_gradio --avatar chat

The documents become the collection `avatar-…`. The browser gets no key of the gateway: this process asks it.
"""

import argparse
import asyncio
import html
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")

import gradio as gr
from chromadb.errors import NotFoundError

from examples.answers import ModelFailed, Passage, answer
from examples.connection import admin
from examples.ingest import ingest
from examples.search import search
from gateway.admin import GatewayError


class Chat:
    """The documents of one avatar, and questions about them."""

    def __init__(self, avatar: str) -> None:
        self.avatar = avatar

    def documents(self) -> str:
        """The names of what can be asked, one a line."""
        with admin() as gateway:
            names = [document["name"] for document in gateway.documents().all(f"{self.avatar}/vectorstore_data")]
        return "\n".join(names)

    def add(
        self,
        files: list[str],
        progress: gr.Progress = gr.Progress(),  # noqa: B008  # so does Gradio know that it is to give one
    ) -> tuple[str, str, None]:
        """Ingest uploaded files. Return what is said of it, all documents, and an empty upload."""
        named = {Path(file).name: Path(file) for file in files}
        try:
            done = ingest(named, self.avatar, on_progress=lambda share, what: progress(share, desc=what))
        except GatewayError as error:
            raise gr.Error(f"{error.message} {error.hint or ''}") from error
        said = [f"{len(done['added'])} added, {len(done['changed'])} changed: {done['written']} chunks"]
        said += [f"{name} failed: {why}" for name, why in done["failed"].items()]
        return "\n".join(said), self.documents(), None

    async def reply(self, question: str, _history: list[Any]) -> AsyncIterator[str]:
        """The answer as it grows, then with its sources. Escaped, for the chat shows HTML also without Markdown."""
        said = ""
        try:
            found = await asyncio.to_thread(search, f"avatar-{self.avatar}", question)
            async for piece in answer(question, found):
                said += piece
                yield html.escape(said, quote=False)
        except NotFoundError:
            yield "There are no documents yet. Add some first."
            return
        except (ValueError, ModelFailed) as error:
            raise gr.Error(str(error)) from error
        yield html.escape(f"{said}\n\n{_sources(found)}", quote=False)


def _sources(found: list[Passage]) -> str:
    lines = (
        f"{number}. {passage.document} ({passage.score:.2f}): {' '.join(passage.text.split())[:160]}"
        for number, passage in enumerate(found, 1)
    )
    return "Sources\n\n" + "\n".join(lines)


def build(chat: Chat) -> gr.Blocks:
    with gr.Blocks(title="Chat with documents") as page:
        gr.Markdown("# Chat with documents")
        with gr.Row():
            with gr.Column(scale=1):
                upload = gr.File(label="Add documents", file_count="multiple")
                result = gr.Textbox(label="Result")
                documents = gr.Textbox(label="Documents", lines=10)
            with gr.Column(scale=2):
                # As Markdown, a document could put a form or an image of another server into the page.
                answers = gr.Chatbot(height="70vh", label="Answers", render_markdown=False)
                gr.ChatInterface(chat.reply, chatbot=answers)
        upload.upload(chat.add, upload, [result, documents, upload], show_progress_on=result)
        page.load(chat.documents, outputs=documents)
    return page


def main() -> None:
    parser = argparse.ArgumentParser(prog="examples/run chat_gradio")
    parser.add_argument("--avatar", default="chat", help="whose documents; it may be new")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=7860)
    asked = parser.parse_args()
    build(Chat(asked.avatar)).launch(server_name=asked.host, server_port=asked.port)


if __name__ == "__main__":
    main()
