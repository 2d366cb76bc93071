"""The way of a request: `/api/*` in, to Chroma and back, byte for byte.

A *ticket* is the right of one write to be under way; the *gate* gives tickets out and, while
closed, makes writes wait. *Warm* is a collection that was read since Chroma's start: the first read
of each writes (DESIGN: the local executor backfills and purges once per collection and process,
`rust/frontend/src/executor/local.rs`, `try_backfill_collection`), so it takes a ticket too.

1. `classify`  is it a read, a write, or a first read?                        pure
2. `gate`      a write takes a ticket, or waits, or is told 503
3. `headers`   hop-by-hop headers stay behind                                  pure
4. `forward`   stream up, stream down; the ticket ends with Chroma's answer, not with the client
   `transport` puts the raw request target on the wire, on aiohttp's connection pool
"""
