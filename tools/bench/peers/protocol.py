"""Messages between the benchmark and a peer's process: lines of JSON. Standard library alone."""

import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol, runtime_checkable


@dataclass(frozen=True)
class PromptRow:
    """One prompt, and the adapter that answers it; None is the base."""

    prompt: list[int]
    adapter: int | None = None


@dataclass(frozen=True)
class TimedAnswer:
    """Times of a batch's tokens, in seconds from when its rows were handed over, and the tokens."""

    times_s: list[list[float]]
    token_ids: list[list[int]] = field(default_factory=list)


@dataclass(frozen=True)
class PeerSettings:
    """Settings that all peers get alike."""

    model: str
    """Folder of the Hugging Face model."""
    gguf: str
    """File of the same model for llama.cpp."""
    adapters: list[str]
    """Folders in PEFT's form, all of one rank; a row names one by its place."""
    rank: int
    threads: int
    max_rows: int
    max_tokens: int
    """Longest prompt and answer together."""
    cache_dir: str
    """Place of compiled code between runs."""
    options: dict[str, str] = field(default_factory=dict)
    """Options of one peer alone."""


class Peer(Protocol):
    """One engine."""

    def versions(self) -> dict[str, str]:
        """Names and versions of the engine and of what it computes with."""
        ...

    def generate(self, rows: list[PromptRow], num_tokens: int) -> TimedAnswer:
        """Answer all rows at once, greedily, with exactly so many tokens each."""
        ...


@runtime_checkable
class Closing(Protocol):
    """A peer that has something to end."""

    def close(self) -> None:
        """End it."""
        ...


def serve(make: Callable[[PeerSettings], Peer]) -> None:
    """Run a peer's process: settings on the first line, then a batch a line, until standard input ends.

    What libraries print goes to standard error; standard output is the protocol's alone.
    """
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def say(message: dict[str, Any]) -> None:
        out.write(json.dumps(message) + "\n")
        out.flush()

    began_s = time.perf_counter()
    peer = make(PeerSettings(**json.loads(sys.stdin.readline())))
    say({"versions": peer.versions(), "started_s": time.perf_counter() - began_s})
    for line in sys.stdin:
        asked = json.loads(line)
        say(asdict(peer.generate([PromptRow(**row) for row in asked["rows"]], asked["num_tokens"])))
    if isinstance(peer, Closing):
        peer.close()
    # An engine's threads may outlive their use.
    os._exit(0)
