"""The process tree: supervisord, and what the gateway needs of it.

Vocabulary: supervisord runs two *programs*, `chroma` and `gateway`, as supervisord.conf says. A program *dies* when it
ends without having been told to. A *crash loop* is more deaths in a minute than `plugin.MAX_DEATHS`.

1. `serve`   `chroma-gateway serve` becomes supervisord, which starts the gateway
2. `client`  the gateway starts and stops Chroma through supervisord (`gateway.chroma.managed` says when)
3. `plugin`  runs inside supervisord: what happens when a program ends, and with which status everything ends
"""
