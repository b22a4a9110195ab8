"""Screens that are followed: orders, limits, keys, and a real terminal of which the keys come."""

import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from fcntl import ioctl
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from hotslot.cli.fleet_commands import view
from hotslot.cli.fleet_readings import Reading
from hotslot.cli.live_screen import KEYS, ScreenState
from hotslot.cli.orders import (
    AdapterOrder,
    WorkerOrder,
    first_of,
    ordered_adapters,
    ordered_placements,
    ordered_workers,
)
from hotslot.cli.output import rendered
from hotslot.contract.control import AdapterTier, LoadedAdapter, WorkerState
from hotslot.contract.placement import Placement, Tier, Worker, WorkerLoad
from hotslot.ids import Digest
from tests.support.machine_pace import within

NOW = datetime(2026, 3, 4, tzinfo=UTC)
DIGEST = Digest("sha256:" + "0" * 64)
ORDERS = [one.value for one in WorkerOrder]
WORKERS = [
    Worker(name, "h:1", "base", DIGEST, state, WorkerLoad(running, waiting, 8, 3, 8, kv), NOW - timedelta(hours=hours),
           None, 1, 1, "bfloat16", 64)
    for name, state, running, waiting, kv, hours in (
        ("a", WorkerState.READY, 1, 5, 0.1, 3), ("b", WorkerState.DRAINING, 7, 0, 0.9, 1),
        ("c", WorkerState.READY, 1, 9, 0.5, 9),
    )
]  # fmt: skip
ADAPTERS = [
    LoadedAdapter(digest=DIGEST, references=(name,), tier=tier, max_rank=rank, users=users, host_size_bytes=size,
                  slots=(), pinned=False, last_used_time=used)
    for name, tier, rank, users, size, used in (
        ("a", AdapterTier.HOST, 8, 0, 30, NOW), ("b", AdapterTier.SLOT, 4, 3, 10, None),
        ("c", AdapterTier.DISK, 64, 1, 20, NOW - timedelta(1)),
    )
]  # fmt: skip


@pytest.mark.parametrize(
    ("order", "expected"),
    [("name", "abc"), ("state", "bac"), ("running", "bac"), ("waiting", "cab"), ("tokens", "cab"), ("kv", "bca"),
     ("up", "cab")],
)  # fmt: skip
def test_workers_are_ordered_by_what_is_asked_for(order: str, expected: str) -> None:
    rates = {"c": 9.0, "a": 1.0}
    assert "".join(w.worker_id for w in ordered_workers(WORKERS, WorkerOrder(order), rates)) == expected


@pytest.mark.parametrize(
    ("order", "expected"),
    [("name", "abc"), ("tier", "bac"), ("users", "bca"), ("size", "acb"), ("rank", "cab"), ("used", "acb")],
)
def test_adapters_of_a_worker_are_ordered_by_what_is_asked_for(order: str, expected: str) -> None:
    assert "".join(a.references[0] for a in ordered_adapters(ADAPTERS, AdapterOrder(order))) == expected


def test_no_order_is_left_out_of_these_tests() -> None:
    assert len(WorkerOrder) == 7
    assert len(AdapterOrder) == 6


def test_a_limit_says_how_many_it_leaves_out() -> None:
    placements = [Placement(DIGEST, w.worker_id, Tier.SLOT, False, "x") for w in reversed(WORKERS)]
    assert [p.worker_id for p in ordered_placements(placements)] == ["a", "b", "c"]
    assert first_of(WORKERS, 0) == (WORKERS, "")
    assert first_of(WORKERS, 3) == (WORKERS, "")
    reading = Reading(NOW, WORKERS, placements, {}, "")
    out = Console(width=120, color_system=None)
    text = rendered(view(reading, NOW, WorkerOrder.WAITING, 1), out=out)
    assert text.count("and 2 more (--limit 3 shows all)") == 2
    assert "3 workers  9 running" in text, "the headline counts all"
    assert [line.split()[0] for line in text.splitlines() if "h:1" in line] == ["c"]


@given(
    keys=st.lists(st.sampled_from([*KEYS, *"jkgG bsqx"]), max_size=30),
    num_lines=st.integers(0, 200),
    height=st.integers(1, 60),
)
def test_no_keys_scroll_beyond_the_lines(keys: list[str], num_lines: int, height: int) -> None:
    state = ScreenState("name")
    for key in keys:
        state = state.pressed(key, ORDERS, num_lines, height)
        assert 0 <= state.offset <= max(0, num_lines - height)
        assert state.order in ORDERS
    assert state.is_over == ("q" in keys)


