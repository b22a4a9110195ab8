"""The embedded Valkey of `hotslot up`, started again on its port when it ends."""

import time
from contextlib import ExitStack

from hotslot.backoff import Backoff
from hotslot.cli.output import say
from hotslot.local.embedded_valkey import EmbeddedValkey, embedded_valkey

BACKOFF = Backoff(0.2, 15.0)
STABLE_AFTER_S = 10.0
"""One that ended after it had lived this long is started again without a pause."""


class SupervisedValkey:
    """A running server with one URL for all of its lives.

    Make it in a thread that outlives it. Raises ModuleNotFoundError when the wheel is not installed.
    """

    def __init__(self, password: str = "") -> None:
        """Start it; `password` is that of all of its lives, and without one it answers all of this machine."""
        self._password = password
        self._stack = ExitStack()
        self._server: EmbeddedValkey = self._stack.enter_context(embedded_valkey(password=password))
        self._started_s = time.monotonic()
        self._short_lives = 0
        """Ends in a row after which a pause follows."""
        self._has_ended = False
        self._next_start_s = 0.0

    @property
    def url(self) -> str:
        """URL at which the server answers; the same after a restart."""
        return self._server.url

    @property
    def pid(self) -> int:
        """Process id of the server that runs, or that ran last."""
        return self._server.pid

    def revive(self) -> bool:
        """Start it again if it ended, at once at first and then with longer pauses; True when it was started."""
        if self._server.process.poll() is None:
            return False
        now_s = time.monotonic()
        if not self._has_ended:
            self._has_ended = True
            say(f"hotslot: valkey ended with {self._server.process.returncode}")
            self._plan_start(now_s, lived_s=now_s - self._started_s)
        if now_s < self._next_start_s:
            return False
        self._stack.close()
        try:
            self._server = self._stack.enter_context(embedded_valkey(port=self._server.port, password=self._password))
        except (RuntimeError, OSError) as exc:
            now_s = time.monotonic()
            self._plan_start(now_s, lived_s=0.0)
            say(f"hotslot: valkey cannot be started again, next try in {self._next_start_s - now_s:.1f} s: {exc}")
            return False
        self._has_ended = False
        self._started_s = time.monotonic()
        return True

    def _plan_start(self, now_s: float, lived_s: float) -> None:
        if lived_s >= STABLE_AFTER_S:
            self._short_lives, self._next_start_s = 0, now_s
        else:
            self._next_start_s = now_s + BACKOFF.pause_s(self._short_lives)
            self._short_lives += 1

    def close(self) -> None:
        """End it; again is harmless."""
        self._stack.close()
