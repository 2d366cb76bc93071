"""Snapshots: one cut of Chroma's disk in the store, and the way back. FORMAT.md describes every byte.

A *file* of a snapshot (the database, or one file of an index) is a *base* and *patches* over it, made of
*pieces* that are gathered into *packs*, objects of the store named by their own SHA-256. The *manifest* names
every pack and every file; it is written last, and what it does not name does not exist. A *repository* is all of
that below one gateway's prefix:

    repository.json                        the format's version, written once
    lease.json                             who may write: one gateway at a time
    snapshots/{snapshot_id}/manifest.json  one per snapshot
    data/{sha256}                          packs

To take one (`create`): close the gate, drain → lock SQLite, open a reader, look at the indexes' times → open →
read the pages and the indexes that changed since the *baseline*, which is what the store has → packs → manifest.
To go back (`restore`): manifest → plan → fetch and verify into a fresh directory → check the
database and the indexes → swap → try → settle, or roll back.

- what a snapshot is:  `model`, `blocks`, `plan` (pure) · `packing`, `baseline` · `repository`
- taking, going back:  `capture`, `create` · `restore` · `verify` · `archive`, `intake` (tar, out and in)
- one writer:          `lease_state` (pure), `lease`, `probe`, `home`, `succession`
- by themselves:       `schedule`, `retention`, `budget`, `changes` (pure) · `rounds`, `collect`
- asking for it:       `operations`, one at a time · `api`, `cli`
"""
