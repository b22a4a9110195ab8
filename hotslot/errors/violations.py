"""Single things that are wrong with a request or with a checkpoint, as errors list them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class FieldViolation:
    """One field of a request that is wrong."""

    field: str
    description: str


@dataclass(frozen=True, slots=True)
class Violation:
    """One thing that is wrong with a checkpoint."""

    code: str
    """Stable and machine-readable, for example `SHAPE_MISMATCH`."""
    subject: str
    """The tensor, the config field or the file."""
    found: str
    expected: str
    message: str
    """One sentence for people, complete by itself."""

    @classmethod
    def of(cls, code: str, subject: str, found: str, expected: str, problem: str) -> "Violation":
        """Compose the sentence from its parts; long or unprintable text is shortened and escaped."""
        subject, found, expected = (text.encode("unicode_escape").decode()[:240] for text in (subject, found, expected))
        subject = subject or "''"
        return cls(code, subject, found, expected, f"{subject}: {problem}: found {found}, expected {expected}")


def grouped(violations: Sequence[Violation]) -> list[Violation]:
    """The violations with those that differ in their subject alone as one, in the order of the first of each."""
    groups: dict[tuple[str, str], list[Violation]] = {}
    for violation in violations:
        problem = violation.message.removeprefix(f"{violation.subject}: ")
        groups.setdefault((violation.code, problem), []).append(violation)
    return [_as_one(problem, group) for (_, problem), group in groups.items()]


def _as_one(problem: str, group: Sequence[Violation]) -> Violation:
    first = group[0]
    if len(group) == 1:
        return first
    subject = f"{first.subject} and {len(group) - 1} more"
    named = ", ".join(violation.subject for violation in group[:3]) + ", …" * (len(group) > 3)
    return replace(first, subject=subject, message=f"{len(group)} times ({named}): {problem}")
