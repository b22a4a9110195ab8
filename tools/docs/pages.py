"""Pages of the repository, laid out for the generator as they lie in the checkout, and the generated ones."""

import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from tools.docs import (
    commands_reference,
    errors_reference,
    http_reference,
    metrics_reference,
    protos_reference,
    settings_reference,
)

REFERENCE = Path("docs/reference")
GENERATED: Mapping[str, Callable[[], str]] = {
    "settings.md": settings_reference.page,
    "errors.md": errors_reference.page,
    "commands.md": commands_reference.page,
    "grpc.md": protos_reference.page,
    "http.md": http_reference.page,
    "metrics.md": metrics_reference.page,
}
"""Pages of the reference by name. They are made of the code when the site is built, and are in no checkout: a change of
the code changes one file, and no page can be older than what it describes."""
PICTURES = (".svg", ".png")
LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\[\]]*\])*)\]\(([^)\s]+)\)")


def stage(root: Path, target: Path) -> int:
    """Copy pages and pictures, and write the reference; returns the number of pages."""
    names = list(page_names(root))
    for name in names:
        _folder_of(target / name).joinpath(name.name).write_text(staged(root, name))
    for picture in (path for suffix in PICTURES for path in (root / "docs").rglob(f"*{suffix}")):
        shutil.copy(picture, _folder_of(target / picture.relative_to(root)))
    for file, page in GENERATED.items():
        _folder_of(target / REFERENCE / file).joinpath(file).write_text(page())
    return len(names) + len(GENERATED)


def page_names(root: Path) -> Iterator[Path]:
    """Paths of the pages in the repository: those at its top, and those of docs/ that were written by hand."""
    generated = {REFERENCE / name for name in GENERATED}
    for path in sorted([*root.glob("*.md"), *(root / "docs").rglob("*.md")]):
        if path.relative_to(root) not in generated:
            yield path.relative_to(root)


def staged(root: Path, name: Path) -> str:
    """Text of a page; links to code, which is not part of the site, become their text."""

    def shown(link: re.Match[str]) -> str:
        is_picture, text, address = link.groups()
        path = (root / name).parent / address.partition("#")[0]
        is_code = "://" not in address and not address.startswith("#") and path.suffix not in (".md", *PICTURES)
        return text if is_code and not is_picture and path.exists() else link[0]

    return LINK.sub(shown, (root / name).read_text())


def _folder_of(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.parent
