"""A request is settled once: the versions that it is routed by are those that serve it."""

from collections.abc import Sequence
from typing import Any

import pytest

from hotslot.ids import DEFAULT_TENANT, Digest
from hotslot.references import parse_reference
from tests.integration.fleet.conftest import Catalog
from tests.support.echo_model import voice
from tests.support.fleet import Member


async def test_a_tag_that_moves_while_a_request_is_routed_is_the_next_requests(
    pair: list[Member], store: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    front, _ = pair
    old, routed_by = store.digests["one"], list[Sequence[Digest]]()

    async def before(digests: Sequence[Digest], here: Any, policy: Any) -> list[Any]:
        """The catalog changes, and this worker hears of it, while the way is being found; it is this worker's."""
        routed_by.append(digests)
        if len(routed_by) == 1:
            await store.push("one", 7)
            await front.worker.parts.control.load(DEFAULT_TENANT, parse_reference("one"))
        return []

    monkeypatch.setattr(front.router, "before", before)
    calls = await front.calls()
    first, second = await calls.generate("one"), await calls.generate("one")
    assert (first.started.adapters[0].digest, first.text) == (old, voice(old))
    moved = store.digests["one"]
    assert (second.started.adapters[0].digest, second.text) == (moved, voice(moved))
    assert routed_by == [(old,), (moved,)]


async def test_defaults_that_change_while_a_request_is_routed_are_the_next_requests(
    pair: list[Member], store: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    front, _ = pair
    parts = front.worker.parts
    routed_by: list[Sequence[Digest]] = []

    async def before(digests: Sequence[Digest], here: Any, policy: Any) -> list[Any]:
        routed_by.append(digests)
        parts.policy.disable(DEFAULT_TENANT)
        return []

    monkeypatch.setattr(front.router, "before", before)
    calls = await front.calls()
    first, second = await calls.generate("one"), await calls.generate("one")
    assert [adapter.digest for adapter in first.started.adapters] == [store.digests["one"]]
    assert not second.started.adapters
    assert routed_by == [(store.digests["one"],), ()]
