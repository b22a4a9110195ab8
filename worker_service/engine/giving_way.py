"""Decides what gives way to a sequence that waits: owners share rows, KV blocks and slots. Pure: no clock, no I/O.

Parties share first, then the tenants of a party. An owner that holds more than another one that waits gives way at
once, as long as it holds no less than that one afterwards; so what both want is split evenly, and nothing goes to and
fro. Where nothing can be split (a row each, and one row too few) they take turns: the owner that was served more by a
slice gives way. Nothing gives way to an owner that holds as much, and nothing is kept free for owners that do not wait.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from hotslot.ids import PartyId, TenantId


class Owner(NamedTuple):
    """Party and tenant that a sequence is computed for."""

    party: PartyId
    tenant: TenantId


class Hold(NamedTuple):
    """Amount of a resource that may be taken back, all of it or nothing, and its owner."""

    owner: Owner
    amount: int
    may_end: bool = True
    """False for what counts and cannot be taken back."""


Lead = Callable[[Owner, Owner], float]
"""Tokens that the first owner was served beyond the second."""


def giving_way(
    holds: Sequence[Hold], claimant: Owner, needed: int, num_free: int, lead: Lead, slice_tokens: float
) -> list[int] | None:
    """Positions of the holds that give way, so that `needed` are free; None where the claimant has to wait.

    Of an owner's holds the last ones go first.
    """
    left = dict(enumerate(holds))
    given: list[int] = []
    while num_free < needed:
        position = _next(left, claimant, needed, lead, slice_tokens)
        if position is None:
            return None
        num_free += left.pop(position).amount
        given.append(position)
    return given


def may_pass(holds: Sequence[Hold], claimant: Owner, needed: int, before: Iterable[Owner]) -> bool:
    """Tell whether a claimant may have what is free though it is the turn of others, for whom it is too little.

    It holds no more than each of them then.
    """
    parties, owners = _sums(holds)
    for owner in before:
        if owner.party != claimant.party:
            held, mine = parties.get(owner.party, 0), parties.get(claimant.party, 0)
        else:
            held, mine = owners.get(owner, 0), owners.get(claimant, 0)
        if held < mine + needed:
            return False
    return True


def heaviest(holds: Sequence[Hold], among: Iterable[int]) -> int:
    """Position, of those `among` which to choose, of the last hold of the tenant with most, of the party with most."""
    parties, owners = _sums(holds)
    return max(among, key=lambda i: (parties[holds[i].owner.party], owners[holds[i].owner], i))


def _next(left: dict[int, Hold], claimant: Owner, needed: int, lead: Lead, slice_tokens: float) -> int | None:
    parties, owners = _sums(left.values())
    best: tuple[int, int, int] | None = None
    for position, (owner, amount, may_end) in left.items():
        if owner == claimant or not amount or not may_end:
            continue
        if owner.party != claimant.party:
            held, mine = parties[owner.party], parties.get(claimant.party, 0)
        else:
            held, mine = owners[owner], owners.get(claimant, 0)
        is_even = held - amount >= mine + needed
        if is_even or (held > mine and lead(owner, claimant) >= slice_tokens):
            # Of other parties first, then of its own.
            rank = (parties[owner.party] if owner.party != claimant.party else 0, owners[owner], position)
            best = max(best, rank) if best is not None else rank
    return best[2] if best is not None else None


def _sums(holds: Iterable[Hold]) -> tuple[dict[PartyId, int], dict[Owner, int]]:
    parties: dict[PartyId, int] = {}
    owners: dict[Owner, int] = {}
    for owner, amount, _ in holds:
        parties[owner.party] = parties.get(owner.party, 0) + amount
        owners[owner] = owners.get(owner, 0) + amount
    return parties, owners
