"""Times of the contract: in UTC, from seconds since the epoch."""

from datetime import UTC, datetime


def moment(unix_s: float) -> datetime:
    """Seconds since the epoch as a time in UTC."""
    return datetime.fromtimestamp(unix_s, UTC)
