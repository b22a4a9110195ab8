"""Tables that fit a terminal: columns give way whole, in an order, and a line says which."""

from collections.abc import Iterator, Sequence

from rich import box
from rich.console import Console, ConsoleOptions, RenderableType
from rich.table import Table
from rich.text import Text

MAX_COLUMNS = 100_000


class FittedTable:
    """Rows of text under columns; the first column folds, where nothing else is left to give way."""

    def __init__(self, columns: Sequence[str], right: Sequence[str], gives_way: Sequence[str]) -> None:
        """The columns named in `right` hold numbers; those in `gives_way` are left out, the first one first."""
        self._columns, self._right, self._gives_way = tuple(columns), frozenset(right), tuple(gives_way)
        self._rows: list[tuple[str, ...]] = []

    def add_row(self, *cells: str) -> None:
        """Add a row with a cell for each column."""
        self._rows.append(cells)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        left_out: list[str] = []
        giving = [name for name in self._gives_way if name in self._columns]
        while giving and self._width(left_out) > options.max_width:
            left_out.append(giving.pop(0))
        yield self._table(left_out)
        if left_out:
            yield Text(f"left out here: {', '.join(left_out)} (wider terminals show them)", style="dim")

    def _width(self, left_out: Sequence[str]) -> int:
        unbounded = Console(width=MAX_COLUMNS)
        return unbounded.measure(self._table(left_out)).maximum

    def _table(self, left_out: Sequence[str]) -> Table:
        made = Table(box=box.SIMPLE_HEAD, header_style="bold", pad_edge=False, show_edge=False)
        kept = [index for index, name in enumerate(self._columns) if name not in left_out]
        for index in kept:
            name, folds = self._columns[index], index == 0
            justify = "right" if name in self._right else "left"
            made.add_column(name, justify=justify, no_wrap=not folds, overflow="fold" if folds else "ellipsis")  # type: ignore[arg-type]
        for row in self._rows:
            made.add_row(*(row[index] for index in kept))
        return made
