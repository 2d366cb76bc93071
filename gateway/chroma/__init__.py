"""The only place that knows Chroma's files, tables, routes and process; of chromadb 1.5 unless said otherwise.

A *segment* is one half of a collection's storage: METADATA in SQLite, VECTOR as an HNSW *index*, a
directory named by the segment's id. The *log* is SQLite's `embeddings_queue`. A segment's
`max_seq_id` says up to where the log is in its files.

- `routes`      its HTTP routes, and what each does
- `names`       which name a collection's UUID has
- `disk`        what lies in a data directory, and what changed in it
- `directory`   the data directory as a whole: locks, staging, swapping, rolling back
- `database`    chroma.sqlite3: mode, lock, what it says about collections and segments
- `wal`, `pages`  its pages: those of one moment, and those that changed since another
- `log`         Chroma's log, kept so that an index may be older than the database
- `migrations`  which schema changes the installed Chroma knows
- `hnsw`        whether an index's files fit each other
- `process`     how Chroma is started
- `supervisor`  stopping and starting it through supervisord; `managed` does it for a restore
- `watch`       whether it is up, and whether every collection can be read
"""
