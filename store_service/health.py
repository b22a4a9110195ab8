"""Health of the store: looks at each part that it needs, side by side and in bounded time, and says why one fails."""

import asyncio
import os
import shutil
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import Engine, text

from hotslot.contract.moments import moment
from hotslot.contract.store_status import StorePart, StoreStatus
from hotslot.errors import HotslotError, QuotaExceededError, StoreUnavailableError
from hotslot.rpc.server_facts import installed_version

PATIENCE_S = 2.0
LEAST_FREE_BYTES = 64 * 2**20
"""Room on the disk below which the catalog itself may not be written."""


@dataclass(frozen=True, slots=True)
class Look:
    """Look at one part."""

    name: str
    check: Callable[[], Awaitable[None]]
    """Returns where the part works; raises HotslotError or OSError with the reason where it does not."""
    required: bool = True


class StoreHealth:
    """Looks of one process. Belongs to one event loop."""

    def __init__(self, looks: Sequence[Look], patience_s: float = PATIENCE_S) -> None:
        self._looks = tuple(looks)
        self._patience_s = patience_s
        self._start_time_s = time.time()

    async def status(self) -> StoreStatus:
        """Status now."""
        parts = tuple(await asyncio.gather(*map(self._part, self._looks)))
        ready = all(part.works for part in parts if part.required)
        return StoreStatus(ready, installed_version(), moment(self._start_time_s), parts)

    async def _part(self, look: Look) -> StorePart:
        try:
            async with asyncio.timeout(self._patience_s):
                await look.check()
        except TimeoutError:
            why = f"it did not answer within {self._patience_s:g} s"
        except HotslotError as exc:
            why = exc.message
        except OSError as exc:
            why = exc.strerror or type(exc).__name__
        else:
            return StorePart(look.name, True, required=look.required)
        return StorePart(look.name, False, why, look.required)


def check_catalog(engine: Engine) -> None:
    """Ask the database for nothing; blocks. Raises StoreUnavailableError."""
    try:
        with engine.connect() as connection:
            connection.execute(text("SELECT 1"))
    except Exception as exc:
        raise StoreUnavailableError(f"the catalog's database does not answer ({type(exc).__name__})") from exc


def check_disk(data_dir: Path) -> None:
    """Look for room and the right to write; blocks. Raises QuotaExceededError, StoreUnavailableError and OSError."""
    free_bytes = shutil.disk_usage(data_dir).free
    if free_bytes < LEAST_FREE_BYTES:
        problem = f"the disk of data_dir has {free_bytes:,} bytes left, at least {LEAST_FREE_BYTES:,} are needed"
        raise QuotaExceededError(problem, subject="data_dir")
    if not os.access(data_dir, os.W_OK | os.X_OK):
        raise StoreUnavailableError("data_dir may not be written by the store's user")
