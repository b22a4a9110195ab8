"""Files are staged, verified, synced and renamed by one module, and locked by another; exceptions say why."""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGES = ("hotslot", "shared", "store_service", "worker_service", "gateway_service", "controller_service")
THE_ONE = "hotslot/content_files.py"
EXCEPTIONS = {
    "hotslot/clients/pulling.py": "a whole folder, written from a verified blob, moves into its place",
    "store_service/backup/catalog_copy.py": "SQLite writes the copy itself",
    "store_service/backup/places.py": "a tar archive is locked while it grows, and is no content of one digest",
    "store_service/backup/restoring.py": "whole folders, verified file by file, move into their place",
    "store_service/content/folder.py": "a rotten blob moves aside",
    "worker_service/compiled_code/archive.py": "files of an archive whose seal was checked move into their place",
    "worker_service/demo_model.py": "a whole folder, converted from a verified file, moves into its place",
    "worker_service/model/cpu/library.py": "the compiler writes the library itself",
}


def moves(path: Path) -> list[int]:
    """Lines that sync or rename files: `fsync(…)`, `.rename(…)`, and `.replace(…)` of one argument, which is Path's."""
    calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    return [
        call.lineno
        for call in calls
        if isinstance(call.func, ast.Attribute)
        and (
            call.func.attr in ("fsync", "rename")
            or (call.func.attr == "replace" and len(call.args) == 1 and not call.keywords)
        )
    ]


def test_one_module_makes_files_durable_and_gives_them_their_names() -> None:
    found = {
        str(path.relative_to(ROOT)): lines
        for package in PACKAGES
        for path in sorted((ROOT / package).rglob("*.py"))
        if (lines := moves(path))
    }
    assert found.pop(THE_ONE)
    assert found.keys() == EXCEPTIONS.keys(), found


def test_one_module_locks_files() -> None:
    found = {
        str(path.relative_to(ROOT))
        for package in PACKAGES
        for path in (ROOT / package).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if (isinstance(node, ast.ImportFrom) and node.module == "fcntl")
        or (isinstance(node, ast.Import) and any(alias.name == "fcntl" for alias in node.names))
    }
    assert found == {"hotslot/file_lock.py"}
