"""What `/stats` counts, since the start."""

import statistics
import time
from collections import Counter, deque
from typing import Any

from examples.rag_api.models import Times

_REMEMBERED = 1000


class Stats:
    def __init__(self) -> None:
        self._since = time.monotonic()
        self._answers: Counter[str] = Counter()
        self._search_ms: deque[float] = deque(maxlen=_REMEMBERED)
        self._answer_ms: deque[float] = deque(maxlen=_REMEMBERED)

    def answered(self, times: Times) -> None:
        self._answers["ok"] += 1
        self._search_ms.append(times.search_ms)
        self._answer_ms.append(times.answer_ms)

    def failed(self, error: str) -> None:
        self._answers[error] += 1

    def read(self) -> dict[str, Any]:
        """How questions ended, and the median and the 95th percentile of the last 1,000 answers."""
        return {
            "uptime_s": round(time.monotonic() - self._since, 1),
            "questions": dict(self._answers),
            "search_ms": _percentiles(self._search_ms),
            "answer_ms": _percentiles(self._answer_ms),
        }


def _percentiles(times: deque[float]) -> dict[str, float] | None:
    if not times:
        return None
    cuts = statistics.quantiles(times, n=20, method="inclusive") if len(times) > 1 else [times[0]] * 19
    return {"p50": round(cuts[9], 1), "p95": round(cuts[18], 1)}
