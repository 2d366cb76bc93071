"""The journal: what changed since the newest snapshot, one object a cut, so that a lost disk costs a second or nothing.

Vocabulary:

- *cut*: the database at one moment. The journal makes one each `GATEWAY_JOURNAL_INTERVAL_S` in which something changed,
  and whenever a write waits to be stored.
- *entry*: one object of the journal: the pages that changed by a cut, or a mark.
- *number*: the place of an entry in the one sequence of all gateways on a store. Numbers have no gaps.
- *seal*: the mark that a gateway writes when it has taken the lease. Nothing of an earlier writer comes after it.
- *run*: entries that follow each other. The first one is written over a snapshot, each later one over the one before.
- *position*: the number of an entry, as clients see it.
- *covered*: everything up to a position is stored.
- *checkpoint*: a snapshot that the gateway takes by itself, so that a restore has less to replay.

To restore a moment: fetch the newest snapshot before it, write the pages of the entries after it over its database, and
check the digest of the whole. Chroma replays its log for what the indexes of the snapshot lack.

Modules:

- `entry`: an entry as bytes, and the digest of a database. Pure.
- `sequence`: the entries in the store, and why two writers cannot both go on.
- `journal`: makes cuts, stores them, and tells who waits.
- `plan`: what to read, merge and drop. Pure.
- `merge`: make old history coarser, and drop what is too old.
- `deletion`: what goes with a snapshot that is deleted.
- `replay`: find what a moment is restored from, and write the pages.
- `history`: which moments can be restored, and what happened in between.
- `volume`: how much was stored when. Pure.
- `usage`: what cuts and requests cost. Pure.
"""
