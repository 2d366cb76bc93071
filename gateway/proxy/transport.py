"""An httpx transport on aiohttp's connection pool that sends the request target as it came.

httpx normalises URLs (dot segments, escapes), and so does what `httpx-aiohttp` hands to aiohttp; a
proxy must not. As with httpcore, `request.extensions["target"]` is the raw target, byte for byte.
aiohttp's pool is the fastest that keeps httpx's API (DESIGN §2, proxy baselines).
"""

import contextlib
from collections.abc import AsyncIterator, Iterator

import aiohttp
import httpx
from yarl import URL

# A write that waits for the gate may hold a connection; reads must find one all the same.
_NO_LIMIT = 0
_KEEPALIVE_S = 75
_CONNECT_TIMEOUT_S = 5
_DEFAULTS_OF_AIOHTTP = ("Accept", "Accept-Encoding", "User-Agent", "Content-Type")


@contextlib.contextmanager
def _translated(request: httpx.Request) -> Iterator[None]:
    """Turn aiohttp's exceptions into httpx's, so that callers know one tree."""
    try:
        yield
    except aiohttp.ClientConnectorError as error:
        raise httpx.ConnectError(str(error), request=request) from error
    except aiohttp.ConnectionTimeoutError as error:
        raise httpx.ConnectTimeout(str(error), request=request) from error
    except aiohttp.ServerTimeoutError as error:
        raise httpx.ReadTimeout(str(error), request=request) from error
    except (aiohttp.ClientError, OSError) as error:
        raise httpx.RemoteProtocolError(str(error) or type(error).__name__, request=request) from error


class _Body(httpx.AsyncByteStream):
    """A response body as it arrives: chunks of whatever size the socket gave."""

    def __init__(self, response: aiohttp.ClientResponse, request: httpx.Request) -> None:
        self._response, self._request = response, request

    async def __aiter__(self) -> AsyncIterator[bytes]:
        with _translated(self._request):
            async for chunk in self._response.content.iter_any():
                yield chunk

    async def aclose(self) -> None:
        # A body read to its end gave its connection back already; otherwise the rest is not wanted
        # and the connection is of no more use.
        self._response.close()


class RawTargetTransport(httpx.AsyncBaseTransport):
    """To one origin. Never retries: whether that is safe only the caller knows."""

    def __init__(self) -> None:
        self._session: aiohttp.ClientSession | None = None

    def _open(self) -> aiohttp.ClientSession:
        session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=_NO_LIMIT, keepalive_timeout=_KEEPALIVE_S),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            skip_auto_headers=_DEFAULTS_OF_AIOHTTP,
        )
        # aiohttp would send a PUT or DELETE again when a pooled connection turned out dead.
        session._retry_connection = False
        return session

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send one request; the answer's body is still to be streamed and closed by the caller.

        Raises httpx.ConnectError or ConnectTimeout (nothing was sent), ReadTimeout or RemoteProtocolError.
        """
        if self._session is None:
            self._session = self._open()
        target: bytes = request.extensions.get("target", request.url.raw_path)
        url = URL(f"{request.url.scheme}://{request.url.netloc.decode()}{target.decode('latin-1')}", encoded=True)
        timeout = request.extensions.get("timeout", {})
        with _translated(request):
            response = await self._session.request(
                request.method,
                url,
                headers=[(_text(name), _text(value)) for name, value in request.headers.raw],
                data=None if request.stream is NO_BODY else request.stream,
                allow_redirects=False,
                timeout=aiohttp.ClientTimeout(sock_connect=_CONNECT_TIMEOUT_S, sock_read=timeout.get("read")),
            )
        return httpx.Response(
            response.status,
            headers=response.raw_headers,
            stream=_Body(response, request),
            request=request,
        )

    async def aclose(self) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None


NO_BODY = httpx.ByteStream(b"")
"""Stands for "no body at all": not even an empty one is framed."""


def _text(raw: bytes) -> str:
    # aiohttp writes headers as UTF-8, so only what is UTF-8 comes out as it went in.
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return raw.decode("latin-1")
