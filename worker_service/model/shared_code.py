"""Seam between loading a model and sharing its compiled code with other workers. Without torch or a network."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Protocol

from hotslot.ids import Digest, digest_of

INDUCTOR_DIR = "inductor"
"""Folder of the cache directory that torch's compiler writes to."""


COMPILER = "compiler"
"""Fact with name and version of the C++ compiler; empty for a worker that has none."""


@dataclass(frozen=True, slots=True)
class CodeKey:
    """Everything that compiled code depends on, by name."""

    facts: Mapping[str, str]

    @property
    def is_open(self) -> bool:
        """Tell whether any compiler's code fits: a worker without one makes no code that could be unlike others'."""
        return self.facts.get(COMPILER) == ""

    @property
    def opened(self) -> "CodeKey":
        """Key of a worker that is like this one but for its compiler, of which it has none."""
        return replace(self, facts={**self.facts, COMPILER: ""})

    @property
    def digest(self) -> Digest:
        """Names the key to a store."""
        return digest_of(json.dumps(dict(self.facts), sort_keys=True).encode())

    def differences(self, other: Mapping[str, str]) -> list[str]:
        """Facts in which another key differs, for people; where there is no compiler, any that is named fits."""
        names = sorted(self.facts.keys() | other.keys())
        if self.is_open and other.get(COMPILER):
            names.remove(COMPILER)
        pairs = ((name, other.get(name, "nothing"), self.facts.get(name, "nothing")) for name in names)
        return [f"{name} is {theirs[:80]!r}, here {ours[:80]!r}" for name, theirs, ours in pairs if theirs != ours]


class SharedCode(Protocol):
    """Called from the thread that loads the model."""

    def bring(self, key: CodeKey, *, anew: bool = False) -> None:
        """Have others' code that fits this key in the cache directory, if there is any; never fails.

        `anew` takes the place of what is there, which was found not to be of use.
        """
        ...

    def settle(self, key: CodeKey, num_compiled: int) -> None:
        """Everything is compiled, so many graphs of it here; returns at once."""
        ...
