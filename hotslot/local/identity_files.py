"""Files that a deployment of `hotslot up` is known by, and knows its callers by: their places in its data folder."""

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from hotslot.rpc.security import ChannelSecurity

FOLDER = "identity"
LOCAL_HOSTS = ("localhost", "127.0.0.1", "::1")
"""Names under which this machine calls itself."""
SECRETS = (".key", ".token", ".json", ".secret")
"""Ends of the names of files that their owner alone reads."""
USER, WORKER, GATEWAY = "user", "worker", "gateway"
"""Principals, each with a token."""
WORKER_NAME = "worker.hotslot"
"""Name in the certificates of workers, and in no other: the store's is not taken for one."""


class Renewal(StrEnum):
    """Something that can be asked to be renewed."""

    CERTIFICATES = "certificates"
    AUTHORITY = "authority"


@dataclass(frozen=True, slots=True)
class IdentityFiles:
    """Places of the files; only their owner reads the folder."""

    folder: Path

    @property
    def trusted_file(self) -> Path:
        """Authorities that certificates must lead to: one, or two while they change."""
        return self.folder / "trusted.crt"

    @property
    def principals_file(self) -> Path:
        """Principals who may call, with hashes of their tokens."""
        return self.folder / "principals.json"

    @property
    def pool_secret_file(self) -> Path:
        """Secret with which workers sign what they write into the embedded Valkey."""
        return self.folder / "pool.secret"

    @property
    def request_file(self) -> Path:
        """Request to renew, which a running `hotslot up` takes up and removes."""
        return self.folder / "renew"

    def authority_folder(self, number: int) -> Path:
        """Folder of an authority; the one with the largest number signs."""
        return self.folder / f"authority-{number}"

    def cert_file(self, process: str) -> Path:
        """Certificate of a process."""
        return self.folder / f"{process}.crt"

    def key_file(self, process: str) -> Path:
        """Key of that certificate."""
        return self.folder / f"{process}.key"

    def token_file(self, principal: str) -> Path:
        """Token of a principal."""
        return self.folder / f"{principal}.token"

    @property
    def probes(self) -> ChannelSecurity:
        """Security of health checks, which need no token."""
        return ChannelSecurity(self.trusted_file, worker_name=WORKER_NAME)

    @property
    def user(self) -> ChannelSecurity:
        """Security of the user's own calls."""
        return ChannelSecurity(self.trusted_file, worker_name=WORKER_NAME, token_file=self.token_file(USER))


def identity_files(data_dir: Path) -> IdentityFiles:
    """The files of a data folder."""
    return IdentityFiles(data_dir / FOLDER)
