"""KV blocks: which of them are free, held or kept for their content, and which a sequence takes next."""

import itertools
from bisect import bisect_left, insort
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence

MOST_TRIED = 16
"""Kept blocks around which a run is looked for before the longest of them is taken."""
MOST_SCANNED = 1_024
"""Free blocks that are looked at to find a run; in a large cache the first ones will do."""

BlockKey = bytes
"""Names a block's content, and everything that its keys and values depend on."""


class KvBlocks:
    """Blocks of the KV cache, counted by those who hold them, and handed out side by side where they can be.

    A reader on CPU sees a run of blocks as one stretch of memory instead of gathering them. A block whose content was
    named stays, once no sequence holds it, until its room is wanted: least recently held first, with its neighbours.
    **Invariant**: a block is free, or kept, or held by at least one sequence; only blocks whose every position was
    computed have a name, and no step writes to those.
    """

    def __init__(self, num_blocks: int) -> None:
        self._free = list(range(num_blocks))
        self._users: dict[int, int] = {}
        self._kept: OrderedDict[int, None] = OrderedDict()
        self._by_key: dict[BlockKey, int] = {}
        self._keys: dict[int, BlockKey] = {}

    @property
    def num_free(self) -> int:
        """Blocks that no sequence holds; those kept for their content count, because they give way."""
        return len(self._free) + len(self._kept)

    @property
    def num_kept(self) -> int:
        """Blocks that no sequence holds and whose content can be found."""
        return len(self._kept)

    @property
    def users(self) -> Mapping[int, int]:
        """Number of sequences that hold each held block."""
        return self._users

    def take(self, count: int, held: Sequence[int]) -> list[int] | None:
        """Take `count` blocks to follow those already `held`; None, taking nothing, when fewer are free.

        A new run starts where one of all these blocks is free, or at the longest.
        """
        if count > self.num_free:
            return None
        following = held[-1] + 1 if held else None
        taken: list[int] = []
        while len(taken) < count:
            index = self._index_of(following)
            if index is None:
                index = self._start_run(count - len(taken))
            block = self._free.pop(index)
            self._users[block] = 1
            taken.append(block)
            following = block + 1
        return taken

    def find(self, key: BlockKey) -> int | None:
        """The block with this content, if there is one."""
        return self._by_key.get(key)

    def hold(self, block: int) -> None:
        """One more holder of a block that `find` found."""
        self._kept.pop(block, None)
        self._users[block] = self._users.get(block, 0) + 1

    def name(self, block: int, key: BlockKey) -> None:
        """Make a held block's content known; when another block has the same, that one stays the known one."""
        if key not in self._by_key:
            self._by_key[key] = block
            self._keys[block] = key

    def unname(self, blocks: Iterable[int]) -> None:
        """Make the content of held blocks unknown."""
        for block in blocks:
            key = self._keys.pop(block, None)
            if key is not None:
                del self._by_key[key]

    def give_back(self, blocks: Sequence[int]) -> None:
        """One holder less for each of a sequence's blocks.

        The last ones become the first to give way: a beginning is worth more than what only follows it.
        """
        for block in reversed(blocks):
            self._users[block] -= 1
            if self._users[block]:
                continue
            del self._users[block]
            if block in self._keys:
                self._kept[block] = None
            else:
                insort(self._free, block)

    def _index_of(self, block: int | None) -> int | None:
        if block is None:
            return None
        index = bisect_left(self._free, block)
        return index if index < len(self._free) and self._free[index] == block else None

    def _start_run(self, num_wanted: int) -> int:
        """Index of the first free block of a run of `num_wanted`, or of the longest there is.

        If no run is free, kept blocks give way: those kept longest, with as much around them as makes a run.
        """
        index, length = self._longest_free(num_wanted)
        if length < num_wanted:
            first, num_blocks = self._longest_kept(num_wanted)
            if num_blocks > length:
                self._forget(range(first, first + num_blocks))
                index = bisect_left(self._free, first)
        return index

    def _longest_free(self, num_wanted: int) -> tuple[int, int]:
        """Index and length of the first run of at least `num_wanted` free blocks, else of the longest run."""
        best_index, best_length = 0, 0
        start = 0
        end = min(len(self._free), MOST_SCANNED)
        for index in range(1, end + 1):
            if index == end or self._free[index] != self._free[index - 1] + 1:
                length = index - start
                if length >= num_wanted:
                    return start, length
                if length > best_length:
                    best_index, best_length = start, length
                start = index
        return best_index, best_length

    def _longest_kept(self, num_wanted: int) -> tuple[int, int]:
        """First block and length of a run, free or kept, around one of those kept longest."""
        best_first, best_length = 0, 0
        for block in itertools.islice(self._kept, MOST_TRIED):
            first, end = block, block + 1
            while end - first < num_wanted and self._is_available(end):
                end += 1
            while end - first < num_wanted and self._is_available(first - 1):
                first -= 1
            if end - first > best_length:
                best_first, best_length = first, end - first
            if best_length >= num_wanted:
                break
        return best_first, best_length

    def _is_available(self, block: int) -> bool:
        return block in self._kept or self._index_of(block) is not None

    def _forget(self, blocks: Iterable[int]) -> None:
        """Make those of these that are kept free."""
        for block in blocks:
            if block in self._kept:
                del self._kept[block]
                del self._by_key[self._keys.pop(block)]
                insort(self._free, block)
