"""What every Catalog must do with an adapter's labels."""

import pytest
from sqlalchemy import Engine

from hotslot.contract.catalog import AdapterEventKind
from hotslot.errors import InvalidRequestError
from store_service.catalog.catalog import Catalog
from store_service.catalog.records import MAX_LABELS
from tests.contract.test_catalog import ACME, BOT, create, kinds


@pytest.fixture
def catalog(engine: Engine) -> Catalog:
    return Catalog(engine)


def test_a_label_that_changes_is_a_change_of_the_adapter(catalog: Catalog) -> None:
    create(catalog, 1, labels={"a": "1", "b": "2"})
    for new_labels, expected in (
        ({"a": "2"}, {"a": "2", "b": "2"}),
        ({"b": ""}, {"a": "2"}),
        ({"a": "", "c": "3"}, {"c": "3"}),
    ):
        before, revision = catalog.get_adapter(ACME, BOT), catalog.revision(ACME)
        create(catalog, 1, labels=new_labels)
        after = catalog.get_adapter(ACME, BOT)
        assert after.labels == expected
        assert after.etag != before.etag
        assert after.update_time_s > before.update_time_s
        assert kinds(catalog, revision) == [AdapterEventKind.LABELS_CHANGED]


def test_labels_that_are_as_they_were_change_nothing(catalog: Catalog) -> None:
    create(catalog, 1, labels={"a": "1"})
    before = catalog.get_adapter(ACME, BOT)
    create(catalog, 1, labels={"a": "1", "never there": ""})
    assert catalog.get_adapter(ACME, BOT) == before


def test_an_adapter_has_a_bounded_number_of_labels(catalog: Catalog) -> None:
    create(catalog, 1, labels={f"k{index}": "v" for index in range(MAX_LABELS)})
    before = catalog.get_adapter(ACME, BOT)
    with pytest.raises(InvalidRequestError, match=f"at most {MAX_LABELS}"):
        create(catalog, 2, labels={"one more": "v"})
    assert catalog.get_adapter(ACME, BOT) == before
    create(catalog, 2, labels={"k0": "other"})
    create(catalog, 2, labels={"one more": "v", "k1": ""})
    assert len(catalog.get_adapter(ACME, BOT).labels) == MAX_LABELS
