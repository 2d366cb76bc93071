"""Who can reach the data."""

from gateway.observability.check.answers import Answer, failed, named, passed, unknown, warned
from gateway.observability.check.facts import Facts


def keys(facts: Facts) -> Answer:
    """Whether requests from other machines need a key."""
    access = facts.access
    if access.is_closed:
        return passed("requests to /api/ need a key")
    if not access.is_loopback:
        return failed(
            f"everybody who reaches {access.host} may read, write and delete: GATEWAY_ALLOW_ANONYMOUS is set",
            "make keys with `chroma-gateway key new`, set GATEWAY_KEYS_FILE, and unset GATEWAY_ALLOW_ANONYMOUS",
        )
    if access.forwarded:
        return failed(
            f"no key is needed, and a proxy passed on {access.forwarded} connection(s): to the gateway, all clients"
            " of that proxy come from this machine",
            "make keys with `chroma-gateway key new`, and set GATEWAY_KEYS_FILE",
        )
    return passed("no key is needed, and only this machine reaches the gateway")


def open_loopback(facts: Facts) -> Answer:
    """Whether every process of this machine may do everything."""
    access = facts.access
    if access.is_closed or not access.is_loopback:
        return passed("a key is needed on this machine too" if access.is_closed else "the rule on keys covers it")
    return warned(
        f"every process and every user of this machine may read, write and delete: {access.host} needs no key",
        "make keys with `chroma-gateway key new`, and set GATEWAY_KEYS_FILE",
    )


def tls(facts: Facts) -> Answer:
    """Whether connections from other machines come over TLS."""
    access = facts.access
    if access.clear:
        return warned(
            f"{access.clear} connection(s) came from other machines without TLS: keys and data can be read on the way",
            "end TLS in a proxy in front that sets X-Forwarded-Proto, and let clients use https only",
        )
    if access.private:
        return unknown(
            f"{access.private} connection(s) came from private addresses without TLS: from other machines, or from this"
            " one through the network of a container engine",
            "if other machines connect, end TLS in a proxy in front that sets X-Forwarded-Proto",
        )
    if access.encrypted:
        return passed(f"TLS ends in front: X-Forwarded-Proto was https in {access.encrypted} connection(s)")
    if not access.is_exposed:
        return passed("only this machine reaches the gateway")
    if access.forwarded:
        return unknown(
            f"a proxy passed on {access.forwarded} connection(s), and does not say whether they came over TLS",
            "let it set X-Forwarded-Proto",
        )
    return unknown("no connection from another machine was seen yet", "look again when clients have come")


def limits(facts: Facts) -> Answer:
    """Whether one client can take all of Chroma."""
    access = facts.access
    if not access.is_exposed:
        return passed("only this machine reaches the gateway")
    if not access.unlimited and (access.limited or access.is_closed):
        return passed("requests are limited")
    return warned(
        "a client may send as many requests as it likes, and the others wait",
        "set GATEWAY_LIMIT_REQUESTS_PER_S or GATEWAY_LIMIT_IN_FLIGHT, or `limits` of the keys",
        named(access.unlimited),
    )


RULES = (keys, open_loopback, tls, limits)
