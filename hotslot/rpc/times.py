"""Times and durations between Python (seconds) and protobuf."""

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp


def to_timestamp(unix_s: float) -> Timestamp:
    """Seconds since the epoch as a Timestamp, to the microsecond."""
    stamp = Timestamp()
    stamp.FromMicroseconds(round(unix_s * 1e6))
    return stamp


def to_duration(seconds: float) -> Duration:
    """Seconds as a Duration, to the microsecond."""
    duration = Duration()
    duration.FromMicroseconds(round(seconds * 1e6))
    return duration
