"""Findings of checks: each one line that says what was found, whether that will do, and otherwise what to do."""

from dataclasses import dataclass
from enum import StrEnum


class Level(StrEnum):
    """Weight of a finding."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True, slots=True)
class Finding:
    """Outcome of one check."""

    check: str
    """Subject of the check: the same word for the same check."""
    level: Level
    found: str
    advice: str = ""
    """Action that mends it; empty where all is well."""

    def line(self) -> str:
        """The finding as people read it."""
        return f"{self.level.value:<5} {self.check:<14} {self.found}" + (f"; {self.advice}" if self.advice else "")


def ok(check: str, found: str) -> Finding:
    """A finding with which all is well."""
    return Finding(check, Level.OK, found)


def warn(check: str, found: str, advice: str) -> Finding:
    """A finding that leaves things working."""
    return Finding(check, Level.WARN, found, advice)


def fail(check: str, found: str, advice: str) -> Finding:
    """A finding with which something does not work."""
    return Finding(check, Level.FAIL, found, advice)


def failures(found: list[Finding]) -> list[Finding]:
    """The findings with which something does not work."""
    return [one for one in found if one.level is Level.FAIL]
