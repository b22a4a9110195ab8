"""Times and durations between Python and protobuf, to the microsecond."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from operator import attrgetter
from typing import Any

from hotslot.contract.moments import moment

TIMESTAMP, DURATION = "google.protobuf.Timestamp", "google.protobuf.Duration"
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def moment_converters(field: Any, *, is_seconds: bool) -> tuple[Callable[[Any], dict[str, int]], Callable[[Any], Any]]:
    """Converters of a field that is a Timestamp or a Duration, from the type's value and from the whole message.

    `is_seconds` says that the type has a number of seconds; other times are in UTC, and None where they are not set.
    """
    read, name = attrgetter(field.name), field.name
    if field.message_type.full_name == DURATION:
        return _duration, lambda message: _seconds(read(message))
    if is_seconds:
        return lambda unix_s: _timestamp(moment(unix_s)), lambda message: _seconds(read(message))
    return _timestamp, lambda message: _time(read(message)) if message.HasField(name) else None


def _timestamp(time: datetime) -> dict[str, int]:
    since = time - _EPOCH
    return {"seconds": since.days * 86_400 + since.seconds, "nanos": since.microseconds * 1_000}


def _time(stamp: Any) -> datetime:
    return _EPOCH + timedelta(seconds=stamp.seconds, microseconds=stamp.nanos // 1_000)


def _duration(seconds: float) -> dict[str, int]:
    microseconds = round(seconds * 1e6)
    whole, rest = divmod(abs(microseconds), 1_000_000)
    sign = -1 if microseconds < 0 else 1
    return {"seconds": sign * whole, "nanos": sign * rest * 1_000}


def _seconds(moment_or_duration: Any) -> float:
    return float(moment_or_duration.seconds * 1_000_000 + int(moment_or_duration.nanos / 1_000)) / 1e6
