"""Examples of the documentation: the code blocks of a page, and what the page says that they print."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_BLOCK = re.compile(
    r"(?:^<!-- not run: (?P<reason>.+?) -->\n)?^```(?P<language>\S*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL
)


@dataclass(frozen=True, slots=True)
class PageExample:
    """One code block."""

    page: str
    line: int
    language: str
    text: str
    reason: str
    """Reason for which it is not run; empty for one that is."""


@dataclass(frozen=True, slots=True)
class Typed:
    """One line that people type, and the lines that they see."""

    command: str
    shown: tuple[str, ...]


def examples(path: Path, name: str) -> list[PageExample]:
    """All code blocks of a page, in order."""
    text = path.read_text(encoding="utf-8")
    return [
        PageExample(
            name,
            text.count("\n", 0, found.start("text")),
            found["language"],
            found["text"],
            found["reason"] or "",
        )
        for found in _BLOCK.finditer(text)
    ]


def typed_lines(text: str) -> Iterator[Typed]:
    """Commands of a console block, each with what is printed before the next; a `\\` at an end goes on."""
    command: str | None = None
    shown: list[str] = []
    is_open = False
    for line in text.splitlines():
        if is_open:
            assert command is not None
            command += "\n" + line
        elif line.startswith("$ "):
            if command is not None:
                yield Typed(command, tuple(shown))
            command, shown = line[2:], []
        else:
            shown.append(line)
            continue
        is_open = line.endswith("\\") or command.count("'") % 2 == 1
    assert command is not None, "a console block begins with a line that is typed"
    yield Typed(command, tuple(shown))


def missing_lines(shown: tuple[str, ...], printed: str) -> list[str]:
    """Lines of a page that were not printed; `…` stands for anything, and columns may be wider or narrower."""
    lines = [" ".join(line.split()) for line in printed.splitlines()]
    return [line for line in shown if line.strip() not in ("", "…") and not any(_fits(line, one) for one in lines)]


def _fits(line: str, printed: str) -> bool:
    parts = " ".join(line.split()).split("…")
    return re.fullmatch(".*".join(map(re.escape, parts)), printed) is not None
