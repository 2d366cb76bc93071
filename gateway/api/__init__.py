"""Every route of the gateway itself: `/admin/*`, `/healthz`, `/readyz`, `/metrics` and the pages that describe routes.

docs/admin-api.md lists them.

Vocabulary: a *dependency* is an object that a route names in its signature, and that FastAPI passes. A *job* is a long
operation: a request waits for its end, or gets 202 and asks `/admin/jobs` for it.

A request passes:

1. `request_ids`  gives it an id
2. `audit`        writes an audit line if it changes something
3. `app`          refuses it without an admin's key, or with a body that is too long; finds the route; shapes errors
4. `deps`         the objects and keys that the route depends on
5. `parameters`   refuses parameters that the route does not take
6. the route, by group: `snapshots`, `journal`, `collections`, `documents`, `jobs`, `health` with `status`, `check`,
   `console`, `reference`

`probes` has the responses of `/healthz` and `/readyz`. `gateway.server.listen` sends them itself until the application,
whose import takes longest, is built. `key_holder` says whose key a route lets pass.
"""
