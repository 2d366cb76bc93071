"""What the data path counts about itself: plain numbers, which somebody else makes metrics of. Pure."""

from bisect import bisect_left
from collections import defaultdict
from typing import NamedTuple

BOUNDS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
CLIENT_GONE, BROKEN = 499, 0
"""In place of a status: nobody waited for the answer; the answer broke off in the middle."""


class Histogram:
    """How often something took how long. `counts[i]` took up to `BOUNDS_S[i]`, the last one longer."""

    __slots__ = ("counts", "sum_s")

    def __init__(self) -> None:
        self.counts = [0] * (len(BOUNDS_S) + 1)
        self.sum_s = 0.0

    def add(self, seconds: float) -> None:
        self.counts[bisect_left(BOUNDS_S, seconds)] += 1
        self.sum_s += seconds


class Label(NamedTuple):
    """What one tally is of. `key` is a key's name: as many as there are keys, never what a stranger sends."""

    route: str
    method: str
    key: str


class RequestCounter:
    """Of all requests with one label. The histograms are shared by all with its `kind`."""

    __slots__ = ("statuses", "upstream", "whole")

    def __init__(self, whole: Histogram, upstream: Histogram) -> None:
        self.statuses: defaultdict[int, int] = defaultdict(int)
        self.whole, self.upstream = whole, upstream

    def add(self, status: int, whole_s: float) -> None:
        """One request ended, `whole_s` after its head was here."""
        self.statuses[status] += 1
        self.whole.add(whole_s)


class Counters:
    """All of them."""

    def __init__(self) -> None:
        self.by_label: dict[Label, RequestCounter] = {}
        self.whole: dict[str, Histogram] = {}
        self.upstream: dict[str, Histogram] = {}

    def of(self, label: Label, kind: str) -> RequestCounter:
        """The tally with this label. `kind` is one of a few words: read, write, …"""
        counter = self.by_label.get(label)
        if counter is None:
            whole = self.whole.setdefault(kind, Histogram())
            counter = self.by_label[label] = RequestCounter(whole, self.upstream.setdefault(kind, Histogram()))
        return counter
