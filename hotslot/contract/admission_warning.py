"""Warnings of admission: facts about a checkpoint that its owner should hear of, though it is admitted."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class AdmissionWarning:
    """One thing about a checkpoint that is no reason to refuse it."""

    code: str
    """Stable, for example "NO_EFFECT"."""
    message: str
    """One sentence for people, complete by itself."""
