"""Snapshots of Chroma's data directory in the store. docs/format.md describes every byte.

Vocabulary:

- *repository*: everything below one gateway's prefix in the store.

      repository.json                        the version of the format, written once
      lease.json                             which gateway may write, see `gateway.lease`
      snapshots/{snapshot_id}/manifest.json  one per snapshot
      data/{sha256}                          packs

- *cut*: the database at one moment. Every snapshot is made from one cut.
- *index*: the HNSW files of one collection, in the directory of its vector segment.
- *position*: the sequence number in Chroma's log up to which the files of an index hold it.
- *file*: the database, or one file of an index. It is stored as a *base* and *patches* over it.
- *block*: the unit of change of a file. A *fingerprint* tells whether a block changed.
- *piece*: up to 4 MiB of a base or a patch. *Pack*: about 8 MiB of pieces, an object named by its SHA-256.
- *manifest*: names every file, piece and pack of a snapshot. It is written last: it is the commit.
- *baseline*: what the store has of the live data. A snapshot stores what differs from it.

To take a snapshot (`create`):

1. Close the gate and wait until the writes under way have ended (drain).
2. Lock SQLite, open a reader, note the signatures of the indexes, unlock, open the gate (`capture.freeze`).
3. Read the pages and the indexes that changed since the baseline, and put them into packs (`capture`, `packing`).
4. Write the manifest under the lease (`repository`).

To restore a snapshot (`restore`):

1. Fetch the packs into a fresh directory and verify every file (`fetch`). Repair torn indexes (`sound`).
2. Stop Chroma, swap the directories, start Chroma.
3. If Chroma can read every collection, settle. Otherwise roll back.

Modules:

- What a snapshot is: `model`, `plan` (pure); `blocks`, `packing`, `baseline`.
- What the store has: `repository`, on `manifests`, which remembers what it read in `history` (pure).
- Taking and restoring: `create`, `capture`; `restore`, `fetch`, `sound`, `index_copies`; `verify`; `tar`, `import_tar`.
- Automatic work: `schedule`, `retention`, `unsaved_writes` (pure); `scheduler`, `gc`.
- One operation at a time: `operations`. How far it is: `gateway.jobs`.
"""
