"""One commit of a Hugging Face repository: an explicit list of files, every file's digest checked.

The hub's library says how to ask and what the answers mean; the requests are made here, because nothing is followed
into the operator's own network, and bytes are only trusted when they are what that commit says.
"""

import hashlib
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
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

from hotslot.errors import (
    DigestMismatchError,
    QuotaExceededError,
    SourceForbiddenError,
    SourceNotFoundError,
    SourceUnavailableError,
)
from hotslot.formats.companions import COMPANION_FILES, read_companions
from store_service.admission.admit import PICKLE_FILES, WEIGHTS_FILES, Checkpoint
from store_service.admission.config import CONFIG_FILE
from store_service.admission.shards import SHARD, shard_names
from store_service.execution.full_disk import no_room_is_a_quota
from store_service.sources.hub import HubSource
from store_service.sources.source import ReportBytes, no_adapter_message, stop_if

KNOWN_FILES = (CONFIG_FILE, *WEIGHTS_FILES)
MAX_INFO_BYTES = 64 * 1024 * 1024
"""Of the hub's answer about a repository, which lists all of its files."""
MAX_COMPANION_BYTES = 20 * 1024 * 1024
MAX_REDIRECTS = 5
RETRY_AFTER_S = 5.0
_ERROR_HEADERS = ("X-Error-Code", "X-Error-Message")
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True, slots=True)
class _File:
    name: str
    path: str
    size_bytes: int
    sha256: str
    git_sha1: str


def resolve_commit(source: HubSource) -> "HubCommit":
    """Ask what a source's revision stands for; raises as `Source.resolve`."""
    with _Requests(source) as requests:
        info = requests.model_info()
    commit = str(info.sha or "")
    if not _COMMIT.fullmatch(commit):
        raise requests.unavailable("the hub named no commit")
    found: dict[str, _File] = {}
    for sibling in info.siblings or ():
        name = sibling.rfilename.removeprefix(source.prefix)
        if sibling.rfilename.startswith(source.prefix) and _is_known(name):
            sha256 = sibling.lfs.sha256 if sibling.lfs is not None else ""
            found[name] = _File(name, sibling.rfilename, sibling.size or 0, sha256, sibling.blob_id or "")
    order = (*KNOWN_FILES, *shard_names(found))
    files = [file for name in order if (file := found.get(name)) is not None]
    pickles = [name for name in PICKLE_FILES if name in found]
    if not files and not pickles:
        raise SourceNotFoundError(_nothing_there(source, info), source.key)
    # A tokenizer is read for the tokens that were added to it, which are mostly written elsewhere as well.
    companions = [file for name in COMPANION_FILES if (file := found.get(name)) is not None]
    files += [file for file in companions if file.size_bytes <= MAX_COMPANION_BYTES]
    size_bytes = sum(file.size_bytes for file in files)
    if size_bytes > source.max_bytes:
        message = f"{source.key} has {size_bytes} bytes, at most {source.max_bytes} are taken"
        raise QuotaExceededError(message, subject="max_adapter_bytes")
    return HubCommit(source, commit, files, pickles)


def _is_known(name: str) -> bool:
    return name in (*KNOWN_FILES, *PICKLE_FILES, *COMPANION_FILES) or SHARD.fullmatch(name) is not None


def _nothing_there(source: HubSource, info: ModelInfo) -> str:
    names = [sibling.rfilename for sibling in info.siblings or ()]
    folders = [name.removesuffix(f"/{CONFIG_FILE}") for name in names if name.endswith(f"/{CONFIG_FILE}")]
    inside = [folder for folder in folders if folder.startswith(source.prefix)] or folders
    whole = [name for name in names if name.startswith(source.prefix) and name.endswith(".safetensors")]
    at = f"@{source.revision}" if source.revision else ""
    return no_adapter_message(source.key, inside, whole, f"hf:{source.repo_id}{at}#{{}}")


class HubCommit:
    """The known files of one folder at one commit."""

    def __init__(self, source: HubSource, commit: str, files: list[_File], pickles: list[str]) -> None:
        self._source = source
        self._commit = commit
        self._files = files
        self._pickles = pickles
        self.origin = f"hf:{source.repo_id}@{commit}" + (f"/{source.prefix.rstrip('/')}" if source.prefix else "")
        self.key = self.origin
        """A commit never changes."""
        self.size_bytes = sum(file.size_bytes for file in files)

    def fetch(self, target: Path, report: ReportBytes, cancelled: threading.Event) -> Checkpoint:
        """Fetch and check the files; see `Content.fetch`."""
        before_bytes = 0
        with _Requests(self._source) as requests:
            for file in self._files:

                def report_file(done_bytes: int, before_bytes: int = before_bytes) -> None:
                    report(before_bytes + done_bytes)

                self._fetch_file(requests, file, target / file.name, report_file, cancelled)
                before_bytes += file.size_bytes
        # A pickle is only ever mentioned, never fetched.
        names = [file.name for file in self._files if file.name not in COMPANION_FILES]
        return Checkpoint({name: target / name for name in (*names, *self._pickles)}, read_companions(target))

    def _fetch_file(
        self, requests: "_Requests", file: _File, path: Path, report: ReportBytes, cancelled: threading.Event
    ) -> None:
        """Fetch one file, going on where a broken attempt ended; raises DigestMismatchError for other bytes."""
        options = self._source.options
        done_bytes, hashes = 0, _Hashes(file)
        problem = ""
        with path.open("xb") as target:
            for attempt in range(options.num_attempts):
                if attempt:
                    cancelled.wait(options.backoff_s * 2 ** (attempt - 1))
                stop_if(cancelled)
                try:
                    for data in requests.file(self._commit, file, done_bytes):
                        stop_if(cancelled)
                        done_bytes += len(data)
                        if done_bytes > file.size_bytes:
                            raise DigestMismatchError(file.path, "more bytes than the commit says", hashes.expected)
                        with no_room_is_a_quota(f"import of {self._source.key}"):
                            target.write(data)
                        hashes.update(data)
                        report(done_bytes)
                    problem = f"{file.path} ended after {done_bytes} of {file.size_bytes} bytes"
                except SourceUnavailableError as exc:
                    problem = str(exc)
                if done_bytes == file.size_bytes:
                    hashes.check()
                    return
        raise requests.unavailable(problem)


