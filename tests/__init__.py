"""Tests and benchmarks."""

import functools

import httpx

# Each httpx client reads the certificates of all authorities, which takes 30 ms of CPU time, and `httpx.get` makes one
# for each request: a benchmark that asks whether something is ready would keep half a core busy.
httpx._transports.default.create_ssl_context = functools.cache(httpx.create_ssl_context)  # type: ignore[attr-defined]
