"""Health of the store: each part is looked at side by side, in bounded time, and one that fails says why."""

import asyncio
import time
from pathlib import Path

import pytest
from sqlalchemy import create_engine

from hotslot.errors import CoordinationUnavailableError, QuotaExceededError, StoreUnavailableError
from store_service import health
from store_service.health import Look, StoreHealth, check_catalog, check_disk


async def works() -> None:
    """Find nothing wrong."""


async def refused() -> None:
    raise CoordinationUnavailableError("Redis at redis://redis cannot be used: refused")


async def hangs() -> None:
    await asyncio.Event().wait()


async def test_a_part_that_fails_says_why_and_only_a_required_one_makes_it_not_ready() -> None:
    found = await StoreHealth([Look("catalog", works), Look("redis", refused, required=False)]).status()
    assert found.ready
    assert [(part.name, part.works) for part in found.parts] == [("catalog", True), ("redis", False)]
    (failing,) = found.failing
    assert failing.why == "Redis at redis://redis cannot be used: refused"
    assert not (await StoreHealth([Look("catalog", refused)]).status()).ready


async def test_parts_that_hang_are_waited_for_at_the_same_time_and_not_for_long() -> None:
    looks = [Look(f"part-{number}", hangs) for number in range(20)]
    began_s = time.monotonic()
    found = await StoreHealth([*looks, Look("catalog", works)], patience_s=1.0).status()
    assert time.monotonic() - began_s < 15
    assert [part.works for part in found.parts] == [False] * 20 + [True]
    assert {part.why for part in found.failing} == {"it did not answer within 1 s"}


def test_a_catalog_that_cannot_be_asked_is_named_without_its_url(tmp_path: Path) -> None:
    check_catalog(create_engine(f"sqlite:///{tmp_path / 'there.sqlite'}"))
    with pytest.raises(StoreUnavailableError, match="does not answer") as caught:
        check_catalog(create_engine(f"sqlite:///{tmp_path / 'secret-folder' / 'none.sqlite'}"))
    assert "secret-folder" not in caught.value.message


def test_a_disk_without_room_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_disk(tmp_path)
    monkeypatch.setattr(health, "LEAST_FREE_BYTES", 2**60)
    with pytest.raises(QuotaExceededError, match="bytes left"):
        check_disk(tmp_path)
    with pytest.raises(FileNotFoundError):
        check_disk(tmp_path / "gone")
