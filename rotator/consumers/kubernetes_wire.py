"""How answers of an API server are read: within a time and a size, whatever comes (lightkube itself sets neither)."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Final
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import httpx2
from lightkube.config.client_adapter import verify_cluster
from lightkube.config.kubeconfig import SingleConfig

LONGEST: Final = 32 * 1024 * 1024  # bytes of one answer; 200 large pods are a tenth of it
TOTAL: Final = 3.0  # times the wait for one part of an answer, for all of it


class Bounded(httpx2.BaseTransport):
    """A transport to the API server of a kubeconfig, by the proxy that the environment names, if it names one.

    Args:
        answer: seconds for each part of an answer; all of it must have come in three times as long.
    """

    def __init__(self, config: SingleConfig, answer: float) -> None:
        assert config.user is not None  # login.read has seen to it
        server = urlsplit(config.cluster.server)
        proxy = None if proxy_bypass(server.hostname or "") else getproxies().get(server.scheme)
        verify = verify_cluster(config.cluster, config.user, config.abs_file)
        self._inner = httpx2.HTTPTransport(verify=verify, proxy=proxy)
        self._seconds = TOTAL * answer

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        """Send it, and have the answer's body read within bounds; packed ones, which may be bombs, are not read."""
        until = time.monotonic() + self._seconds
        request.headers["Accept-Encoding"] = "identity"
        response = self._inner.handle_request(request)
        if response.headers.get("Content-Encoding", "identity") != "identity":
            response.close()
            raise httpx2.DecodingError("a packed answer, which nobody asked for", request=request)
        assert isinstance(response.stream, httpx2.SyncByteStream)  # the transport is a blocking one
        response.stream = _Stream(response.stream, request, until)
        return response

    def close(self) -> None:
        """Give back connections."""
        self._inner.close()


class _Stream(httpx2.SyncByteStream):
    """A body that ends with an error when there is too much of it, or it takes too long."""

    def __init__(self, inner: httpx2.SyncByteStream, request: httpx2.Request, until: float) -> None:
        self._inner, self._request, self._until = inner, request, until

    def __iter__(self) -> Iterator[bytes]:
        read = 0
        for part in self._inner:
            read += len(part)
            if read > LONGEST:
                raise httpx2.RemoteProtocolError(f"longer than {LONGEST // 1024**2} MiB", request=self._request)
            if time.monotonic() > self._until:
                raise httpx2.ReadTimeout("it comes too slowly", request=self._request)
            yield part

    def close(self) -> None:
        self._inner.close()
