"""The seam to where published blobs are kept, and to the files that were uploaded but not admitted yet.

Everything here blocks: call it from a thread, never on the event loop.
"""

from pathlib import Path
from typing import BinaryIO, Protocol, TypeAlias

from hotslot.ids import Digest, TenantId

BlobKey: TypeAlias = tuple[TenantId, Digest]
"""Whose blob, and which."""


class Stage(Protocol):
    """A blob while it is written; invisible until it is published."""

    def reserve(self, size_bytes: int) -> None:
        """Make sure of room before anything is written; raises QuotaExceededError."""

    def write(self, data: bytes | memoryview) -> object:
        """Append; raises QuotaExceededError when there is no room."""

    def digest(self) -> Digest:
        """Of everything that was written so far."""

    def publish(self, digest: Digest, size_bytes: int) -> None:
        """Make it durable and visible under its digest; raises DigestMismatchError when it is something else.

        Also raises QuotaExceededError and StoreUnavailableError; then nobody was told that it is there.
        """

    def discard(self) -> None:
        """Forget it; harmless after `publish`."""


class BlobStore(Protocol):
    """Published blobs, by tenant: one tenant's are neither visible nor shared with another's."""

    def stage(self, tenant: TenantId) -> Stage:
        """Begin a new blob."""

    def open(self, tenant: TenantId, digest: Digest) -> tuple[BinaryIO, int]:
        """A blob's bytes for reading, and their number; raises BlobNotFoundError when they are not on this machine."""

    def contains(self, tenant: TenantId, digest: Digest) -> bool:
        """Whether a blob is on this machine."""

    def keep(self, tenant: TenantId, digest: Digest) -> None:
        """Somebody is about to read this blob: it stays on this machine for a while."""

    def delete(self, tenant: TenantId, digest: Digest) -> None:
        """Remove a blob everywhere; harmless when it is not there. Readers that hold it open can finish."""

    def digests(self) -> list[BlobKey]:
        """All blobs, for collecting those that nobody refers to."""


class Upload(Protocol):
    """One stream's hold on an upload; nobody else can write the same file meanwhile."""

    @property
    def committed_size(self) -> int:
        """Bytes received, of this stream and of earlier ones."""

    @property
    def is_complete(self) -> bool:
        """Whether all bytes are there and verified."""

    def write(self, data: bytes) -> None:
        """Append; raises QuotaExceededError beyond the declared size, or when there is no room."""

    def finish(self) -> None:
        """Verify and keep; raises DigestMismatchError, after which the upload is gone."""

    def close(self) -> None:
        """Let go; what was received is kept for whoever continues."""


class UploadStore(Protocol):
    """Files on their way to admission, by tenant."""

    def begin(self, tenant: TenantId, digest: Digest, size_bytes: int) -> Upload:
        """Take or continue an upload; raises UploadBusyError and QuotaExceededError."""

    def status(self, tenant: TenantId, digest: Digest) -> tuple[int, bool]:
        """Bytes received and whether complete; (0, False) for an unknown upload."""

    def path(self, tenant: TenantId, digest: Digest) -> Path:
        """A complete upload's file, which never changes; asking keeps it for longer. Raises BlobNotFoundError."""

    def verified_path(self, tenant: TenantId, digest: Digest) -> Path:
        """`path`, with every byte compared with the digest just now.

        Raises BlobNotFoundError, and DigestMismatchError where the disk changed them, after which the upload is gone.
        """
