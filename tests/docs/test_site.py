"""The site is built without the network, and a link, an anchor or a page that is wrong stops the build."""

import re
from pathlib import Path

import pytest

from tools.docs.pages import page_names, staged
from tools.docs.site import build

pytestmark = pytest.mark.filterwarnings("ignore:'myst_parser")

ROOT = Path(__file__).resolve().parents[2]
HOME = "# Home\n\n```{toctree}\nother\n```\n"
OTHER = "# Other\n\n## A part\n\nBack to [the first page](index.md).\n"


def site(folder: Path, home: str = HOME, **pages: str) -> Path:
    """Pages laid out for the generator."""
    source = folder / "source"
    for name, text in {"index": home, "other": OTHER, **pages}.items():
        (source / "docs").mkdir(parents=True, exist_ok=True)
        (source / "docs" / f"{name}.md").write_text(text)
    return source


def test_pages_become_a_site_that_asks_no_other_host_for_anything(tmp_path: Path) -> None:
    assert build(site(tmp_path, HOME + "\n[a part](other.md#a-part)\n"), tmp_path, check=False)
    assert "docs/index.html" in (tmp_path / "html" / "index.html").read_text()
    page = (tmp_path / "html" / "docs" / "index.html").read_text()
    assert 'href="other.html#a-part"' in page
    assert "<script" in page
    assert re.findall(r'<(?:script|link|img)\b[^>]*(?:src|href)="(?:https?:)?//[^"]*', page) == []


@pytest.mark.parametrize(
    "wrong",
    ["[gone](gone.md)", "[no such part](other.md#gone)", "[no such part](#gone)", "![gone](gone.svg)"],
)
def test_what_leads_nowhere_is_an_error(tmp_path: Path, wrong: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert not build(site(tmp_path, f"{HOME}\n{wrong}\n"), tmp_path, check=True)
    assert "docs/index.md" in capsys.readouterr().err


def test_a_page_that_no_list_of_pages_has_is_an_error(tmp_path: Path) -> None:
    assert not build(site(tmp_path, lost="# Lost\n"), tmp_path, check=True)


def test_links_to_code_become_text_and_others_stay(tmp_path: Path) -> None:
    (tmp_path / "code").mkdir()
    (tmp_path / "page.md").write_text("[`x`](code) [there](other.md) [gone](gone.py) [far](https://example.org/)")
    (tmp_path / "other.md").write_text("")
    shown = staged(tmp_path, Path("page.md"))
    assert shown == "`x` [there](other.md) [gone](gone.py) [far](https://example.org/)"


def test_every_page_of_the_repository_is_part_of_the_site() -> None:
    names = set(map(str, page_names(ROOT)))
    assert {"README.md", "ARCHITECTURE.md", "docs/network.md", "docs/decisions/engine.md"} <= names
