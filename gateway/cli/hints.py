"""What an error of the admin client says to somebody who types commands: options and commands, not routes."""

import re

from gateway.admin import AuthorizationError
from gateway.errors import GatewayError

# The first pattern that matches at a place is replaced.
_ROUTES = (
    (r"GET /readyz answers 200", "`chroma-gateway status` says `ready`"),
    (r"GET /readyz", "`chroma-gateway status`"),
    (r"GET /admin/status", "`chroma-gateway status`"),
    (r"GET /admin/jobs", "`chroma-gateway jobs list`"),
    (r"GET /admin/snapshot", "`chroma-gateway list`"),
    (r"GET /admin/history", "`chroma-gateway history`"),
    (r"POST /admin/flush", "`chroma-gateway flush`"),
    (r"POST /admin/restore", "`chroma-gateway restore --at`"),
    (r"restore to (\S+), which is", r"`chroma-gateway restore --at \1`, which is"),
    (r"POST /admin/snapshot/([\w-]+)/restore", r"`chroma-gateway restore \1`"),
    (r"POST /admin/snapshot", "`chroma-gateway snapshot`"),
    (r"POST /admin/gc", "`chroma-gateway gc`"),
    (r"POST /admin/resume", "`chroma-gateway resume`"),
    (r"POST /admin/collections/\S+/repair", "`chroma-gateway repair`"),
    (r"use the URL of a gateway", "set --url to the gateway's address"),
    (r"use another URL", "name another one with --url"),
)


def hint_for_commands(error: GatewayError) -> str | None:
    """The hint of `error` for the command line."""
    if isinstance(error, AuthorizationError):
        return "set --token or GATEWAY_ADMIN_TOKEN to the admin token of that gateway"
    hint = error.hint
    for pattern, command in _ROUTES if hint else ():
        hint = re.sub(rf"`?{pattern}`?", command, hint or "")
    return hint
