"""Checkpoints in Hugging Face repositories: one commit, an explicit list of files, every file's digest checked.

The hub's library says what a revision stands for and what its files should be; the bytes are fetched and digested
here, because what arrives is only trusted when it is what that commit says.
"""

import hashlib
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import httpx2
from huggingface_hub import HfApi, hf_hub_url
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from shared.errors import (
    DigestMismatchError,
    FieldViolation,
    InvalidRequestError,
    QuotaExceededError,
    SourceForbiddenError,
    SourceNotFoundError,
    SourceUnavailableError,
)
from store_service.admission.admit import PICKLE_FILES, WEIGHTS_FILES, Checkpoint
from store_service.admission.config import CONFIG_FILE
from store_service.blobs.files import no_room_is_a_quota
from store_service.sources.source import Fetched, ReportBytes, stop_if

KNOWN_FILES = (CONFIG_FILE, *WEIGHTS_FILES)
MAX_REDIRECTS = 5
NUM_ATTEMPTS = 4
RETRY_AFTER_S = 5.0
_REPO_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95}")
_REVISION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,254}")
_SUBFOLDER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*(?:/[A-Za-z0-9_][A-Za-z0-9._-]*)*")
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class HubOptions:
    """How this store talks to the hub."""

    endpoint: str = "https://huggingface.co"
    token: str = ""
    """Sent to the endpoint only, never to where it redirects, and in no message."""
    redirect_hosts: tuple[str, ...] = ("huggingface.co", "hf.co")
    """Hosts, with their subdomains, from which the endpoint may have files fetched."""
    timeout_s: float = 30.0
    """Without a byte."""
    backoff_s: float = 0.5
    """Before the second attempt; twice as long before each further one."""


@dataclass(frozen=True, slots=True)
class _File:
    name: str
    path: str
    size_bytes: int
    sha256: str
    git_sha1: str


