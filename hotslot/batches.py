"""Batches of whatever is too much for one message or one query."""

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import TypeVar

T = TypeVar("T")


def batches(items: Iterable[T], size: int) -> Iterator[tuple[T, ...]]:
    """The items in their order, `size` at a time; the last batch may have fewer."""
    iterator = iter(items)
    while batch := tuple(islice(iterator, size)):
        yield batch
