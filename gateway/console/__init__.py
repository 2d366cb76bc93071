"""The console: the pages that an operator opens in a browser, at /console.

Vocabulary: a *session* is a browser that signed in with a key (`gateway.auth.sessions`). The *overview* is what the
first page shows, live. The *feed* sends it to all open consoles.

1. `files`    the static files: HTML, CSS, ES modules. Each page is a module of static/pages; static/app.js says how
2. `feed`     one producer of events for all consoles, while there is one

There is no build step, and nothing is loaded from elsewhere. `gateway.api.console` has the routes, and
`gateway.observability.overview` makes the overview. Everything else that the pages show or do is a route of the admin
API or of Chroma, with the key of the session.
"""
