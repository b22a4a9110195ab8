"""Looks through a request's undecoded bytes and refuses it where a field is beyond its bound (`shared.server.bounds`).

Decoding comes after that: of 4 MiB of empty entries it makes hundreds of MiB, on the event loop. The scan ends at the
first bound that is exceeded, so its cost follows the bounds and not the message. Most requests are so small that
nothing in them can be beyond its bound, and are decoded at once.
The format: https://protobuf.dev/programming-guides/encoding
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from google.protobuf import descriptor_pool
from google.protobuf.descriptor import Descriptor
from google.protobuf.message import DecodeError

from hotslot.errors import FieldViolation, HotslotError, InvalidRequestError
from shared.server.bounds import MAX_DEPTH, MAX_STRAYS
from shared.server.wire_definitions import (
    FIXED32,
    FIXED64,
    LENGTH,
    SHORT_BYTES,
    VARINT,
    Definitions,
    WireField,
    WireMessage,
)

_MAX_VARINT_BYTES = 10
_CONTINUED = bytes(range(0x80, 0x100))
"""Bytes of a varint but its last one."""
_BLOCK_BYTES = 2**16


@dataclass(frozen=True, slots=True)
class Refused:
    """Stands for a request that is not decoded; the handler's call ends with the error."""

    error: HotslotError


class _BeyondError(Exception):
    """A bound is exceeded at a path of fields."""

    def __init__(self, problem: str, *path: str) -> None:
        self.problem = problem
        self.path = path


class _Scan:
    """One pass over one message."""

    def __init__(self, data: bytes, num_counters: int) -> None:
        self._data = data
        self._counts = [0] * num_counters
        self._packed: list[tuple[int, int, int]] = []
        """Ranges of varints whose bytes were counted for them, with their counter."""
        self._strays_left = MAX_STRAYS

    def message(self, kind: WireMessage, position: int, end: int, depth: int = 0) -> None:
        """Look at the fields in a range of bytes.

        Raises _BeyondError, and IndexError or DecodeError where the bytes are no message.
        """
        if depth >= MAX_DEPTH:
            raise _BeyondError(f"messages nest more than {MAX_DEPTH} deep")
        data, fields = self._data, kind.fields
        singular_left = kind.num_singular
        while position < end:
            tag = data[position]
            position += 1
            if tag > 0x7F:
                tag, position = _varint_at(data, position - 1)
            wire_type, begin = tag & 7, position
            if wire_type == LENGTH:
                size = data[position]
                position += 1
                if size > 0x7F:
                    size, position = _varint_at(data, position - 1)
                begin, position = position, position + size
            elif wire_type == VARINT:
                while data[position] > 0x7F:
                    position += 1
                    if position - begin >= _MAX_VARINT_BYTES:
                        raise DecodeError("a number does not end")
                position += 1
            elif wire_type in (FIXED64, FIXED32):
                position += 8 if wire_type == FIXED64 else 4
            else:
                raise DecodeError(f"wire type {wire_type} is in no message of this server")
            if position > end:
                raise DecodeError("a field ends behind its message")
            found = fields.get(tag)
            if found is None or not found.is_repeated or found.packed_bytes >= 0:
                if singular_left:
                    singular_left -= 1
                elif self._strays_left:
                    self._strays_left -= 1
                else:
                    problem = f"more than {MAX_STRAYS:,} entries are unknown to this server or stand more than once"
                    raise _BeyondError(problem)
                if found is None:
                    continue
            inner = found.kind
            is_looked_into = inner is not None and len(data) > inner.entries_bytes
            if found.is_repeated:
                self._count(found, begin, position)
                if found.is_short and position - begin <= SHORT_BYTES and not is_looked_into:
                    position = self._skip_run(found, tag, position, end)
                    continue
            if found.max_bytes and position - begin > found.max_bytes:
                problem = f"found {position - begin:,} bytes, at most {found.max_bytes:,} are taken"
                raise _BeyondError(problem, found.name)
            if inner is not None and begin < position and (is_looked_into or position - begin > inner.safe_bytes):
                try:
                    self.message(inner, begin, position, depth + 1)
                except _BeyondError as exc:
                    exc.path = found.name, *exc.path
                    raise

    def _skip_run(self, found: WireField, tag: int, position: int, end: int) -> int:
        """Count further entries of a field that are short enough for their length; the position behind them."""
        data, start_count = self._data, self._counts[found.counter]
        num_entries, last = 0, end - 2
        most = found.max_entries - start_count
        while position <= last and data[position] == tag:
            size = data[position + 1]
            if size > SHORT_BYTES or position + 2 + size > end or num_entries == most:
                break
            position += 2 + size
            num_entries += 1
        self._counts[found.counter] = start_count + num_entries
        return position

    def _count(self, found: WireField, begin: int, end: int) -> None:
        if found.packed_bytes < 0:
            num_entries = 1
        elif found.packed_bytes:
            num_entries = (end - begin) // found.packed_bytes
        else:
            # Each takes a byte at least; how many there are exactly is asked for where it matters.
            num_entries = end - begin
            self._packed.append((found.counter, begin, end))
        self._counts[found.counter] += num_entries
        if self._counts[found.counter] > found.max_entries:
            self._be_exact(found.counter, found.max_entries)
        if self._counts[found.counter] > found.max_entries:
            problem = f"found at least {self._counts[found.counter]:,} entries, at most {found.max_entries:,} are taken"
            raise _BeyondError(problem, found.name)

    def _be_exact(self, counter: int, most: int) -> None:
        """Correct a number of entries for numbers that take more than a byte, as far as that can matter."""
        ranges = [(begin, end) for of_counter, begin, end in self._packed if of_counter == counter]
        self._packed = [entry for entry in self._packed if entry[0] != counter]
        num_entries = self._counts[counter] - sum(end - begin for begin, end in ranges)
        for begin, end in ranges:
            for start in range(begin, end, _BLOCK_BYTES):
                if num_entries > most:
                    break
                # A varint's last byte is the one without the highest bit.
                num_entries += len(self._data[start : min(end, start + _BLOCK_BYTES)].translate(None, _CONTINUED))
        self._counts[counter] = num_entries


