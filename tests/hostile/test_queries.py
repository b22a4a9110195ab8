"""Queries by labels, and page tokens, are bounded, and as large as they may be they are answered."""

from pathlib import Path

import pytest

from hotslot.errors import InvalidPageTokenError, InvalidRequestError
from hotslot.pb.hotslot.store.v1 import adapter_store_pb2 as pb
from tests.support.checkpoints import adapter
from tests.support.store import error_of, open_store

pytestmark = pytest.mark.integration

LABELS = {f"{index:03}" + "ü" * 125: "ä" * 512 for index in range(64)}
"""As many, and as long, as an adapter may have."""


async def test_a_query_by_as_many_labels_as_there_may_be_is_answered_page_by_page(tmp_path: Path) -> None:
    async with open_store(tmp_path) as store:
        await store.register()
        for name in ("a", "b", "c"):
            await store.push(adapter(), name, labels=LABELS)
        request = pb.ListAdaptersRequest(labels=LABELS, page_size=1)
        found = []
        while True:
            page = await store.call("ListAdapters", request)
            found += [entry.name for entry in page.adapters]
            if not page.next_page_token:
                break
            assert len(page.next_page_token) < 512
            request.page_token = page.next_page_token
        assert found == ["a", "b", "c"]
        request.labels["one more"] = "than there may be"
        refused = await error_of(store.call("ListAdapters", request))
        assert isinstance(refused, InvalidRequestError)
        assert [field.field for field in refused.fields] == ["labels"]


async def test_a_page_token_of_any_length_is_refused(tmp_path: Path) -> None:
    async with open_store(tmp_path) as store:
        for length in (1, 8_192):
            request = pb.ListAdaptersRequest(page_token="W" * length)
            assert isinstance(await error_of(store.call("ListAdapters", request)), InvalidPageTokenError)
        for length in (8_193, 1_000_000):
            refused = await error_of(store.call("ListAdapters", pb.ListAdaptersRequest(page_token="W" * length)))
            assert isinstance(refused, InvalidRequestError)
            assert [field.field for field in refused.fields] == ["page_token"]
