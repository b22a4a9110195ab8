"""Fair shares between those who want tokens computed: who got least goes first."""

from collections.abc import Hashable
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)

PROMPT_TOKEN_COST = 1.0
ANSWER_TOKEN_COST = 2.0
"""The weights of the virtual token counter's authors."""


class FairShare(Generic[Key]):
    """Counts what each key was served: a virtual token counter (Sheng et al. 2024, "Fairness in Serving LLMs").

    A key that comes (back) starts at the virtual time, so being idle earns no credit. The virtual time goes on as each
    active key's equal share would (generalised processor sharing, Parekh and Gallager 1993), and not with the smallest
    counter: however many new keys come, one that waits is overtaken by them for a bounded time only.
    """

    def __init__(self) -> None:
        self._counters: dict[Key, float] = {}
        self._members: dict[Key, int] = {}
        self._now = 0.0

    def __len__(self) -> int:
        return len(self._members)

    def spent(self, key: Key) -> float:
        """Service that an active key had, comparable with that of others."""
        return self._counters[key]

    def join(self, key: Key) -> None:
        """One more sequence of this key waits or runs."""
        if key not in self._members:
            self._counters[key] = max(self._counters.get(key, 0.0), self._now)
        self._members[key] = self._members.get(key, 0) + 1

    def leave(self, key: Key) -> None:
        """One sequence of this key has ended."""
        self._members[key] -= 1
        if not self._members[key]:
            del self._members[key]
            self._forget()

    def charge(self, key: Key, cost: float) -> None:
        """Tokens were, or will now be, computed for an active key."""
        self._counters[key] += cost
        self._now += cost / len(self._members)

    def _forget(self) -> None:
        """Drop the counters of idle keys that the virtual time has passed; with no key active, all of them."""
        if not self._members:
            self._counters.clear()
            self._now = 0.0
        elif len(self._counters) > 2 * len(self._members) + 64:
            self._counters = {k: c for k, c in self._counters.items() if k in self._members or c > self._now}
