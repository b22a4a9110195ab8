"""What calls count for whose callers found no room, by a clock of the test."""

from contextvars import Context
from types import SimpleNamespace
from typing import Any, cast

import pytest

from hotslot.errors import HotslotError, QueueFullError
from hotslot.formats.principals import Scope
from hotslot.ids import TenantId
from shared.identity.authenticator import Authenticator
from shared.identity.callers import Caller
from shared.server import paced_calls
from shared.server.counters import Counters
from shared.server.paced_calls import ROOMLESS, PacedCalls

LOUD = "principal loud"
FULL = QueueFullError("full", subject="uploads")


class Calls:
    """Calls of one caller, each in a context of its own, as gRPC's are."""

    def __init__(self, per_s: float, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_s = 1000.0
        monkeypatch.setattr(paced_calls, "time", SimpleNamespace(monotonic=lambda: self.now_s))
        self._paced = PacedCalls(per_s, Counters(), cast(Authenticator, object()))
        self._caller = Caller("loud", TenantId("loud"), frozenset({Scope.PUBLISH}), frozenset({"loud"}))
        self._call: Any = SimpleNamespace(peer=lambda: "ipv4:127.0.0.1:50000")

    def begin(self) -> Context | None:
        """A call whose message has come; None where it may not begin."""
        context = Context()
        if context.run(self._paced.refusal, LOUD) is not None:
            return None
        self._paced.came(LOUD)
        return context

    def answer(self, context: Context) -> None:
        """A call's first message goes out."""
        context.run(self._paced.found_room)

    def end(self, context: Context | None, error: HotslotError | None = None) -> None:
        assert context is not None
        context.run(self._paced.ended, self._caller, error, None, self._call)


@pytest.mark.parametrize("per_s", [1.0, 5.0, 10.0, 19.0, 20.0, 100.0])
def test_a_call_may_begin_after_one_without_room_once_what_that_cost_is_worked_off(
    monkeypatch: pytest.MonkeyPatch, per_s: float
) -> None:
    monkeypatch.setattr(paced_calls, "ROOMLESS_FOR_S", 600.0)
    calls = Calls(per_s, monkeypatch)
    calls.end(calls.begin(), FULL)
    calls.now_s += max(1.0, 5 / per_s)
    assert calls.begin() is not None


def test_a_stream_that_answers_counts_for_one_while_it_lasts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paced_calls, "ROOMLESS_FOR_S", 600.0)
    calls = Calls(100.0, monkeypatch)
    calls.end(calls.begin(), FULL)
    begun = 0
    while (stream := calls.begin()) is not None and begun < 1000:
        calls.answer(stream)
        begun += 1
    assert begun > 100 - 2 * ROOMLESS


def test_calls_that_last_save_nothing_up_for_later(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paced_calls, "ROOMLESS_FOR_S", 600.0)
    calls = Calls(100.0, monkeypatch)
    calls.end(calls.begin(), FULL)
    running = []
    for _ in range(100):
        calls.now_s += ROOMLESS / 100
        running.append(calls.begin())
    calls.now_s += 2.0
    num_begun = 0
    for each in running:
        calls.end(each)
        while calls.begin() is not None:
            num_begun += 1
    assert num_begun <= 100 / (ROOMLESS - 4) + 1
