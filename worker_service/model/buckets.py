"""Sizes that steps are compiled for."""

from collections.abc import Sequence


def bucket_for(buckets: Sequence[int], count: int) -> int:
    """The smallest bucket that holds `count`; `buckets` ascend and the last one is large enough."""
    return next(bucket for bucket in buckets if bucket >= count)
