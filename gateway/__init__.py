"""Chroma Gateway: a thin reverse proxy in front of an unmodified Chroma that can lose its disk.

Vocabulary: a *snapshot* is one cut of Chroma's SQLite database and HNSW files in the *store*; its
*manifest* names every byte of it and is the commit; *packs* hold those bytes. The *gate* holds
writes back while a cut is taken. The *journal* has what changed between snapshots, one object a second.

Three ways lead through the gateway:

1. request:  client → policy → gate (a write takes a ticket; while closed it waits)
   → forward, streaming both ways → Chroma                                         (`gateway.proxy`)
2. save:     each second with writes: cut (ms) → changed pages → one entry       (`gateway.journal.journal`)
   now and then: close gate, drain → freeze (ms) → open gate → read what changed → store it
   → manifest last                                                         (`gateway.snapshot.create`)
3. restore:  manifest → fetch into a fresh directory → entries of the journal up to the moment → verify every
   digest and the database → swap → start Chroma → warm → open gate       (`gateway.snapshot.restore`)
"""

from typing import Any


def __getattr__(name: str) -> Any:
    # Looked up when asked for: it takes longer than all else that a small program imports of this package.
    if name == "__version__":
        from importlib.metadata import version  # noqa: PLC0415

        return version("chroma-gateway")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
