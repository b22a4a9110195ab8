"""Certificates of tests: authorities, what they sign, and the files that a party reads, which a test rotates."""

from pathlib import Path

from hotslot.local.authority import Authority
from hotslot.local.identity_files import LOCAL_HOSTS
from hotslot.rpc.security import ChannelSecurity
from shared.transport_settings import Transport


class Party:
    """One server's or client's files: its certificate and key, and the bundle that it trusts."""

    def __init__(
        self, folder: Path, name: str, *, hosts: tuple[str, ...] = LOCAL_HOSTS, uris: tuple[str, ...] = ()
    ) -> None:
        self.folder = folder / name
        self.name, self.hosts, self.uris = name, hosts, uris
        self.cert_file, self.key_file = self.folder / f"{name}.crt", self.folder / f"{name}.key"
        self.bundle_file = self.folder / "bundle.crt"

    def certify(self, authority: Authority) -> None:
        """Get a new certificate."""
        authority.issue(self.name, self.hosts, self.uris, folder=self.folder)

    def trust(self, *authorities: Authority) -> None:
        """Trust these alone."""
        self.folder.mkdir(exist_ok=True)
        new = self.folder / "bundle.new"
        new.write_bytes(b"".join(authority.ca_file.read_bytes() for authority in authorities))
        new.replace(self.bundle_file)

    def transport(self, *, mutual: bool = True, health: str = "", insecure: bool = False) -> Transport:
        """Transport of its listener."""
        return Transport(self.cert_file, self.key_file, self.bundle_file if mutual else None, insecure, health)

    def security(self, *, mutual: bool = True, **more: object) -> ChannelSecurity:
        """Security of its calls."""
        own = (self.cert_file, self.key_file) if mutual else (None, None)
        return ChannelSecurity(self.bundle_file, *own, **more)  # type: ignore[arg-type]


def party(folder: Path, name: str, authority: Authority, **more: object) -> Party:
    """A party that the authority certifies, and that trusts it."""
    made = Party(folder, name, **more)  # type: ignore[arg-type]
    made.folder.mkdir(parents=True)
    made.certify(authority)
    made.trust(authority)
    return made
