"""Token buckets, pure: a minute's worth fits, it flows in evenly, and a give-back may take what was used on credit."""

from dataclasses import dataclass

WINDOW_S = 60.0


@dataclass(frozen=True, slots=True)
class Bucket:
    """State of one bucket."""

    level: float
    """Amount that is left; below 0 where more was used than was charged."""
    time_s: float


def full(limit: int, now_s: float) -> Bucket:
    """A bucket that nothing was taken from for a minute."""
    return Bucket(float(limit), now_s)


def refilled(bucket: Bucket, limit: int, now_s: float) -> Bucket:
    """The bucket now; a clock that went back adds nothing."""
    passed_s = max(0.0, now_s - bucket.time_s)
    return Bucket(min(float(limit), bucket.level + passed_s * limit / WINDOW_S), now_s)


def wait_s(bucket: Bucket, amount: float, limit: int) -> float:
    """Time until so much can be taken, which is no more than the limit; 0 where it can be now."""
    return max(0.0, (amount - bucket.level) * WINDOW_S / limit)
