"""Target of the fuzzer: a named function from bytes to an outcome, its seeds, and its structure-aware mutator."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from random import Random

from hotslot.errors import Violation


class OracleError(AssertionError):
    """Something was accepted, or refused, that should not have been, or not in this way."""


@dataclass(frozen=True, slots=True)
class FuzzOutcome:
    """End of one input; an input that is neither accepted nor refused with a type is a finding."""

    codes: frozenset[str]
    """Codes of the refusal; empty when the input was accepted."""

    @property
    def is_accepted(self) -> bool:
        """True if the input was taken."""
        return not self.codes


@dataclass(frozen=True)
class FuzzTarget:
    """One entry of the attack surface. Needs no fuzzing library."""

    name: str
    run: Callable[[bytes], FuzzOutcome]
    """Raises whatever admission lets escape, and OracleError."""
    mutate: Callable[[bytes, Random], bytes]
    """Another input of about the same structure; deterministic for a seeded generator."""
    seeds: Callable[[], list[bytes]]


def outcome_of(violations: Iterable[Violation]) -> FuzzOutcome:
    """The outcome for what was found, after checking that each violation tells its reader something."""
    codes = set()
    for violation in violations:
        if not (violation.code and violation.subject and violation.message and violation.message.isprintable()):
            raise OracleError(f"a violation that says too little: {violation!r}")
        codes.add(violation.code)
    return FuzzOutcome(frozenset(codes))


def require(condition: bool, problem: str) -> None:
    """Raise OracleError unless `condition` holds; `assert` would vanish under `-O`."""
    if not condition:
        raise OracleError(problem)
