"""Counts and durations of requests on the data path: plain numbers, from which the metrics are made. Pure."""

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable
from typing import NamedTuple

BOUNDS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
CLIENT_GONE, BROKEN = 499, 0
"""In place of a status: the client disconnected before the response; the response broke off in the middle."""

Note = Callable[[str | None, int, int | None, int | None, float], None]
"""Takes what is known when Chroma's response begins: the UUID of the collection, the status, Content-Length, the gate's
epoch and the time, in seconds of the event loop's clock."""


class Histogram:
    """Durations by bucket. `counts[i]` has those up to `BOUNDS_S[i]`; the last one has those that are longer."""

    __slots__ = ("counts", "sum_s")

    def __init__(self) -> None:
        self.counts = [0] * (len(BOUNDS_S) + 1)
        self.sum_s = 0.0

    def add(self, seconds: float) -> None:
        self.counts[bisect_left(BOUNDS_S, seconds)] += 1
        self.sum_s += seconds


class Label(NamedTuple):
    """The labels of one counter. `key` is a key's name, so clients cannot make up new labels."""

    route: str
    method: str
    key: str


class RequestCounter:
    """Counts the requests of one `Label`. All counters of one `kind` share the histograms."""

    __slots__ = ("note", "statuses", "upstream", "whole")

    def __init__(self, whole: Histogram, upstream: Histogram) -> None:
        self.statuses: defaultdict[int, int] = defaultdict(int)
        self.whole, self.upstream = whole, upstream
        self.note: Note | None = None
        """Called when a response begins, for the few routes whose use is looked at; see `gateway.proxy.usage`."""

    def add(self, status: int, whole_s: float) -> None:
        """Count one request. `whole_s` is the time from its head to the end of its response."""
        self.statuses[status] += 1
        self.whole.add(whole_s)


class Counters:
    """All request counters and histograms."""

    def __init__(self) -> None:
        self.by_label: dict[Label, RequestCounter] = {}
        self.whole: dict[str, Histogram] = {}
        """By kind: from a request's head to the end of its response."""
        self.upstream: dict[str, Histogram] = {}
        """By kind: from sending Chroma a request to the beginning of its response."""

    def of(self, label: Label, kind: str) -> RequestCounter:
        """The counter with this label. `kind` is `read`, `write` or `probe`."""
        counter = self.by_label.get(label)
        if counter is None:
            whole = self.whole.setdefault(kind, Histogram())
            counter = self.by_label[label] = RequestCounter(whole, self.upstream.setdefault(kind, Histogram()))
        return counter
