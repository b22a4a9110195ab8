"""KV blocks: which of them are free, and which a sequence takes next."""

from bisect import bisect_left, insort
from collections.abc import Sequence


class KvBlocks:
    """Free blocks of the KV cache, handed out so that a sequence's blocks lie side by side where they can.

    A reader on CPU then sees one contiguous stretch of memory instead of gathering blocks.
    **Invariant**: a block is free or belongs to exactly one sequence.
    """

    def __init__(self, num_blocks: int) -> None:
        self._free = list(range(num_blocks))

    @property
    def num_free(self) -> int:
        """Blocks that nobody holds."""
        return len(self._free)

    def take(self, count: int, held: Sequence[int], num_expected: int) -> list[int] | None:
        """Take `count` blocks to follow those already `held`; None, taking nothing, when fewer are free.

        `num_expected` is how many blocks the sequence may need in all: a new sequence starts where a run of that
        length is free, or at the longest run.
        """
        if count > len(self._free):
            return None
        taken: list[int] = []
        following = held[-1] + 1 if held else None
        for _ in range(count):
            index = self._index_of(following)
            if index is None:
                index = self._best_start(num_expected - len(held) - len(taken))
            block = self._free.pop(index)
            taken.append(block)
            following = block + 1
        return taken

    def give_back(self, blocks: Sequence[int]) -> None:
        """Return blocks."""
        for block in blocks:
            insort(self._free, block)

    def _index_of(self, block: int | None) -> int | None:
        if block is None:
            return None
        index = bisect_left(self._free, block)
        return index if index < len(self._free) and self._free[index] == block else None

    def _best_start(self, num_wanted: int) -> int:
        """Index of the first run of at least `num_wanted` free blocks, else of the longest run."""
        best_index, best_length = 0, 0
        start = 0
        for index in range(1, len(self._free) + 1):
            if index == len(self._free) or self._free[index] != self._free[index - 1] + 1:
                length = index - start
                if length >= num_wanted:
                    return start
                if length > best_length:
                    best_index, best_length = start, length
                start = index
        return best_index
