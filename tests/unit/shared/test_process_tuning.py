"""Imports of large libraries run without garbage collection, which goes on behind them."""

import gc
from collections.abc import Iterator

import pytest

from shared.process_tuning import importing_much


@pytest.fixture(autouse=True)
def thawed() -> Iterator[None]:
    yield
    gc.unfreeze()


def test_collection_pauses_and_what_was_imported_is_taken_out_of_it() -> None:
    before = gc.get_freeze_count()
    with importing_much():
        assert not gc.isenabled()
        made = [[index] for index in range(1000)]
    assert gc.isenabled()
    assert gc.get_freeze_count() >= before + len(made)


def test_collection_goes_on_after_an_import_that_failed() -> None:
    with pytest.raises(ImportError), importing_much():
        raise ImportError("no such library")
    assert gc.isenabled()
