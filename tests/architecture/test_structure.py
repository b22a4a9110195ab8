"""The structure that `python -m tools.structure` counts: no circles, no arrow upwards, one class for a name."""

from pathlib import Path

import pytest

from tests.architecture.test_layout import ROOT
from tools.structure import Structure, measure


@pytest.fixture(scope="module")
def structure() -> Structure:
    return measure(ROOT)


def test_modules_import_each_other_in_no_circle(structure: Structure) -> None:
    assert structure.files > 300
    assert structure.circles == ()


def test_no_import_goes_up(structure: Structure) -> None:
    assert structure.against_layers == ()


def test_a_name_stands_for_one_class_or_one_type(structure: Structure) -> None:
    assert structure.duplicate_classes == {}, "one word has one meaning: call one of them otherwise"


def test_circles_arrows_and_names_are_seen(tmp_path: Path) -> None:
    files = {
        "hotslot/a.py": "from hotslot import b\nimport shared.c\nclass Twin: ...\nAlias = list[int]\n",
        "hotslot/b.py": "from hotslot.a import Twin\n",
        "shared/c.py": "class Twin: ...\nAlias = dict[str, int]\nMAX = 2 * 3\nT = TypeVar('T')\n",
        "tools/d.py": '"""How it is done."""\nclass Thrice: ...\n',
        "deploy/e.py": "class Thrice: ...\nMAX = 1 + 2\nT = TypeVar('T')\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    found = measure(tmp_path, sorted(map(Path, files)))
    assert found.circles == (("hotslot.a", "hotslot.b"),)
    assert found.against_layers == ("hotslot.a -> shared.c",)
    assert set(found.duplicate_classes) == {"Twin", "Thrice", "Alias"}
    assert found.question_docstrings == ("tools/d.py:1",)
    assert found.files == 3
