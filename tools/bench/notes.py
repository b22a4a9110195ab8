"""Notes on targets that are missed: where the time goes and what was tried, by the key of the target's line."""

from collections.abc import Mapping

NOTES: Mapping[str, str] = {}
