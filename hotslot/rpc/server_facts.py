"""Facts that a server tells beside its answer to a health check: its release, and its clock."""

import time
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

VERSION_KEY = "hotslot-version"
CLOCK_KEY = "hotslot-clock-ms"
"""Milliseconds since 1970, as the server's machine has them."""
UNKNOWN_VERSION = "0"


@dataclass(frozen=True, slots=True)
class ServerFacts:
    """Facts about a server; a server of an earlier release tells none."""

    version: str = ""
    clock_s: float | None = None
    """Seconds since 1970."""

    def to_metadata(self) -> tuple[tuple[str, str], ...]:
        """Trailing metadata of an answer."""
        clock = () if self.clock_s is None else ((CLOCK_KEY, str(round(self.clock_s * 1e3))),)
        return ((VERSION_KEY, self.version), *clock)

    @classmethod
    def from_metadata(cls, metadata: Iterable[tuple[str, str | bytes]] | None) -> "ServerFacts":
        """Facts in trailing metadata; what cannot be read is left out."""
        found = {key: value for key, value in metadata or () if isinstance(value, str)}
        clock = found.get(CLOCK_KEY, "")
        return cls(found.get(VERSION_KEY, ""), int(clock) / 1e3 if clock.isdecimal() else None)


def facts_now() -> ServerFacts:
    """Facts about this process."""
    return ServerFacts(installed_version(), time.time())


def installed_version() -> str:
    """The installed version; `0` in a folder that nothing was installed from."""
    try:
        return version("hotslot")
    except PackageNotFoundError:
        return UNKNOWN_VERSION
