"""Screens that follow something on a terminal: drawn again and again, sorted and scrolled by keys."""

import os
import sys
import termios
import time
import tty
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

from rich.console import Console, RenderableType
from rich.live import Live
from rich.segment import Segment, SegmentLines

from hotslot.cli.interrupts import Pause, interruptible_pauses

KEYS = {"\x1b[A": "k", "\x1b[B": "j", "\x1b[5~": "b", "\x1b[6~": " ", "\x1b[H": "g", "\x1b[F": "G"}
"""Arrows, pages, home and end, as the letters that do the same."""
HELP = "s sorts, j k scroll, space b page, q ends"
MAX_KEY_BYTES = 16


@dataclass(frozen=True, slots=True)
class ScreenState:
    """Choices that keys change."""

    order: str
    offset: int = 0
    """Lines above the screen."""
    is_over: bool = False

    def pressed(self, key: str, orders: Sequence[str], num_lines: int, height: int) -> "ScreenState":
        """The state after a key; unknown ones change nothing."""
        last = max(0, num_lines - height)
        match KEYS.get(key, key):
            case "q":
                return replace(self, is_over=True)
            case "s":
                return replace(self, order=orders[(orders.index(self.order) + 1) % len(orders)])
            case "j":
                return self.at(self.offset + 1, last)
            case "k":
                return self.at(self.offset - 1, last)
            case " ":
                return self.at(self.offset + height, last)
            case "b":
                return self.at(self.offset - height, last)
            case "g":
                return self.at(0, last)
            case "G":
                return self.at(last, last)
        return self

    def at(self, offset: int, last: int) -> "ScreenState":
        """The same from another line on, as far as there are any."""
        return replace(self, offset=min(max(0, offset), last))


def follow(
    draw: Callable[[str], RenderableType], order: str, orders: Sequence[str], interval_s: float, count: int = 0
) -> None:
    """Draw until `q`, Ctrl-C, or `count` times; `draw` is given the order, and the last picture stays behind."""
    console = Console(highlight=False)
    state, drawn = ScreenState(order), 0
    picture: RenderableType = ""
    with (
        interruptible_pauses() as pause,
        _keys(pause) as read_key,
        Live(console=console, auto_refresh=False, screen=True) as live,
    ):
        while not state.is_over:
            picture = draw(state.order)
            drawn += 1
            until_s = time.monotonic() + interval_s
            while not state.is_over:
                height = max(1, console.height - 1)
                lines = console.render_lines(picture, console.options, pad=False, new_lines=False)
                state = state.at(state.offset, max(0, len(lines) - height))
                live.update(_screen(lines, state, height), refresh=True)
                if drawn == count or not (key := read_key(max(0.0, until_s - time.monotonic()))):
                    break
                before = state.order
                state = state.pressed(key, orders, len(lines), height)
                if state.order != before:
                    picture = draw(state.order)
            if drawn == count:
                break
    console.print(picture)


def _screen(lines: list[list[Segment]], state: ScreenState, height: int) -> SegmentLines:
    """Lines that fit, and a last one with where they are and which keys there are."""
    shown = lines[state.offset : state.offset + height]
    more = f"lines {state.offset + 1} to {state.offset + len(shown)} of {len(lines)}, " if len(lines) > height else ""
    filler: list[list[Segment]] = [[Segment("")] for _ in range(height - len(shown))]
    return SegmentLines([*shown, *filler, [Segment(f"{more}by {state.order}; {HELP}")]], new_lines=True)


@contextmanager
def _keys(pause: Pause) -> Iterator[Callable[[float], str]]:
    """Yield a reader of keys, which waits for one as long as it is told; without a terminal it only waits."""

    def wait(timeout_s: float) -> str:
        pause(timeout_s)
        return ""

    if not sys.stdin.isatty():
        yield wait
        return
    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)

    def read(timeout_s: float) -> str:
        return os.read(descriptor, MAX_KEY_BYTES).decode(errors="replace") if pause(timeout_s, descriptor) else ""

    tty.setcbreak(descriptor)
    try:
        yield read
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)
