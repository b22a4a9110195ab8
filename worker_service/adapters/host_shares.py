"""Decides which versions leave host memory, or the disk, for another one: owners share the room once it is full. Pure.

What leaves is the least recently used of the owner that has most, the newcomer's own room counted; so an owner that has
no more than its share loses nothing to one that wants more. Content of several owners counts for each in part.
"""

from collections.abc import Collection, Hashable, Iterable, Sequence
from typing import Generic, NamedTuple, TypeVar

Owner = TypeVar("Owner", bound=Hashable)
Key = TypeVar("Key", bound=Hashable)


class Kept(NamedTuple, Generic[Key, Owner]):
    """Content that takes room, and its owners; none counts as one owner."""

    key: Key
    size_bytes: int
    owners: Collection[Owner]
    may_leave: bool = True


def leaving(
    kept: Iterable[Kept[Key, Owner]], newcomers: Sequence[Owner], size_bytes: int, needed_bytes: int
) -> list[Key] | None:
    """Content that leaves so that `needed_bytes` are free for newcomers of `size_bytes`; None where it cannot be.

    `kept` is in the order of last use, the least recent first.
    """
    room: dict[Owner | None, float] = {}
    lists: dict[Owner | None, list[Kept[Key, Owner]]] = {}
    for each in kept:
        owners: list[Owner | None] = [*each.owners] or [None]
        for owner in owners:
            room[owner] = room.get(owner, 0.0) + each.size_bytes / len(owners)
            if each.may_leave:
                lists.setdefault(owner, []).append(each)
    for newcomer in newcomers:
        room[newcomer] = room.get(newcomer, 0.0) + size_bytes / len(newcomers)
    left: list[Key] = []
    gone: set[Key] = set()
    heads = dict.fromkeys(lists, 0)
    while needed_bytes > 0:
        for owner, head in heads.items():
            while head < len(lists[owner]) and lists[owner][head].key in gone:
                head += 1
            heads[owner] = head
        able = [owner for owner, head in heads.items() if head < len(lists[owner])]
        if not able:
            return None
        heaviest = max(able, key=lambda owner: room[owner])
        victim = lists[heaviest][heads[heaviest]]
        gone.add(victim.key)
        left.append(victim.key)
        needed_bytes -= victim.size_bytes
        victims_owners: list[Owner | None] = [*victim.owners] or [None]
        for owner in victims_owners:
            room[owner] -= victim.size_bytes / len(victims_owners)
    return left
