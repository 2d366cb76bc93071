"""Upload documents and ask them, in the browser. AVATAR says whose documents: `chat` by default.

examples/run chat_streamlit
"""

import asyncio
import os
import tempfile
from pathlib import Path

import streamlit as st
from chromadb.errors import NotFoundError

from examples.answers import ModelFailed, Passage, answer
from examples.connection import admin
from examples.ingest import ingest
from examples.search import search
from gateway.admin import GatewayError

AVATAR = os.environ.get("AVATAR", "chat")


def add(files: list[st.runtime.uploaded_file_manager.UploadedFile]) -> None:
    bar = st.progress(0.0)
    with tempfile.TemporaryDirectory() as directory:
        named = {file.name: Path(directory, str(number)) for number, file in enumerate(files)}
        for file in files:
            named[file.name].write_bytes(file.getvalue())
        done = ingest(named, AVATAR, on_progress=bar.progress)
    bar.empty()
    said = [f"{len(done['added'])} added, {len(done['changed'])} changed: {done['written']} chunks"]
    st.session_state.added = "\n".join(said + [f"{name} failed: {why}" for name, why in done["failed"].items()])


async def show(question: str, found: list[Passage]) -> str:
    """The answer as it grows. As Markdown, a document could put an image of another server into the page."""
    place, said = st.empty(), ""
    async for piece in answer(question, found):
        said += piece
        place.text(said)
    return said


def reply(question: str) -> None:
    try:
        found = search(f"avatar-{AVATAR}", question)
        said = asyncio.run(show(question, found))
    except (NotFoundError, ValueError, ModelFailed) as error:
        st.error("There are no documents yet. Add some." if isinstance(error, NotFoundError) else str(error))
        return
    with st.expander("Sources", expanded=True):
        for number, passage in enumerate(found, 1):
            st.text(f"{number}. {passage.document} ({passage.score:.2f}): {' '.join(passage.text.split())[:160]}")
    st.session_state.said += [("user", question), ("assistant", said)]


st.set_page_config("Chat with documents")
st.title("Chat with documents")
st.session_state.setdefault("said", [])
st.session_state.setdefault("added", "")
with st.sidebar:
    uploaded = st.file_uploader("Documents", accept_multiple_files=True)
    try:
        if st.button("Add", disabled=not uploaded):
            add(uploaded)
        st.text(st.session_state.added)
        with admin() as gateway:
            names = [document["name"] for document in gateway.documents().all(f"{AVATAR}/vectorstore_data")]
        st.text("\n".join(names))
    except GatewayError as error:
        st.error(f"{error.message} {error.hint or ''}")
for who, text in st.session_state.said:
    st.chat_message(who).text(text)
if asked := st.chat_input("A question"):
    st.chat_message("user").text(asked)
    with st.chat_message("assistant"):
        reply(asked)
