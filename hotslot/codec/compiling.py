"""Functions that convert one type's values to its message's fields and back, made from its binding at first use."""

from collections.abc import Callable, Iterator
from dataclasses import MISSING, dataclass, fields, is_dataclass
from operator import attrgetter
from types import NoneType
from typing import Any, TypeAlias, get_args, get_type_hints

from hotslot.codec.binding import Binding
from hotslot.codec.enums import enum_converters
from hotslot.codec.moments import DURATION, TIMESTAMP, moment_converters
from hotslot.contract.generation import JsonText

Fields = dict[str, Any]
"""A message's fields as its class takes them: messages in it as fields in turn."""
Descriptor: TypeAlias = Any
"""Protobuf's, which is of two classes by its stubs; so are those of fields."""
FieldDescriptor: TypeAlias = Any
Put = Callable[[Any, Fields], None]
Convert = Callable[[Any], Any]


class IncompleteBindingError(AssertionError):
    """A type and a message that are no twins; a fault of ours."""


@dataclass(frozen=True, slots=True)
class Codec:
    """One type's converters."""

    binding: Binding
    outline: Callable[[Any], Fields]
    """A value's fields as they are, nested values included; raises InvalidRequestError."""
    encode: Callable[[Any], Fields]
    """A value's fields, converted all the way down."""
    decode: Convert
    """The value of a message."""
    names: frozenset[str]
    """Fields of the message that it covers; those of a message that is spread have its name and a dot before them."""


Lookup = Callable[[type[Any], Descriptor], Codec | None]
"""The codec of a type for a message, if it is bound to it."""


@dataclass(frozen=True, slots=True)
class _Part:
    """One field of the type, in its place in the message."""

    names: frozenset[str]
    outline: Put
    encode: Put
    decode: Convert
    """From the whole message."""


def compiled(binding: Binding, lookup: Lookup) -> Codec:
    """The codec of a binding. Raises IncompleteBindingError where a field of either side has no twin."""
    hints = get_type_hints(binding.kind)
    parts = [_part_of(binding, name, hints.get(name), default, lookup) for name, default in _fields_of(binding.kind)]
    written = [_written(name) for name in sorted(binding.written)]
    names = frozenset[str]().union(*(part.names for part in (*parts, *written)))
    missing = {name for _, _, name in _wire_fields(binding)} - names - {binding.spread}
    if missing and not binding.is_part:
        raise IncompleteBindingError(f"{binding.kind.__name__} lacks {sorted(missing)} of {_name(binding)}")
    return Codec(
        binding,
        _putting(binding, [part.outline for part in (*parts, *written)]),
        _putting(binding, [part.encode for part in (*parts, *written)]),
        _decoding(binding, [part.decode for part in parts]),
        names,
    )


def _putting(binding: Binding, puts: list[Put]) -> Callable[[Any], Fields]:
    settle = binding.settle

    def fields_of(value: Any) -> Fields:
        found: Fields = {}
        value = value if settle is None else settle(value)
        for put in puts:
            put(value, found)
        return found

    return fields_of


def _decoding(binding: Binding, decodes: list[Convert]) -> Convert:
    made, after, kinds = binding.kind, binding.after, _only_oneof(binding.message.DESCRIPTOR)
    if after is not None:
        return lambda message: after(made(*[decode(message) for decode in decodes]))
    if kinds:  # of which a newer peer may know more
        return lambda message: made(*[d(message) for d in decodes]) if message.WhichOneof(kinds) is not None else None
    return lambda message: made(*[decode(message) for decode in decodes])


def _only_oneof(descriptor: Descriptor) -> str:
    """Name of the oneof that all fields are of; empty where there is none."""
    oneofs = {field.containing_oneof.name if field.containing_oneof else "" for field in descriptor.fields}
    return oneofs.pop() if len(oneofs) == 1 else ""