class _Requests:
    """Requests to one hub: where they may lead, what failures mean, and who sees the token."""

    def __init__(self, source: HubSource) -> None:
        self._source = source
        self._options = source.options
        self._client = httpx2.Client(timeout=self._options.timeout_s, follow_redirects=False)

    def __enter__(self) -> "_Requests":
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def unavailable(self, problem: str) -> SourceUnavailableError:
        """What to raise for a failure that may pass."""
        message = f"{self._source.key} cannot be fetched now: {problem}; try again later"
        return SourceUnavailableError(message, retry_after_s=RETRY_AFTER_S)

    def model_info(self) -> ModelInfo:
        """What the hub says about the repository at the revision."""
        source = self._source
        path = f"{self._options.endpoint}/api/models/{source.repo_id}"
        if source.revision:
            path += f"/revision/{quote(source.revision, safe='')}"
        if is_offline_mode():
            raise self.unavailable("HF_HUB_OFFLINE is set for this store")
        body = bytearray()
        with self._get(f"{path}?blobs=true", {}) as response:
            for data in response.iter_bytes():
                body += data
                if len(body) > MAX_INFO_BYTES:
                    raise SourceForbiddenError(f"{source.key}: the hub's answer has more than {MAX_INFO_BYTES} bytes")
        told = {name: response.headers[name] for name in _ERROR_HEADERS if name in response.headers}
        whole = httpx2.Response(response.status_code, headers=told, content=bytes(body), request=response.request)
        try:
            hf_raise_for_status(whole)
            return ModelInfo(**whole.json())  # type: ignore[no-untyped-call]
        except (RepositoryNotFoundError, RevisionNotFoundError, GatedRepoError) as exc:
            # A private repository looks like one that does not exist; nothing of the answer is passed on.
            raise SourceNotFoundError(f"{source.key} not found, or not for this store's token", source.key) from exc
        except HfHubHTTPError as exc:
            raise self.unavailable(f"HTTP {response.status_code}") from exc
        except (ValueError, TypeError, KeyError, AttributeError) as exc:
            raise self.unavailable("the hub's answer is not what it should be") from exc

    def file(self, commit: str, file: _File, offset: int) -> Iterator[bytes]:
        """A file's bytes from an offset on."""
        url = hf_hub_url(self._source.repo_id, file.path, revision=commit, endpoint=self._options.endpoint)
        headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={offset}-"} if offset else {})
        with self._get(url, headers) as response:
            if response.status_code in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN, HTTPStatus.NOT_FOUND):
                raise SourceNotFoundError(f"{file.path} of {self._source.key} cannot be fetched", self._source.key)
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
        except httpx2.HTTPError as exc:
            raise self.unavailable(type(exc).__name__) from exc
        raise SourceForbiddenError(f"{self._source.key} redirects more than {MAX_REDIRECTS} times")

    def _checked_redirect(self, url: httpx2.URL, response: httpx2.Response) -> httpx2.URL:
        """Where a response leads, if that may be followed: never into the operator's own network."""
        try:
            target = url.join(response.headers["location"])
        except httpx2.InvalidURL as exc:
            raise SourceForbiddenError(f"{self._source.key} redirects to something that is no URL") from exc
        endpoint = httpx2.URL(self._options.endpoint)
        same = (target.scheme, target.host, target.port) == (endpoint.scheme, endpoint.host, endpoint.port)
        allowed = target.scheme == "https" and any(
            target.host == host or target.host.endswith("." + host) for host in self._options.redirect_hosts
        )
        if not same and not allowed:
            message = f"{self._source.key} redirects to {target.host!r}, which is not in hub_redirect_hosts"
            raise SourceForbiddenError(message)
        return target


class _Hashes:
    """What a file's bytes should be: SHA-256 where the hub knows it (LFS), git's own digest otherwise."""

    def __init__(self, file: _File) -> None:
        self._file = file
        self.expected = f"sha256:{file.sha256}" if file.sha256 else f"git:{file.git_sha1}"
        self._hash = hashlib.sha256() if file.sha256 else hashlib.sha1(b"blob %d\0" % file.size_bytes)

    def update(self, data: bytes) -> None:
        self._hash.update(data)

    def check(self) -> None:
        """Raises DigestMismatchError."""
        found = self.expected.partition(":")[0] + ":" + self._hash.hexdigest()
        if found != self.expected:
            raise DigestMismatchError(self._file.path, found, self.expected)
