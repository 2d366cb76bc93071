"""Snapshots: one cut of Chroma's disk in the store, and the way back.

A *file* of a snapshot (the database, or one file of an index) is cut into *blocks*; blocks are
compressed and gathered into *packs*, objects of the store named by their own SHA-256. The
*manifest* names every pack, every block in it and every file made of them; it is written last, and
what it does not name does not exist. A *repository* is all of that below one gateway's prefix:

    repository.json                        the format's version, written once
    snapshots/{snapshot_id}/manifest.json  one per snapshot
    data/{sha256}                          packs

To take one (`create`): read the indexes ahead into packs → close the gate, drain → lock SQLite, pin a
reader, prove that no index moved, copy what did → open → pack the copied → manifest.
To go back (`restore`): manifest → plan → fetch and verify into a fresh directory → check the
database and the indexes → swap → try → settle, or roll back.

`model` and `plan` are pure; `packing` turns bytes into packs and back; `repository` talks to the store.
"""
