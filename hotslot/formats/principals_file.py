"""Changes of the file of principals, one after the other, by any number of processes."""

import io
from collections.abc import Callable
from pathlib import Path

from hotslot.content_files import PRIVATE, make_directory, write_file
from hotslot.file_lock import lock
from hotslot.formats.principals import Principals, encode_principals, parse_principals, read_principals


def change_principals(file: Path, change: Callable[[Principals], Principals]) -> None:
    """Change the file in a turn of its own; it is made where there is none, for its owner alone."""
    make_directory(file.absolute().parent)
    with file.with_name(f".{file.name}.lock").open("a") as turn:
        lock(turn.fileno())
        principals = read_principals(file) if file.exists() else {}
        data = encode_principals(change(principals))
        parse_principals(data, str(file))
        write_file(file, io.BytesIO(data), mode=PRIVATE)
