"""The way of a request: `/api/` in, to Chroma and back, byte for byte.

A *ticket* is the right of one write to be under way; the *gate* gives tickets out and, while
closed, makes writes wait. *Warm* is a collection that was read since Chroma's start: the first read
of each writes (DESIGN: the local executor backfills and purges once per collection and process,
`rust/frontend/src/executor/local.rs`, `try_backfill_collection`), so it takes a ticket too.
A *head* is a message up to its empty line. An *exchange* is one request and its answer; a *slot* is
its right to be under way at Chroma. An *entry* is what the door says of a head: who sends it, and what they may.

1. `client`    finds the requests in what a client sends; hands over those that are not for Chroma
   `heads`     parses a head, strictly, and makes it ready for the next hop
   `policy`      judges each distinct head once: key, role, scope, limits, origin (`gateway.auth`)
   `reply`     what is refused, or answered without Chroma, ends here
   `classify`  is it a read, a write, or a first read?                         pure
   `headers`   hop-by-hop headers stay behind                                  pure
   `framing`   where a body ends                                               pure
   `visits`    exchanges of those who see a part only, or may write so much
2. `exchange`  holds a small body until it is whole, then
   `gate`      a write takes a ticket, or waits, or is told 503
3. `upstream`  a slot, and a connection to Chroma that is kept
4. `exchange`  streams up, streams down; the ticket ends with Chroma's answer, not with the client
   `answers`   what we say ourselves, in Chroma's shape                        pure

`data_path` is what all connections share, `counter` what it counts. Everything runs in the event loop's
callbacks, without a task per request.
"""
