"""Requests to one hub: where they may lead, what failures mean, and who sees the token.

The hub's library says how to ask and what the answers mean; the requests are made here, because nothing is followed
into the operator's own network.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from urllib.parse import quote

import httpx2
from huggingface_hub import ModelInfo, hf_hub_url, is_offline_mode
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import hf_raise_for_status  # type: ignore[attr-defined]

from hotslot.errors import SourceForbiddenError, SourceNotFoundError, SourceUnavailableError
from shared.outgoing_http import CheckedBackend, OutgoingClient, PrivateAddressError
from store_service.sources.hub.folder import HubFolder
from store_service.sources.hub.redirects import allowed_target

MAX_INFO_BYTES = 64 * 1024 * 1024
"""Most bytes of the hub's answer about a repository, which lists all of its files."""
MAX_REDIRECTS = 5
RETRY_AFTER_S = 5.0
_ERROR_HEADERS = ("X-Error-Code", "X-Error-Message")


@dataclass(frozen=True, slots=True)
class HubFile:
    """A file of a commit, as the hub describes it."""

    name: str
    path: str
    size_bytes: int
    sha256: str
    git_sha1: str


class HubRequests:
    """Requests to one hub: where they may lead, what failures mean, and who sees the token."""

    def __init__(self, folder: HubFolder) -> None:
        self._folder = folder
        self._options = folder.options
        self._endpoint = httpx2.URL(self._options.endpoint)
        backend = CheckedBackend(self._options.private_networks, [self._endpoint.host])
        self._client = OutgoingClient(backend, self._options.timeout_s)

    def __enter__(self) -> "HubRequests":
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def unavailable(self, problem: str) -> SourceUnavailableError:
        """Error for a failure that may pass."""
        message = f"{self._folder.key} cannot be fetched now: {problem}; try again later"
        return SourceUnavailableError(message, retry_after_s=RETRY_AFTER_S)

    def model_info(self) -> ModelInfo:
        """Description of the repository at the revision, from the hub."""
        folder = self._folder
        path = f"{self._options.endpoint}/api/models/{folder.repo_id}"
        if folder.revision:
            path += f"/revision/{quote(folder.revision, safe='')}"
        if is_offline_mode():
            raise self.unavailable("HF_HUB_OFFLINE is set for this store")
        body = bytearray()
        with self._get(f"{path}?blobs=true", {}) as response:
            for data in response.iter_bytes():
                body += data
                if len(body) > MAX_INFO_BYTES:
                    raise SourceForbiddenError(f"{folder.key}: the hub's answer has more than {MAX_INFO_BYTES} bytes")
        told = {name: response.headers[name] for name in _ERROR_HEADERS if name in response.headers}
        whole = httpx2.Response(response.status_code, headers=told, content=bytes(body), request=response.request)
        try:
            hf_raise_for_status(whole)
            return ModelInfo(**whole.json())  # type: ignore[no-untyped-call]
        except (RepositoryNotFoundError, RevisionNotFoundError, GatedRepoError) as exc:
            # A private repository looks like one that does not exist; nothing of the answer is passed on.
            raise SourceNotFoundError(f"{folder.key} not found, or not for this store's token", folder.key) from exc
        except HfHubHTTPError as exc:
            raise self.unavailable(f"HTTP {response.status_code}") from exc
        except (ValueError, TypeError, KeyError, AttributeError) as exc:
            raise self.unavailable("the hub's answer is not what it should be") from exc

    def file(self, commit: str, file: HubFile, offset: int) -> Iterator[bytes]:
        """A file's bytes from an offset on."""
        url = hf_hub_url(self._folder.repo_id, file.path, revision=commit, endpoint=self._options.endpoint)
        headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={offset}-"} if offset else {})
        with self._get(url, headers) as response:
            if response.status_code in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN, HTTPStatus.NOT_FOUND):
                raise SourceNotFoundError(f"{file.path} of {self._folder.key} cannot be fetched", self._folder.key)
            if response.status_code not in (HTTPStatus.OK, HTTPStatus.PARTIAL_CONTENT):
                raise self.unavailable(f"HTTP {response.status_code}")
            skip = offset if response.status_code == HTTPStatus.OK else 0
            for data in response.iter_raw():
                skipped, skip = min(skip, len(data)), max(0, skip - len(data))
                if data[skipped:]:
                    yield data[skipped:]

    @contextmanager
    def _get(self, url: str, headers: dict[str, str]) -> Iterator[httpx2.Response]:
        """An answer whose body is still to be read; follows redirects as far as they are allowed."""
        token = {"Authorization": f"Bearer {self._options.token}"} if self._options.token else {}
        target = httpx2.URL(url)
        try:
            for _ in range(MAX_REDIRECTS + 1):
                with self._client.stream("GET", target, headers=headers | token) as response:
                    if not response.has_redirect_location:
                        yield response
                        return
                    target = self._checked_redirect(target, response)
                    token = {}
        except PrivateAddressError as exc:
            message = f"{self._folder.key}: {exc}; the store's operator may allow its network in hub_private_networks"
            raise SourceForbiddenError(message) from exc
        except (httpx2.HTTPError, httpx2.InvalidURL) as exc:
            raise self.unavailable(type(exc).__name__) from exc
        raise SourceForbiddenError(f"{self._folder.key} redirects more than {MAX_REDIRECTS} times")

    def _checked_redirect(self, url: httpx2.URL, response: httpx2.Response) -> httpx2.URL:
        """Target of a redirect, if that may be followed: never into the operator's own network."""
        location = response.headers["location"]
        target = allowed_target(url, location, self._endpoint, self._options.redirect_hosts)
        if target is None:
            message = f"{self._folder.key} redirects to {location[:200]!r}, whose host is not in hub_redirect_hosts"
            raise SourceForbiddenError(message)
        return target