def _varint_at(data: bytes, position: int) -> tuple[int, int]:
    """A number and the position behind it; raises IndexError or DecodeError where it does not end."""
    value = 0
    for shift in range(0, 7 * _MAX_VARINT_BYTES, 7):
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    raise DecodeError("a number does not end")


class RequestDecoder:
    """Decodes the requests of one method, within their bounds."""

    def __init__(self, request: Descriptor, decode: Callable[[bytes], Any]) -> None:
        """Raises LookupError when a field has no bound."""
        self._name = request.full_name
        self._decode = decode
        definitions = Definitions()
        self._kind = definitions.add(request)
        definitions.finish()
        self._num_counters = definitions.num_counters

    def __call__(self, data: bytes) -> Any:
        """The request, or `Refused` with an InvalidRequestError."""
        try:
            if len(data) > self._kind.safe_bytes:
                _Scan(data, self._num_counters).message(self._kind, 0, len(data))
            return self._decode(data)
        except _BeyondError as exc:
            return Refused(InvalidRequestError([FieldViolation(".".join(exc.path) or "request", exc.problem)]))
        except (DecodeError, IndexError, RecursionError) as exc:
            reason = str(exc).partition(": ")[2] or str(exc)
            problem = f"{len(data):,} bytes that are no {self._name}: {reason[:200]}"
            return Refused(InvalidRequestError([FieldViolation("request", problem)]))


def check_bounds(service: str) -> None:
    """Raise LookupError where a field of a service's requests has no bound; a service of no proto has none to have."""
    try:
        found = descriptor_pool.Default().FindServiceByName(service)
    except KeyError:
        return
    for method in found.methods:
        Definitions().add(method.input_type)


def decoder_of(method: str, decode: Callable[[bytes], Any] | None) -> Callable[[bytes], Any] | None:
    """The decoder for `/package.Service/Method`; a method that is in no proto keeps the one it has.

    Without one (None, as in gRPC) the handler is given the bytes.
    """
    try:
        found = descriptor_pool.Default().FindMethodByName(method.strip("/").replace("/", "."))
    except KeyError:
        return decode
    return RequestDecoder(found.input_type, decode or bytes)
