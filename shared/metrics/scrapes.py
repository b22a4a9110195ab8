"""Scrapes of a process: what pickers ask for many times a second is fresh, all else a moment old."""

import time
from collections.abc import Awaitable, Callable, Sequence

from shared.metrics.exposition import Readings, exposition
from shared.metrics.numbers import Spreads
from shared.metrics.table import PICKER_PREFIX, rows_of

MAX_AGE_S = 1.0
"""Age of the text of what no picker asks for: making it takes milliseconds, and pickers come twenty times a second."""


Refresh = Callable[[], Awaitable[None]]


async def at_once() -> None:
    """Read what there is."""


class Scrapes:
    """Texts of one process. Belongs to one event loop."""

    def __init__(
        self,
        service: str,
        sources: Sequence[Readings],
        own_sources: Sequence[Readings] = (),
        picker_sources: Sequence[Readings] = (),
        refresh: Refresh = at_once,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`refresh` is awaited before each scrape; it must not wait long. `sources` may grow."""
        rows = rows_of(service)
        self._rows = tuple(row for row in rows if not row.name.startswith(PICKER_PREFIX))
        self._picker_rows = tuple(row for row in rows if row.name.startswith(PICKER_PREFIX))
        self._durations = Spreads("hotslot_scrape_seconds")
        self._sources = sources
        self._own_sources = (*own_sources, self._durations.readings)
        self._picker_sources = picker_sources
        self._refresh = refresh
        self._clock = clock
        self._text = b""
        self._made_at_s = float("-inf")

    async def text(self) -> bytes:
        """Text of a scrape now."""
        await self._refresh()
        now_s = self._clock()
        if now_s - self._made_at_s >= MAX_AGE_S:
            began_s = time.perf_counter()
            self._text, self._made_at_s = exposition(self._rows, (*self._sources, *self._own_sources)), now_s
            self._durations.add(time.perf_counter() - began_s)
        return exposition(self._picker_rows, self._picker_sources) + self._text
