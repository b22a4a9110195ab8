"""Errors of stored bytes: blobs, uploads, compiled code, and the store that has them."""

from collections.abc import Sequence
from typing import ClassVar

from hotslot.errors.details import Detail
from hotslot.errors.kinds import (
    ConflictError,
    HotslotError,
    NotFoundError,
    PreconditionError,
    RangeError,
    UnavailableError,
)


class BlobNotFoundError(NotFoundError, reason="BLOB_NOT_FOUND"):
    """Bytes that are not stored, or not for this tenant."""

    def __init__(self, digest: str) -> None:
        super().__init__(f"blob {digest} not found", digest)


class CompiledCodeNotFoundError(NotFoundError, reason="COMPILED_CODE_NOT_FOUND"):
    """A key that the store has no compiled code for."""

    def __init__(self, key: str) -> None:
        super().__init__(f"no compiled code is kept for key {key}", key)


class UploadBusyError(ConflictError, reason="UPLOAD_BUSY"):
    """Another stream is writing the same blob."""

    def __init__(self, digest: str) -> None:
        super().__init__(f"another stream is uploading {digest}; wait for it, then ask GetWriteStatus")


class CompiledCodeMismatchError(PreconditionError, reason="COMPILED_CODE_MISMATCH"):
    """An archive of code that was compiled for something else than this worker."""

    def __init__(self, what: str, differences: Sequence[str]) -> None:
        super().__init__(
            f"{what} was compiled for something else: {'; '.join(differences)}; compile it here instead", what
        )


class DigestMismatchError(HotslotError, reason="DIGEST_MISMATCH", code="DATA_LOSS"):
    """Bytes that are not what their digest says."""

    carries: ClassVar = {"found": Detail.TEXT, "expected": Detail.TEXT}

    def __init__(self, what: str, found: str, expected: str) -> None:
        super().__init__(
            f"{what}: the bytes have digest {found}, expected {expected}; they were discarded, fetch them again"
        )
        self.found = found
        self.expected = expected


class BlobLostError(DigestMismatchError, reason="BLOB_LOST"):
    """A published blob of which no whole copy is left."""

    def __init__(self, digest: str, problems: Sequence[str]) -> None:
        tried = "; ".join(problems) or "no object storage has it, and its source does not pin its content"
        HotslotError.__init__(self, f"blob {digest} is lost: {tried}; push or import the adapter again")
        self.found = "no whole copy"
        self.expected = digest


class CompiledCodeRefusedError(HotslotError, reason="COMPILED_CODE_REFUSED", code="DATA_LOSS"):
    """An archive of compiled code that is damaged, not sealed with the secret, or reaches out of its place."""

    def __init__(self, what: str, problem: str) -> None:
        super().__init__(f"{what}: {problem}; nothing of it is used, make it again")


class BadOffsetError(RangeError, reason="BAD_OFFSET"):
    """An offset that does not continue what is there."""

    carries: ClassVar = {"found": Detail.NUMBER, "expected": Detail.NUMBER}

    def __init__(self, what: str, found: int, expected: int) -> None:
        super().__init__(f"{what}: offset {found} does not fit, expected {expected}")
        self.found = found
        self.expected = expected


class StoreUnavailableError(UnavailableError, reason="STORE_UNAVAILABLE"):
    """The store, or its catalog, cannot be reached."""


class StoreBusyError(StoreUnavailableError, reason="STORE_BUSY"):
    """The store has more calls than it can answer in time."""
