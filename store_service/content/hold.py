"""Keeps a store from removing anything in its data folder while another process, a backup, has a hold on it."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hotslot.errors import StoreUnavailableError
from hotslot.file_lock import try_lock

HOLD_FILE = "collecting"
POLL_S = 0.05
_turn = threading.Lock()
"""Threads of a process remove in turns: to the file's lock one of them is no other process."""


@contextmanager
def removing(data_dir: Path) -> Iterator[bool]:
    """Tell if things may be removed until the block ends: not while another process has a hold."""
    with _turn, (data_dir / HOLD_FILE).open("a+b") as file:
        yield try_lock(file.fileno())


def backup_is_taken() -> StoreUnavailableError:
    """Error of a removal that was asked for while another process has a hold."""
    problem = "a backup of this store is taken, and nothing is removed until it ends"
    return StoreUnavailableError(f"{problem}; try again", retry_after_s=5.0)


@contextmanager
def holding(data_dir: Path, timeout_s: float) -> Iterator[None]:
    """Keep a store from removing anything until the block ends, also if it is killed; raises StoreUnavailableError."""
    deadline_s = time.monotonic() + timeout_s
    with (data_dir / HOLD_FILE).open("a+b") as file:
        while not try_lock(file.fileno(), is_shared=True):
            if time.monotonic() > deadline_s:
                problem = f"the store on {data_dir} has been removing what it does not need for {timeout_s:g} s"
                raise StoreUnavailableError(f"{problem}; try again")
            time.sleep(POLL_S)
        yield
