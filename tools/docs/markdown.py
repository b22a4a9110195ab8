"""Pieces of Markdown that the pages of the reference are made of."""

import re
from collections.abc import Iterable, Mapping, Sequence


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; cells are one line each."""
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    lines += ["| " + " | ".join(cell(text) for text in row) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def cell(text: str) -> str:
    """Text as one line of a table."""
    return re.sub(r"\s*\n\s*", " ", text.strip()).replace("|", "\\|")


def code(text: str) -> str:
    """Text as code."""
    fence = "``" if "`" in text else "`"
    return f"{fence}{text}{fence}"


def prose(text: str, links: Mapping[str, str] | None = None) -> str:
    """Plain text, which may have code in backticks, as Markdown that says the same; words of `links` become links."""
    addresses = links or {}

    def shown(word: re.Match[str]) -> str:
        escaped = re.sub(r"([\\*_<>\[\]#~])", r"\\\1", word[0])
        return f"[{escaped}]({addresses[word[0]]})" if word[0] in addresses else escaped

    parts = re.split(r"(`[^`]+`)", text)
    return "".join(part if part.startswith("`") else re.sub(r"\w+|\W+", shown, part) for part in parts)


def target(name: str) -> str:
    """An anchor, for links to `#name`."""
    return f"({name})=\n"
