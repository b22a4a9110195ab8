"""Seam between loading a model and sharing its compiled code with other workers. Without torch or a network."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from hotslot.ids import Digest, digest_of

INDUCTOR_DIR = "inductor"
"""Folder of the cache directory that torch's compiler writes to."""


@dataclass(frozen=True, slots=True)
class CodeKey:
    """Everything that compiled code depends on, by name."""

    facts: Mapping[str, str]

    @property
    def digest(self) -> Digest:
        """Names the key to a store."""
        return digest_of(json.dumps(dict(self.facts), sort_keys=True).encode())

    def differences(self, other: Mapping[str, str]) -> list[str]:
        """Facts in which another key differs, for people."""
        names = sorted(self.facts.keys() | other.keys())
        pairs = ((name, other.get(name, "nothing"), self.facts.get(name, "nothing")) for name in names)
        return [f"{name} is {theirs[:80]!r}, here {ours[:80]!r}" for name, theirs, ours in pairs if theirs != ours]


class SharedCode(Protocol):
    """Called from the thread that loads the model."""

    def bring(self, key: CodeKey) -> None:
        """Have others' code for this key in the cache directory, if there is any; never fails."""
        ...

    def settle(self, key: CodeKey, num_compiled: int) -> None:
        """Everything is compiled, so many graphs of it here; returns at once."""
        ...
