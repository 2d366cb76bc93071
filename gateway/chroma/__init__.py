"""Chroma's disk format, routes and process. No other package knows them. docs/chroma-internals.md proves each fact.

Vocabulary:

- *segment*: one half of a collection's storage. The METADATA segment is rows in SQLite. The VECTOR segment is an HNSW
  *index*: a directory that is named by the segment's id.
- *log*: the table `embeddings_queue`. Chroma commits each write to it before it applies the write to the segments.
- *sequence id*: the number of a row of the log.
- *position* of a segment: the highest sequence id that it contains. Chroma keeps it in the table `max_seq_id`.
- *sync*: Chroma writes an index to its files. It does so every `sync_threshold` records of the collection.
- *WAL*: SQLite's write-ahead log, the file `chroma.sqlite3-wal`. It is not Chroma's log.
- *swap*: restored data takes the place of the live data. It is on *trial* until all of it was read. Then the swap is
  settled, or rolled back.

Modules:

- `routes`      Chroma's HTTP routes, and what each of them does
- `disk`        names of the files in a data directory, and their stat signatures
- `directory`   locks, and the swap of live data for restored data
- `database`    chroma.sqlite3: journal mode, write lock, read transactions, integrity, contents
- `wal`         the format of SQLite's write-ahead log
- `pages`       the database's pages at one moment, and which of them changed since an earlier one
- `log`         keeping and trimming the log, and setting the positions of restored indexes
- `migrations`  the schema migrations that the installed Chroma knows
- `structure`   whether one index is sound, by `header`, `level0`, `lengths`, `link_lists` and `id_map`, its files
- `segments`    what the database says of each index, in any schema from chromadb 0.4 on
- `index_health`  which indexes are sound, remembered by their files, and the repair of the others at a start
- `listing`     collections and databases in pages, for people who look at them
- `orphans`     directories of deleted collections
- `doctor`      what is wrong with a data directory, and what can be repaired
- `repair`      making one index sound: from a copy, the log, or its own vectors (`salvage`, `rebuild`)
- `lost_records`  records that have no vector any more: deleting them, so that Chroma serves the others
- `relog`       writing vectors that only a running Chroma has in memory to its log again
- `users`       which processes use a data directory
- `names`       the name of a collection by its UUID, cached
- `disk_usage`  sizes for metrics and status
- `collection_facts`  settings, some records and some vectors of collections, for the production check
- `native`      the program that becomes `chroma run`
- `process`     Chroma's configuration file, and a Chroma for the time of a verification
- `disk_probe`  why Chroma cannot write its files, seen before Chroma meets it
- `quarantine`  which collections Chroma may die of, and which it must not touch
- `managed`     starting Chroma, stopping it, and starting it again after it died
- `watch`       whether Chroma runs, and whether every collection can be read
"""