class HubSource:
    """One folder of one repository at one revision."""

    def __init__(self, repo_id: str, revision: str, subfolder: str, options: HubOptions, max_bytes: int) -> None:
        problems = [
            FieldViolation(f"hub.{name}", f"found {value[:80]!r}, expected {expected}")
            for name, value, pattern, expected in (
                ("repo_id", repo_id, _REPO_ID, "org/name"),
                ("revision", revision or "main", _REVISION, "a branch, tag or commit"),
                ("subfolder", subfolder or "x", _SUBFOLDER, "a folder in the repository"),
            )
            if not pattern.fullmatch(value) or ".." in value
        ]
        if problems:
            raise InvalidRequestError(problems)
        self._repo_id = repo_id
        self._revision = revision
        self._prefix = f"{subfolder}/" if subfolder else ""
        self._options = options
        self._max_bytes = max_bytes

    @property
    def key(self) -> str:
        """Repository, revision and folder as they were named."""
        return f"hf:{self._repo_id}@{self._revision}/{self._prefix}"

    def fetch(self, target: Path, report: ReportBytes, cancelled: threading.Event) -> Fetched:
        """Resolve the revision, then fetch and check the known files; see `Source.fetch`."""
        commit, found = self._list_files()
        files = [file for name in KNOWN_FILES if (file := found.get(name)) is not None]
        pickles = [name for name in PICKLE_FILES if name in found]
        if not files and not pickles:
            raise SourceNotFoundError(f"{self.key} has neither {CONFIG_FILE} nor weights", self.key)
        total_bytes = sum(file.size_bytes for file in files)
        if total_bytes > self._max_bytes:
            message = f"{self.key} has {total_bytes} bytes, at most {self._max_bytes} are taken"
            raise QuotaExceededError(message, subject="max_adapter_bytes")
        done_bytes = 0
        with httpx2.Client(timeout=self._options.timeout_s, follow_redirects=False) as client:
            for file in files:
                report_file = partial(_report_part, report, done_bytes, total_bytes)
                self._fetch_file(client, commit, file, target / file.name, report_file, cancelled)
                done_bytes += file.size_bytes
        paths = {file.name: target / file.name for file in files} | {name: target / name for name in pickles}
        origin = f"hf:{self._repo_id}@{commit}" + (f"/{self._prefix.rstrip('/')}" if self._prefix else "")
        return Fetched(Checkpoint(paths), origin)

    def _list_files(self) -> tuple[str, dict[str, _File]]:
        """The commit that the revision stands for, and the folder's files by name."""
        api = HfApi(endpoint=self._options.endpoint, token=self._options.token or False)
        try:
            info = api.model_info(
                self._repo_id,
                revision=self._revision or None,
                timeout=self._options.timeout_s,
                files_metadata=True,
            )
        except (RepositoryNotFoundError, RevisionNotFoundError, GatedRepoError) as exc:
            # A private repository looks like one that does not exist; nothing of the answer is passed on.
            raise SourceNotFoundError(f"{self.key} not found, or not for this store's token", self.key) from exc
        except HFValidationError as exc:
            raise InvalidRequestError([FieldViolation("hub", "is not a repository's name")]) from exc
        except (HfHubHTTPError, OfflineModeIsEnabled, httpx2.HTTPError, OSError, ValueError) as exc:
            raise self._unavailable(type(exc).__name__) from exc
        commit = str(info.sha or "")
        if not _COMMIT.fullmatch(commit):
            raise self._unavailable("the hub named no commit")
        files: dict[str, _File] = {}
        for sibling in info.siblings or ():
            if not sibling.rfilename.startswith(self._prefix):
                continue
            name = sibling.rfilename.removeprefix(self._prefix)
            if name in KNOWN_FILES or name in PICKLE_FILES:
                sha256 = sibling.lfs.sha256 if sibling.lfs is not None else ""
                files[name] = _File(name, sibling.rfilename, sibling.size or 0, sha256, sibling.blob_id or "")
        return commit, files

    def _fetch_file(
        self,
        client: httpx2.Client,
        commit: str,
        file: _File,
        path: Path,
        report: Callable[[int], None],
        cancelled: threading.Event,
    ) -> None:
        """Fetch one file, going on where a broken attempt ended; raises DigestMismatchError for other bytes."""
        done_bytes, hashes = 0, _Hashes(file)
        with path.open("xb") as target:
            for attempt in range(NUM_ATTEMPTS):
                try:
                    for data in self._stream(client, commit, file, done_bytes):
                        stop_if(cancelled)
                        done_bytes += len(data)
                        if done_bytes > file.size_bytes:
                            raise DigestMismatchError(file.path, "more bytes than the commit says", hashes.expected)
                        with no_room_is_a_quota(f"import of {self.key}"):
                            target.write(data)
                        hashes.update(data)
                        report(done_bytes)
                    if done_bytes == file.size_bytes:
                        hashes.check()
                        return
                except (httpx2.HTTPError, SourceUnavailableError) as exc:
                    if attempt + 1 == NUM_ATTEMPTS:
                        raise self._unavailable(str(exc) or type(exc).__name__) from exc
                cancelled.wait(self._options.backoff_s * 2**attempt)
                stop_if(cancelled)
        raise self._unavailable(f"{file.path} ended after {done_bytes} of {file.size_bytes} bytes")

    def _stream(self, client: httpx2.Client, commit: str, file: _File, offset: int) -> Any:
        """The file's bytes from an offset on."""
        url = httpx2.URL(hf_hub_url(self._repo_id, file.path, revision=commit, endpoint=self._options.endpoint))
        headers = {"Accept-Encoding": "identity"}
        if self._options.token:
            headers["Authorization"] = f"Bearer {self._options.token}"
        if offset:
            headers["Range"] = f"bytes={offset}-"
        for _ in range(MAX_REDIRECTS + 1):
            with client.stream("GET", url, headers=headers) as response:
                if response.has_redirect_location:
                    url = self._checked_redirect(url, response)
                    headers.pop("Authorization", None)
                    continue
                if response.status_code in (401, 403, 404):
                    raise SourceNotFoundError(f"{file.path} of {self.key} cannot be fetched", self.key)
                if response.status_code not in (200, 206):
                    raise self._unavailable(f"HTTP {response.status_code}")
                skip = offset if response.status_code == 200 else 0
                for data in response.iter_raw():
                    skipped, skip = min(skip, len(data)), max(0, skip - len(data))
                    if data[skipped:]:
                        yield data[skipped:]
                return
        raise SourceForbiddenError(f"{self.key} redirects more than {MAX_REDIRECTS} times")

    def _checked_redirect(self, url: httpx2.URL, response: httpx2.Response) -> httpx2.URL:
        """Where a response leads, if files may be fetched from there: never into the operator's own network."""
        target = url.join(response.headers["location"])
        endpoint = httpx2.URL(self._options.endpoint)
        same = (target.scheme, target.host, target.port) == (endpoint.scheme, endpoint.host, endpoint.port)
        allowed = target.scheme == "https" and any(
            target.host == host or target.host.endswith("." + host) for host in self._options.redirect_hosts
        )
        if not same and not allowed:
            raise SourceForbiddenError(f"{self.key} redirects to {target.host!r}, which is not in hub_redirect_hosts")
        return target

    def _unavailable(self, problem: str) -> SourceUnavailableError:
        return SourceUnavailableError(
            f"{self.key} cannot be fetched now: {problem}; try again later", retry_after_s=RETRY_AFTER_S
        )


def _report_part(report: ReportBytes, before_bytes: int, total_bytes: int, done_bytes: int) -> None:
    report(before_bytes + done_bytes, total_bytes)


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
