"""Which worker a request goes to: picks cached for as long as the placement service allows."""

from collections import OrderedDict
from dataclasses import dataclass

from client.types.placement import WorkerPick

MAX_CACHED_PICKS = 1024


@dataclass(frozen=True, slots=True)
class RouteKey:
    """What a pick depends on."""

    adapters: tuple[str, ...]
    base_model: str


class PickCache:
    """Picks until they expire, at most `MAX_CACHED_PICKS`. Time is passed in."""

    def __init__(self) -> None:
        self._picks: OrderedDict[RouteKey, tuple[float, WorkerPick]] = OrderedDict()

    def get(self, key: RouteKey, now_s: float) -> WorkerPick | None:
        """A pick that may still be used."""
        expires_s, pick = self._picks.get(key, (0.0, None))
        return pick if pick is not None and now_s < expires_s else None

    def put(self, key: RouteKey, pick: WorkerPick, now_s: float) -> None:
        """Remember a pick for as long as it says."""
        self._picks[key] = (now_s + pick.ttl_s, pick)
        self._picks.move_to_end(key)
        while len(self._picks) > MAX_CACHED_PICKS:
            self._picks.popitem(last=False)

    def forget_endpoint(self, endpoint: str) -> None:
        """Drop every pick that names a worker which just failed."""
        for key, (_, pick) in list(self._picks.items()):
            if any(candidate.worker.endpoint == endpoint for candidate in pick.candidates):
                del self._picks[key]