def test_keys_do_what_the_help_says() -> None:
    state = ScreenState("name")
    assert [s.offset for s in (state.pressed(k, ORDERS, 100, 10) for k in ("j", " ", "G", "\x1b[B"))] == [1, 10, 90, 1]
    down = replace(state, offset=50)
    assert [s.offset for s in (down.pressed(k, ORDERS, 100, 10) for k in ("k", "b", "g", "\x1b[5~"))] == [49, 40, 0, 40]
    for _ in ORDERS:
        state = state.pressed("s", ORDERS, 1, 1)
    assert state.order == "name", "once around"


SCREEN = """
from rich.text import Text
from hotslot.cli.app import EXIT_INTERRUPTED
from hotslot.cli.live_screen import follow
try:
    follow(lambda order: Text("\\n".join(f"{order} line {i}" for i in range(1, 41))), "name", ["name", "size"], 30.0)
except KeyboardInterrupt:
    raise SystemExit(EXIT_INTERRUPTED)
"""
Terminal = tuple["subprocess.Popen[bytes]", int]


@contextmanager
def on_terminal(*arguments: str) -> Iterator[Terminal]:
    """A program of Python on a terminal of 12 lines, which sends it Ctrl-C."""
    ours, theirs = pty.openpty()
    ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 12, 60, 0, 0))
    take = (
        "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execv(sys.executable, sys.argv[1:])"
    )
    # What a terminal says of its size counts, not what some program left in the environment.
    environment = {name: value for name, value in os.environ.items() if name not in ("LINES", "COLUMNS")}
    process = subprocess.Popen(
        [sys.executable, "-c", take, sys.executable, *arguments], stdin=theirs, stdout=theirs, stderr=theirs,
        start_new_session=True, env={**environment, "TERM": "xterm"},
    )  # fmt: skip
    os.close(theirs)
    try:
        yield process, ours
    finally:
        process.kill()
        process.wait()
        os.close(ours)


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    """A followed screen of 40 lines."""
    with on_terminal("-c", SCREEN) as running:
        yield running


def heard(ours: int, is_enough: Callable[[str], bool], timeout_s: float = 60.0) -> str:
    """Text that came on the terminal, until it is enough."""
    text, deadline_s = "", time.monotonic() + timeout_s
    while not is_enough(text):
        assert time.monotonic() < deadline_s, text
        if select.select([ours], [], [], 0.1)[0]:
            try:
                text += re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", os.read(ours, 65_536).decode(errors="replace"))
            except OSError:
                break
    return text


def test_keys_scroll_and_sort_at_once_on_a_real_terminal_and_q_leaves_the_picture(terminal: Terminal) -> None:
    process, ours = terminal
    text = heard(ours, lambda text: "lines 1 to 11 of 40, by name" in text)
    assert "name line 12\r" not in text
    os.write(ours, b" ")
    heard(ours, lambda text: "lines 12 to 22 of 40" in text)
    os.write(ours, b"\x1b[B")
    heard(ours, lambda text: "lines 13 to 23 of 40" in text)
    os.write(ours, b"s")
    heard(ours, lambda text: "size line 13" in text and "by size" in text)
    os.write(ours, b"q")
    assert "size line 40" in heard(ours, lambda text: "size line 40" in text)
    assert process.wait(60) == 0


def test_ctrl_c_at_a_followed_screen_ends_it_and_gives_the_terminal_back(terminal: Terminal) -> None:
    process, ours = terminal
    heard(ours, lambda text: "by name" in text)
    before = termios.tcgetattr(ours)[3] & termios.ICANON
    with within(2.0):  # a tenth of a second alone
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(60) == 130
    assert before == 0
    assert termios.tcgetattr(ours)[3] & termios.ICANON, "lines are edited again"


def test_the_line_of_a_ctrl_c_does_not_stick_to_what_the_terminal_echoes(tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "store.log").write_text("listening\n")
    with on_terminal("-m", "hotslot", "logs", "-f", "--data-dir", str(tmp_path)) as (process, ours):
        heard(ours, lambda text: "listening" in text)
        os.write(ours, b"\x03")
        text = heard(ours, lambda text: "interrupted" in text)
        assert process.wait(60) == 130
    assert "^C" in text
    assert "hotslot: interrupted" in text.splitlines()
