"""One commit of a Hugging Face repository: an explicit list of files, every file's digest checked.

Bytes are only trusted when they are what that commit says.
"""

import hashlib
import re
import threading
from pathlib import Path

from huggingface_hub import ModelInfo

from hotslot.backoff import Backoff
from hotslot.errors import DigestMismatchError, QuotaExceededError, SourceNotFoundError, SourceUnavailableError
from hotslot.formats.companions import COMPANION_FILES, MAX_FILE_BYTES, read_companions
from hotslot.formats.file_names import CHECKPOINT_FILES, CONFIG_FILE, SHARD, SIGNATURE_FILE
from store_service.admission.admit import PICKLE_FILES, Checkpoint
from store_service.admission.shards import shard_names
from store_service.execution.full_disk import no_room_is_a_quota
from store_service.sources.hub.folder import HubFolder
from store_service.sources.hub.requests import HubFile, HubRequests
from store_service.sources.source import ReportBytes, no_adapter_message, stop_if

MAX_COMPANION_BYTES = 20 * 1024 * 1024
MAX_PAUSE_S = 30.0
"""Between two attempts at a file."""
_COMMIT = re.compile(r"[0-9a-f]{40}")


def resolve_commit(folder: HubFolder) -> "HubCommit":
    """Ask what a folder's revision stands for; raises as `Source.resolve`."""
    with HubRequests(folder) as requests:
        info = requests.model_info()
    commit = str(info.sha or "")
    if not _COMMIT.fullmatch(commit):
        raise requests.unavailable("the hub named no commit")
    found: dict[str, HubFile] = {}
    for sibling in info.siblings or ():
        name = sibling.rfilename.removeprefix(folder.prefix)
        if sibling.rfilename.startswith(folder.prefix) and _is_known(name):
            sha256 = sibling.lfs.sha256 if sibling.lfs is not None else ""
            found[name] = HubFile(name, sibling.rfilename, sibling.size or 0, sha256, sibling.blob_id or "")
    order = (*CHECKPOINT_FILES, *shard_names(found))
    files = [file for name in order if (file := found.get(name)) is not None]
    pickles = [name for name in PICKLE_FILES if name in found]
    if not files and not pickles:
        raise SourceNotFoundError(_nothing_there(folder, info), folder.key)
    # A tokenizer is read for the tokens that were added to it, which are mostly written elsewhere as well.
    companions = [file for name in (*COMPANION_FILES, SIGNATURE_FILE) if (file := found.get(name)) is not None]
    # Of a folder that is signed nothing is left out that may be signed.
    most_bytes = MAX_FILE_BYTES if SIGNATURE_FILE in found else MAX_COMPANION_BYTES
    files += [file for file in companions if file.size_bytes <= most_bytes]
    size_bytes = sum(file.size_bytes for file in files)
    if size_bytes > folder.max_bytes:
        message = f"{folder.key} has {size_bytes} bytes, at most {folder.max_bytes} are taken"
        raise QuotaExceededError(message, subject="max_adapter_bytes")
    return HubCommit(folder, commit, files, pickles)


def _is_known(name: str) -> bool:
    known = (*CHECKPOINT_FILES, *PICKLE_FILES, *COMPANION_FILES, SIGNATURE_FILE)
    return name in known or SHARD.fullmatch(name) is not None


def _nothing_there(folder: HubFolder, info: ModelInfo) -> str:
    names = [sibling.rfilename for sibling in info.siblings or ()]
    folders = [name.removesuffix(f"/{CONFIG_FILE}") for name in names if name.endswith(f"/{CONFIG_FILE}")]
    inside = [name for name in folders if name.startswith(folder.prefix)] or folders
    whole = [name for name in names if name.startswith(folder.prefix) and name.endswith(".safetensors")]
    at = f"@{folder.revision}" if folder.revision else ""
    return no_adapter_message(folder.key, inside, whole, f"hf:{folder.repo_id}{at}#{{}}")


class HubCommit:
    """The known files of one folder at one commit."""

    def __init__(self, folder: HubFolder, commit: str, files: list[HubFile], pickles: list[str]) -> None:
        self._folder = folder
        self._commit = commit
        self._files = files
        self._pickles = pickles
        self.origin = f"hf:{folder.repo_id}@{commit}" + (f"/{folder.prefix.rstrip('/')}" if folder.prefix else "")
        self.key = self.origin
        """A commit never changes."""
        self.size_bytes = sum(file.size_bytes for file in files)

    def fetch(self, target: Path, report: ReportBytes, cancelled: threading.Event) -> Checkpoint:
        """Fetch and check the files; see `FixedCheckpoint.fetch`."""
        before_bytes = 0
        with HubRequests(self._folder) as requests:
            for file in self._files:

                def report_file(done_bytes: int, before_bytes: int = before_bytes) -> None:
                    report(before_bytes + done_bytes)

                self._fetch_file(requests, file, target / file.name, report_file, cancelled)
                before_bytes += file.size_bytes
        # A pickle is only ever mentioned, never fetched.
        names = [file.name for file in self._files]
        return Checkpoint({name: target / name for name in (*names, *self._pickles)}, read_companions(target))

    def _fetch_file(
        self, requests: HubRequests, file: HubFile, path: Path, report: ReportBytes, cancelled: threading.Event
    ) -> None:
        """Fetch one file, going on where a broken attempt ended; raises DigestMismatchError for other bytes."""
        options = self._folder.options
        done_bytes, hashes = 0, _Hashes(file)
        problem = ""
        with path.open("xb") as target:
            for attempt in range(options.num_attempts):
                if attempt:
                    cancelled.wait(Backoff(options.backoff_s, MAX_PAUSE_S).pause_s(attempt - 1))
                stop_if(cancelled)
                try:
                    for data in requests.file(self._commit, file, done_bytes):
                        stop_if(cancelled)
                        done_bytes += len(data)
                        if done_bytes > file.size_bytes:
                            raise DigestMismatchError(file.path, "more bytes than the commit says", hashes.expected)
                        with no_room_is_a_quota(f"import of {self._folder.key}"):
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


class _Hashes:
    """Expected digest of a file: SHA-256 where the hub knows it (LFS), git's own digest otherwise."""

    def __init__(self, file: HubFile) -> None:
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
