"""Requests for checkpoints of object storage and web servers: where they may lead, and what failures mean.

Connections are judged as all of the services' are (`shared/outgoing_http.py`), no redirect is followed, and a broken
transfer goes on where it ended, as long as what is read is still the same.
"""

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from typing import TypeVar

import httpx2

from hotslot.backoff import Backoff
from hotslot.errors import (
    SourceChangedError,
    SourceForbiddenError,
    SourceNotFoundError,
    SourceThrottledError,
    SourceUnavailableError,
)
from shared.outgoing_http import CheckedBackend, OutgoingClient, PrivateAddressError
from store_service.sources.remote.options import AddressOf, WebOptions
from store_service.sources.source import stop_if

MAX_PAUSE_S = 30.0
RETRY_AFTER_S = 5.0
_THROTTLED = (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE)
_CHANGED = (HTTPStatus.PRECONDITION_FAILED, HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE)
_MAY_PASS = (HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.CONFLICT, HTTPStatus.TOO_EARLY)

Found = TypeVar("Found")


@dataclass(frozen=True, slots=True)
class WebFile:
    """A file as its server describes it."""

    name: str
    size_bytes: int
    etag: str
    version: str
    """Version of the object, where its bucket keeps them."""


class SourceRequests:
    """Requests for one source; `name` stands for it in errors, which never show an address that was signed."""

    def __init__(self, name: str, options: WebOptions, server: str) -> None:
        """`server` is the URL, of the operator's settings, that all addresses begin with: a host that is written there
        as an address is what it says."""
        self._name = name
        self._options = options
        backend = CheckedBackend(options.private_networks, [httpx2.URL(server).host])
        self._client = OutgoingClient(backend, options.timeout_s, options.ca_file)

    def __enter__(self) -> "SourceRequests":
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def look(self, name: str, address: AddressOf) -> WebFile | None:
        """A file as it is now; None where there is none. Raises as `Source.resolve`."""

        def ask() -> WebFile | None:
            try:
                with self._response(name, "HEAD", address, {}) as response:
                    size = response.headers.get("content-length", "0")
                    etag, version = (response.headers.get(key, "") for key in ("etag", "x-amz-version-id"))
                    return WebFile(name, int(size) if size.isdigit() else 0, etag, version)
            except SourceNotFoundError:
                return None

        return self._tried(ask, threading.Event())

    def fetch(
        self, file: WebFile, address: AddressOf, write: Callable[[bytes], int], cancelled: threading.Event
    ) -> int:
        """Read a file to its end, with whatever attempts that takes; returns its bytes.

        `write` takes bytes and returns how many there are by now. Raises as `FixedCheckpoint.fetch`.
        """
        done_bytes = 0

        def go_on() -> int:
            nonlocal done_bytes
            headers = {"Accept-Encoding": "identity"} | ({"If-Match": file.etag} if file.etag else {})
            headers |= {"Range": f"bytes={done_bytes}-"} if done_bytes else {}
            with self._response(file.name, "GET", address, headers) as response:
                if file.etag and response.headers.get("etag", file.etag) != file.etag:
                    raise SourceChangedError(f"{file.name} of {self._name}")
                skip = done_bytes if response.status_code == HTTPStatus.OK else 0
                for data in response.iter_raw():
                    stop_if(cancelled)
                    skipped, skip = min(skip, len(data)), max(0, skip - len(data))
                    if data[skipped:]:
                        done_bytes = write(data[skipped:])
            if file.size_bytes and done_bytes < file.size_bytes:
                raise self._unavailable(f"{file.name} ended after {done_bytes} of {file.size_bytes} bytes")
            return done_bytes

        return self._tried(go_on, cancelled, lambda: done_bytes)

    def _tried(
        self, ask: Callable[[], Found], cancelled: threading.Event, progress: Callable[[], int] = lambda: 0
    ) -> Found:
        """The answer of the first attempt that has one; attempts are counted from the last progress on."""
        failures, reached = 0, progress()
        while True:
            stop_if(cancelled)
            try:
                return ask()
            except SourceUnavailableError as exc:
                if progress() > reached:
                    failures, reached = 0, progress()
                failures += 1
                if failures >= self._options.num_attempts:
                    raise
                pause_s = Backoff(self._options.backoff_s, MAX_PAUSE_S).pause_s(failures - 1)
                asked_s = exc.retry_after_s if isinstance(exc, SourceThrottledError) else None
                cancelled.wait(max(pause_s, min(asked_s or 0.0, MAX_PAUSE_S)))

    @contextmanager
    def _response(
        self, name: str, method: str, address: AddressOf, headers: Mapping[str, str]
    ) -> Iterator[httpx2.Response]:
        url, own_headers = address(method)
        try:
            with self._client.stream(method, url, headers={**headers, **own_headers}) as response:
                if response.status_code not in (HTTPStatus.OK, HTTPStatus.PARTIAL_CONTENT):
                    raise self._failure(name, response)
                yield response
        except PrivateAddressError as exc:
            message = f"{self._name}: {exc}; the store's operator may allow its network in source_private_networks"
            raise SourceForbiddenError(message) from exc
        except (httpx2.HTTPError, httpx2.InvalidURL) as exc:
            # Its text has the address, whose query may be a credential.
            raise self._unavailable(type(exc).__name__) from None

    def _failure(self, name: str, response: httpx2.Response) -> Exception:
        """Error that a status stands for; nothing of the answer's body is passed on."""
        status, what = response.status_code, f"{name} of {self._name}"
        if status in (HTTPStatus.NOT_FOUND, HTTPStatus.GONE):
            return SourceNotFoundError(f"{what} not found", self._name)
        if status in _CHANGED:
            return SourceChangedError(what)
        if status in _THROTTLED:
            told = response.headers.get("retry-after", "")
            retry_after_s = float(told) if told.isdigit() and len(told) < 5 else RETRY_AFTER_S
            message = f"{self._name} takes no more requests now (HTTP {status}); try again later"
            return SourceThrottledError(message, retry_after_s=retry_after_s)
        if response.has_redirect_location:
            advice = "no redirect is followed; is the region or the endpoint another one?"
            return SourceForbiddenError(f"{what} redirects (HTTP {status}), and {advice}")
        if status >= HTTPStatus.INTERNAL_SERVER_ERROR or status in _MAY_PASS:
            return self._unavailable(f"HTTP {status}")
        return SourceForbiddenError(f"{what} is refused with the store's credentials for it (HTTP {status})")

    def _unavailable(self, problem: str) -> SourceUnavailableError:
        message = f"{self._name} cannot be fetched now: {problem}; try again later"
        return SourceUnavailableError(message, retry_after_s=RETRY_AFTER_S)
