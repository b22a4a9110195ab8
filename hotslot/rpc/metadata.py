"""Metadata of calls, where a key says one thing or nothing."""

from collections.abc import Collection, Iterable

from hotslot.errors import FieldViolation, InvalidRequestError


def single_values(metadata: Iterable[tuple[str, str | bytes]], keys: Collection[str]) -> dict[str, str]:
    """Values of those keys that a call's metadata has; raises InvalidRequestError for a key that comes again."""
    found: dict[str, list[str | bytes]] = {}
    for key, value in metadata:
        if key in keys:
            found.setdefault(key, []).append(value)
    for key, values in found.items():
        if len(values) > 1:
            raise InvalidRequestError([FieldViolation(key, f"found {len(values)} values, expected one")])
    return {
        key: value if isinstance(value, str) else value.decode("ascii", "replace") for key, (value,) in found.items()
    }