def _fields_of(kind: type[Any]) -> list[tuple[str, Any]]:
    """Fields of a dataclass or of a named tuple, with their defaults."""
    if not is_dataclass(kind):
        return [(name, kind._field_defaults.get(name, MISSING)) for name in kind._fields]
    return [(f.name, f.default_factory() if f.default_factory is not MISSING else f.default) for f in fields(kind)]


def _wire_fields(binding: Binding) -> Iterator[tuple[Descriptor, FieldDescriptor, str]]:
    """Fields of the message, and of the one that is spread, with their owner and their name as `Codec.names` has it."""
    descriptor: Descriptor = binding.message.DESCRIPTOR
    yield from ((descriptor, field, field.name) for field in descriptor.fields)
    if binding.spread:
        inner = descriptor.fields_by_name[binding.spread].message_type
        yield from ((inner, field, f"{binding.spread}.{field.name}") for field in inner.fields)


def _part_of(binding: Binding, name: str, hint: Any, default: Any, lookup: Lookup) -> _Part:
    if name in binding.extra:
        return _Part(frozenset(), _put_nothing, _put_nothing, lambda message: default)
    if name == binding.inline:
        return _inlined(binding, name, hint, lookup)
    wanted = binding.names.get(name, name)
    oneof = binding.message.DESCRIPTOR.oneofs_by_name.get(wanted)
    if oneof is not None:
        return _one_of_kinds(name, wanted, {field.name: field for field in oneof.fields}, hint, lookup)
    for owner, field, full_name in _wire_fields(binding):
        if field.name in (wanted, wanted.removesuffix("_s")):
            spread = "" if owner is binding.message.DESCRIPTOR else binding.spread
            return _field(binding, name, field, spread, full_name, hint, default, lookup)
    raise IncompleteBindingError(f"{_name(binding)} lacks {binding.kind.__name__}.{name}")


def _name(binding: Binding) -> str:
    return str(binding.message.DESCRIPTOR.full_name)


def _put_nothing(value: Any, found: Fields) -> None:
    """For a field that no message carries."""


def _written(name: str) -> _Part:
    put = _put(name, attrgetter(name), None, "")
    return _Part(frozenset({name}), put, put, _put_nothing)  # type: ignore[arg-type]


def _put(wire: str, read: Convert, convert: Convert | None, spread: str) -> Put:
    """Put a value's field into a message's fields, converted."""

    def put(value: Any, found: Fields) -> None:
        item = read(value)
        found[wire] = item if convert is None or item is None else convert(item)

    def put_in_spread(value: Any, found: Fields) -> None:
        put(value, found.setdefault(spread, {}))

    return put_in_spread if spread else put


def _field(
    binding: Binding,
    name: str,
    field: FieldDescriptor,
    spread: str,
    full_name: str,
    hint: Any,
    default: Any,
    lookup: Lookup,
) -> _Part:
    encode, decode = _converters(field, hint, default, lookup)
    read: Convert = attrgetter(name)
    if name in binding.through:
        read, decode = _through(read, decode, *binding.through[name])
    if spread:
        decode = _of(attrgetter(spread), decode)
    outline, put = _put(field.name, read, None, spread), _put(field.name, read, encode, spread)
    return _Part(frozenset({full_name}), outline, put, decode)


def _through(read: Convert, decode: Convert, into: Convert, out: Convert) -> tuple[Convert, Convert]:
    return _of(read, into), _of(decode, out)


def _of(first: Convert, then: Convert) -> Convert:
    return lambda value: then(first(value))


def _inlined(binding: Binding, name: str, hint: Any, lookup: Lookup) -> _Part:
    codec, read = lookup(hint, binding.message.DESCRIPTOR), attrgetter(name)
    assert codec is not None, f"{hint.__name__} is bound to no {_name(binding)}"
    return _Part(
        codec.names,
        lambda value, found: found.update(codec.outline(read(value))),
        lambda value, found: found.update(codec.encode(read(value))),
        codec.decode,
    )


