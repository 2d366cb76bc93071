"""Follows one proxied request for those that must know how it ends: quota, collection names, audit, tracing."""

from collections.abc import Callable, Sequence

from gateway.auth.quota import Quota
from gateway.chroma.names import CollectionNames

OnEnd = Callable[[int], None]
"""Called once with the status of the response, or with `BROKEN` or `CLIENT_GONE` of `gateway.proxy.counters`."""


class RequestObserver:
    """The observer of one request. `names` is given where the request may rename a collection."""

    def __init__(self, quota: Quota | None, names: CollectionNames | None, on_end: Sequence[OnEnd]) -> None:
        self._quota, self._names, self._on_end = quota, names, on_end

    def response_started(self) -> None:
        """Chroma's response begins. The client has none of it yet."""
        if self._names is not None:
            self._names.changed()

    def ended(self, status: int) -> None:
        """The request is over; see `OnEnd` for `status`."""
        if self._quota is not None:
            self._quota.end()
        if self._names is not None:
            self._names.changed()
        for call in self._on_end:
            call(status)
