"""The data path: requests to `/api/` go to Chroma, and its responses come back, byte for byte.

A *ticket* is the right of one write to be in progress. The *gate* issues tickets; while it is closed, writes wait.
A collection is *warm* once it was read since Chroma's start: its first read writes (`gateway.proxy.gate`), so that one
takes a ticket too. A *head* is a message up to its empty line. A *slot* is the right of one request to be in progress
at Chroma. A *decision* is what the policy says about a head: who sends it, and what they may do.

1. `client`           splits a client's bytes into requests; the ASGI application gets those that are not for Chroma
   `heads`            parses a head strictly, and rewrites it for the next hop
   `policy`           decides about each distinct head once: key, role, scope, limits, origin (`gateway.auth`)
   `local_response`   a request that the gateway answers itself
   `scoped_requests`  requests that need a check of a collection's name, of their records, or of a list
   `headers`          which headers are passed on                                pure
   `framing`          where a body ends                                          pure
2. `proxied_request`  holds a small body until it is complete, then
   `gate`             a write takes a ticket, or waits, or gets 503
3. `upstream`         a slot, and a kept connection to Chroma
4. `proxied_request`  streams both ways; the ticket ends with Chroma's response, not with the client
   `acknowledged_request`  a write's position in the journal, and where asked for the wait until the store has it
   `responses`        the gateway's own responses, in Chroma's shape             pure

`data_path` holds what all connections share, such as `limits`; `counters` has the numbers of the metrics, `usage` those
of the production check; `observer` tells quota, audit and tracing how a request ended. `gateway.chroma.routes` says
what each route does. Everything runs in the event loop's callbacks, without a task per request.
"""
