"""Getting a checkpoint into the store: upload and admit, dry run, import from a source."""

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TypeVar

from hotslot.clients.blobs import BROKEN_STREAM, BlobTransfer, RetryPolicy
from hotslot.clients.checkpoint import (
    CheckpointFile,
    FoundCheckpoint,
    checkpoint_files,
    file_digest,
    files_beside,
    find_checkpoint,
)
from hotslot.clients.rpc import Connection
from hotslot.clients.written_revision import WrittenRevision
from hotslot.codec import build, from_proto
from hotslot.contract.admission_warning import AdmissionWarning
from hotslot.contract.catalog import (
    AdmittedVersion,
    PushResult,
    TransferProgress,
    TransferStage,
    ValidationReport,
    Version,
)
from hotslot.errors import (
    BlobNotFoundError,
    DigestMismatchError,
    HotslotError,
    InternalError,
    InvalidAdapterError,
    SourceUnavailableError,
    Violation,
)
from hotslot.formats.file_names import CONFIG_FILE
from hotslot.ids import Digest
from hotslot.pb.hotslot.store.v1 import adapter_store_pb2 as pb
from hotslot.pb.hotslot.store.v1 import adapter_store_pb2_grpc as pb_grpc

OnProgress = Callable[[TransferProgress], None]
Answer = TypeVar("Answer")
Outcome = TypeVar("Outcome", bound=AdmittedVersion)
UploadedFile = Mapping[str, object]
"""Fields of the message of this name."""

ADMISSION_TIMEOUT_S = 300.0
IMPORT_TIMEOUT_S = 3600.0


class Admission:
    """The parts of the store's client that move whole checkpoints."""

    def __init__(
        self,
        connection: Connection,
        stub: "pb_grpc.AdapterStoreServiceAsyncStub",
        blobs: BlobTransfer,
        retry: RetryPolicy,
        written: WrittenRevision,
    ) -> None:
        self._connection = connection
        self._stub = stub
        self._blobs = blobs
        self._retry = retry
        self._written = written

    async def push(self, folder: Path, version: pb.CreateVersionRequest, on_progress: OnProgress) -> PushResult:
        """Upload a folder and admit it; see `StoreClient.push`."""
        files = await asyncio.to_thread(checkpoint_files, folder)
        with files_beside(folder) as beside:
            return await self._push((*files, *beside), version, on_progress)

    async def _push(
        self, files: tuple[CheckpointFile, ...], version: pb.CreateVersionRequest, on_progress: OnProgress
    ) -> PushResult:

        async def publish(uploaded: list[UploadedFile]) -> pb.CreateVersionResponse:
            on_progress(TransferProgress(TransferStage.PUBLISHING))
            request = build(pb.CreateVersionRequest, files=uploaded)
            request.MergeFrom(version)
            call = partial(self._connection.unary, timeout_s=ADMISSION_TIMEOUT_S)
            try:
                answer: pb.CreateVersionResponse = await self._written.after(call, self._stub.CreateVersion, request)
                return answer
            except InvalidAdapterError as exc:
                await self._complete_violations(exc, uploaded, version.base_model)
                raise

        response, uploaded_bytes = await self._uploaded(files, on_progress, publish)
        total_bytes = sum(file.size_bytes for file in files)
        return admitted(PushResult, response, uploaded_bytes=uploaded_bytes, total_bytes=total_bytes)

    async def _complete_violations(
        self, refused: InvalidAdapterError, files: list[UploadedFile], base_model: str
    ) -> None:
        """An error holds the violations that fit into its trailers; a dry run's answer holds all of them."""
        request = build(pb.ValidateAdapterRequest, files=files, base_model=base_model)
        try:
            response = await self._connection.unary(self._stub.ValidateAdapter, request, ADMISSION_TIMEOUT_S)
        except HotslotError:
            return  # The caller has the refusal already; this call could only have made it longer.
        report = report_from(response)
        if len(report.violations) > len(refused.violations):
            refused.violations = report.violations

    async def validate(self, folder: Path, base_model: str, on_progress: OnProgress) -> ValidationReport:
        """Upload what a folder holds and have it checked; see `StoreClient.validate`."""
        found = await asyncio.to_thread(find_checkpoint, folder)
        if not found.files:
            return refusal_of(found.violations)
        with files_beside(folder) as beside:
            return await self._validate(replace(found, files=(*found.files, *beside)), base_model, on_progress)

    async def _validate(self, found: FoundCheckpoint, base_model: str, on_progress: OnProgress) -> ValidationReport:

        async def check(uploaded: list[UploadedFile]) -> pb.ValidateAdapterResponse:
            on_progress(TransferProgress(TransferStage.VALIDATING))
            request = build(pb.ValidateAdapterRequest, files=uploaded, base_model=base_model)
            return await self._connection.unary(self._stub.ValidateAdapter, request, ADMISSION_TIMEOUT_S)

        try:
            response, _ = await self._uploaded(found.files, on_progress, check)
        except HotslotError:
            if found.violations:
                return refusal_of(found.violations)
            raise
        report = report_from(response)
        if not found.violations:
            return report
        # The store was not sent these files, and says no more than that they are missing.
        told = {violation.subject == CONFIG_FILE for violation in found.violations}
        others = (v for v in report.violations if v.code != "MISSING_FILE" or (v.subject == CONFIG_FILE) not in told)
        return refusal_of((*found.violations, *others))

    async def _uploaded(
        self,
        files: tuple[CheckpointFile, ...],
        on_progress: OnProgress,
        admit: Callable[[list[UploadedFile]], Awaitable[Answer]],
    ) -> tuple[Answer, int]:
        """Upload and admit; returns the answer and the bytes that had to be sent.

        The store says that it has files before it reads them again. A file that turns out to be gone or rotten then
        was discarded, and is sent once more.
        """
        uploaded, uploaded_bytes = await self._upload(files, on_progress)
        try:
            return await admit(uploaded), uploaded_bytes
        except (BlobNotFoundError, DigestMismatchError):
            uploaded, resent_bytes = await self._upload(files, on_progress)
            return await admit(uploaded), uploaded_bytes + resent_bytes

    async def _upload(
        self, files: tuple[CheckpointFile, ...], on_progress: OnProgress
    ) -> tuple[list[UploadedFile], int]:
        """Send what the store lacks; returns the files by digest and the bytes that had to be sent."""
        digests = await asyncio.to_thread(_digests, files, on_progress)
        missing = await self._blobs.missing(list(digests.values()))
        to_send = [file for file in files if digests[file] in missing]
        to_send_bytes = sum(file.size_bytes for file in to_send)
        sent_bytes = 0
        for file in to_send:

            def on_position(position: int, before: int = sent_bytes) -> None:
                on_progress(TransferProgress(TransferStage.UPLOADING, before + position, to_send_bytes))

            await self._blobs.upload(file, digests[file], on_position)
            sent_bytes += file.size_bytes
        return [{"path": file.path, "digest": digests[file]} for file in files], sent_bytes

    async def import_(
        self,
        source: Mapping[str, object],
        reference: str,
        base_model: str,
        labels: Mapping[str, str] | None,
        on_progress: OnProgress | None,
    ) -> Version:
        """Have the store import from a source, which is one field of the request."""
        named = {**source, "reference": reference, "base_model": base_model, "labels": labels or {}}
        return await self._follow_import(build(pb.ImportAdapterRequest, named), on_progress or ignore_progress)

    async def _follow_import(self, request: pb.ImportAdapterRequest, on_progress: OnProgress) -> Version:
        """Follow an import to its end; a broken stream re-attaches to it by the same request.

        A source that does not answer is no broken stream: the store has tried it several times, and says when to come
        back. Nor does it count against the import when a path cuts streams that are quiet for long, as they are while
        it waits, is checked or is published.
        """
        stalls, known_before = 0, self._written.value
        furthest = (pb.IMPORT_STAGE_UNSPECIFIED, -1)
        while True:
            told_s = math.inf
            try:
                async with aclosing(
                    self._connection.stream(self._stub.ImportAdapter, request, IMPORT_TIMEOUT_S)
                ) as stream:
                    async for message in stream:
                        told_s = min(told_s, time.monotonic())
                        if message.WhichOneof("event") == "version":
                            self._written.take(message.revision, known_before)
                            warnings = _warnings(message.warnings)
                            return replace(from_proto(Version, message.version), warnings=warnings)
                        # The store tells each caller first how far it is, whatever comes of it.
                        reached = (message.progress.stage, message.progress.done_bytes)
                        if reached > furthest:
                            furthest, stalls = reached, 0
                        on_progress(from_proto(TransferProgress, message.progress))
                raise InternalError("the import ended without a version; the store's log says why")
            except SourceUnavailableError:
                raise
            except BROKEN_STREAM:
                stood = time.monotonic() - told_s > self._retry.max_delay_s
                stalls = 0 if stood else stalls + 1
                if stalls > self._retry.max_stalls:
                    raise
                await asyncio.sleep(self._retry.delay_s(stalls))


