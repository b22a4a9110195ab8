"""Objects of calls: the names and digests in requests and answers, and nothing else of them.

Fields are taken by their paths, so that a prompt, a token or a label never comes into a log, whatever a message gains.
"""

from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor

OF_REQUESTS = (
    "reference",
    "version.reference",
    "adapter",
    "name",
    "tag",
    "digest",
    "base_model",
    "base_model.name",
    "base_model.digest",
    "alias",
    "key",
    "worker_id",
    "tenants",
    "all_tenants",
    "hub.repo_id",
    "hub.revision",
    "directory.path",
    "adapters.reference",
    "request.adapters.reference",
)
"""Paths of fields, through repeated ones too, that name what a request is about."""
OF_ANSWERS = (
    "adapter.name",
    "version.digest",
    "published.version.digest",
    "tag.digest",
    "digest",
    "digests",
    "base_model.digest",
    "started.adapters.digest",
    "adapters.digest",
    "removed.digest",
    "epoch",
)
"""Paths of fields that say what an answer was made of."""
MAX_VALUES = 16
"""Most values of one field, and most of all messages that are looked into for them."""
MAX_CHARS = 256
"""Most characters of one value."""

Objects = dict[str, str | list[str]]
_Look = Callable[[Any], Iterator[Any]]


def of_request(message: Any) -> Objects:
    """Names of what a request is about."""
    return _found(message, OF_REQUESTS)


def of_answer(message: Any) -> Objects:
    """Digests that an answer tells."""
    return _found(message, OF_ANSWERS)


def shortened(text: object) -> str:
    """A value as long as the log has it."""
    whole = str(text)
    return whole if len(whole) <= MAX_CHARS else whole[: MAX_CHARS - 1] + "…"


def _found(message: Any, paths: tuple[str, ...]) -> Objects:
    descriptor = getattr(message, "DESCRIPTOR", None)
    if descriptor is None:
        return {}  # Serialised already, or no message of ours.
    found: Objects = {}
    for path, is_list, look in _looks(descriptor, paths):
        values = [shortened(value) for value in look(message) if value]
        if values:
            found[path] = values if is_list else values[0]
    return found


@cache
def _looks(descriptor: Descriptor, paths: tuple[str, ...]) -> tuple[tuple[str, bool, _Look], ...]:
    """Paths that the messages of a kind have, whether there may be several values, and how to look."""
    found = []
    for path in paths:
        fields = _fields(descriptor, path.split("."))
        if fields is not None:
            found.append((path, any(field.is_repeated for field in fields), _look(fields)))
    return tuple(found)


def _fields(descriptor: Descriptor, names: list[str]) -> list[FieldDescriptor] | None:
    fields: list[FieldDescriptor] = []
    kind: Descriptor | None = descriptor
    for name in names:
        field = kind.fields_by_name.get(name) if kind is not None else None
        if field is None:
            return None
        fields.append(field)
        kind = field.message_type
    return fields if kind is None else None


def _look(fields: list[FieldDescriptor]) -> _Look:
    def values(message: Any, depth: int = 0) -> Iterator[Any]:
        field = fields[depth]
        if field.is_repeated:
            held = list(getattr(message, field.name)[:MAX_VALUES])
        elif field.message_type is not None and not message.HasField(field.name):
            held = []
        else:
            held = [getattr(message, field.name)]
        for value in held:
            if depth + 1 == len(fields):
                yield value
            else:
                yield from values(value, depth + 1)

    return values
