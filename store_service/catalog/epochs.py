"""Fencing numbers for workers: each larger than all that were handed out before, for ever."""

import time
from collections.abc import Callable

from sqlalchemy import Engine, select, update
from sqlalchemy.dialects import postgresql, sqlite

from store_service.catalog.database import writing
from store_service.catalog.tables import counters

_NAME = "epoch"


class Epochs:
    """The counter in a relational database."""

    def __init__(self, engine: Engine, clock: Callable[[], float] = time.time) -> None:
        self._engine = engine
        self._clock = clock

    def issue(self) -> int:
        """The next number, at least the time in milliseconds.

        The time is what keeps numbers growing when the database was lost, or restored from an older copy.
        """
        with writing(self._engine) as connection:
            make = sqlite.insert if connection.dialect.name == "sqlite" else postgresql.insert
            connection.execute(make(counters).values(name=_NAME, value=0).on_conflict_do_nothing())
            last: int = connection.execute(
                select(counters.c.value).where(counters.c.name == _NAME).with_for_update()
            ).scalar_one()
            epoch = max(last + 1, round(self._clock() * 1e3))
            connection.execute(update(counters).where(counters.c.name == _NAME).values(value=epoch))
            return epoch