def _digests(files: tuple[CheckpointFile, ...], on_progress: OnProgress) -> dict[CheckpointFile, Digest]:
    total_bytes = sum(file.size_bytes for file in files)
    done_bytes = 0

    def on_bytes(count: int) -> None:
        nonlocal done_bytes
        done_bytes += count
        on_progress(TransferProgress(TransferStage.HASHING, done_bytes, total_bytes))

    return {file: file_digest(file, on_bytes) for file in files}


def admitted(kind: type[Outcome], response: pb.CreateVersionResponse, **sizes: int) -> Outcome:
    """Outcome of a push or a publication, with what only its kind tells."""
    return kind(
        version=from_proto(Version, response.version),
        created=response.created,
        warnings=_warnings(response.warnings),
        revision=response.revision,
        **sizes,
    )


def report_from(message: pb.ValidateAdapterResponse) -> ValidationReport:
    """Admission's verdict, with its modules counted."""
    manifest = message.manifest
    return ValidationReport(
        valid=message.valid,
        violations=tuple(from_proto(Violation, violation) for violation in message.violations),
        digest=Digest(message.digest) if message.digest else None,
        base_model_digest=Digest(manifest.base_model_digest) if manifest.base_model_digest else None,
        max_rank=manifest.max_rank,
        dtype=manifest.dtype,
        num_modules=len(manifest.modules),
        weights_size_bytes=manifest.weights_size_bytes,
        warnings=_warnings(message.warnings),
    )


def refusal_of(violations: Sequence[Violation]) -> ValidationReport:
    """Report on a checkpoint of which nothing more is known than its violations."""
    return ValidationReport(False, tuple(violations))


def _warnings(messages: Iterable[pb.Warning]) -> tuple[AdmissionWarning, ...]:
    return tuple(from_proto(AdmissionWarning, message) for message in messages)


def ignore_progress(progress: TransferProgress) -> None:
    """Progress that a caller does not want to know."""