def _one_of_kinds(name: str, oneof: str, kinds: dict[str, FieldDescriptor], hint: Any, lookup: Lookup) -> _Part:
    """A field whose value is of one of several kinds: a text, a type of the contract, or a list that is a message's."""
    read, codecs, plain, lists = attrgetter(name), dict[type[Any], tuple[str, Codec]](), "", ("", "")
    decodes: dict[str | None, Convert] = {None: lambda message: None}
    for wire, field in kinds.items():
        bound = [c for c in (lookup(m, field.message_type) for m in _members(hint)) if c] if field.message_type else []
        if bound:
            codecs[bound[0].binding.kind] = wire, bound[0]
            decodes[wire] = _of(attrgetter(wire), bound[0].decode)
        elif field.message_type is None:
            plain, decodes[wire] = wire, attrgetter(wire)
        else:
            (only,) = field.message_type.fields
            lists, decodes[wire] = (wire, only.name), _of(attrgetter(f"{wire}.{only.name}"), tuple)

    def put(value: Any, found: Fields, *, is_outline: bool) -> None:
        item = read(value)
        if type(item) in codecs:
            wire, codec = codecs[type(item)]
            found[wire] = item if is_outline else codec.encode(item)
        elif isinstance(item, str):
            found[plain] = item
        elif item is not None:
            found[lists[0]] = {lists[1]: item}

    return _Part(
        frozenset(kinds),
        lambda value, found: put(value, found, is_outline=True),
        lambda value, found: put(value, found, is_outline=False),
        lambda message: decodes[message.WhichOneof(oneof)](message),
    )


def _converters(field: FieldDescriptor, hint: Any, default: Any, lookup: Lookup) -> tuple[Convert | None, Convert]:
    """Converters of a single field: from the type's value, and from the whole message."""
    read, inner = attrgetter(field.name), field.message_type
    if inner is not None and inner.GetOptions().map_entry:
        return None, _of(read, dict)
    if field.is_repeated:
        return _list_converters(field, hint, lookup)
    if inner is not None and inner.full_name in (TIMESTAMP, DURATION):
        return moment_converters(field, is_seconds=float in _members(hint))
    if inner is not None:
        codec = _codec_for(field, hint, lookup)
        decode = _of(read, codec.decode)
        return codec.encode, _if_set(field.name, decode, None) if NoneType in _members(hint) else decode
    if field.enum_type is not None:
        encode, decode_enum = enum_converters(field.enum_type, hint)
        return encode, _of(read, decode_enum)
    if JsonText in _members(hint):
        return None, _of(read, JsonText)
    if field.has_presence:
        return None, _if_set(field.name, read, None if NoneType in _members(hint) or default is MISSING else default)
    return None, read


def _if_set(name: str, decode: Convert, default: Any) -> Convert:
    return lambda message: decode(message) if message.HasField(name) else default


def _list_converters(field: FieldDescriptor, hint: Any, lookup: Lookup) -> tuple[Convert | None, Convert]:
    read = attrgetter(field.name)
    if field.message_type is not None:
        codec = _codec_for(field, hint, lookup)
        encode, decode = codec.encode, codec.decode
        return (
            lambda items: [{} if item is None else encode(item) for item in items],
            lambda message: tuple(map(decode, read(message))),
        )
    if JsonText in _members(hint):
        return None, lambda message: tuple(map(JsonText, read(message)))
    return None, _of(read, tuple)


def _codec_for(field: FieldDescriptor, hint: Any, lookup: Lookup) -> Codec:
    found = [codec for codec in (lookup(m, field.message_type) for m in _members(hint)) if codec is not None]
    if not found:
        raise IncompleteBindingError(f"no type of {hint} is bound to {field.message_type.full_name}")
    return found[0]


def _members(hint: Any) -> list[Any]:
    """Types within a hint: of a union, of a sequence's items."""
    if hasattr(hint, "__supertype__"):
        return _members(hint.__supertype__)
    inner = [each for each in get_args(hint) if each is not Ellipsis]
    return [member for each in inner for member in _members(each)] if inner else [hint]
