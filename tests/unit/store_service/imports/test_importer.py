"""What the callers of an import are told, however slowly they take it."""

import asyncio
import threading
from contextlib import aclosing, closing, nullcontext
from pathlib import Path
from unittest.mock import create_autospec

import pytest

from hotslot.contract.catalog import TransferProgress, TransferStage
from hotslot.errors import SourceChangedError
from hotslot.ids import TenantId
from hotslot.references import parse_reference
from store_service.admission.admit import Checkpoint
from store_service.execution.fair_queue import FairQueue
from store_service.imports.importer import Importer, ImportOptions
from store_service.publication import Publication
from store_service.registry import Registry
from store_service.sources.source import FixedCheckpoint, ReportBytes, stop_if
from tests.support.waiting import until

TENANT = TenantId("default")
PUBLICATION = Publication(parse_reference("bot"), base_model="", source="", labels={})


class Stalled:
    """A source, and its content, that sends nothing until it is cancelled."""

    key = origin = "stalled"
    is_remote = False
    size_bytes = 100

    def resolve(self) -> FixedCheckpoint:
        return self

    def fetch(self, target: Path, report: ReportBytes, cancelled: threading.Event) -> Checkpoint:
        cancelled.wait(120)
        stop_if(cancelled)
        raise AssertionError("nobody cancelled the fetch")


class Restless:
    """A source that somebody writes to while it is read, a few times."""

    origin = "restless"
    is_remote = False
    size_bytes = 100

    def __init__(self, num_changes: int) -> None:
        self._num_changes = num_changes
        self.num_looks = 0

    @property
    def key(self) -> str:
        return f"look {self.num_looks}"

    def resolve(self) -> FixedCheckpoint:
        self.num_looks += 1
        return self

    def fetch(self, target: Path, report: ReportBytes, cancelled: threading.Event) -> Checkpoint:
        if self.num_looks <= self._num_changes:
            raise SourceChangedError("/imports/bot")
        return Checkpoint({})


@pytest.mark.parametrize(("num_changes", "is_imported"), [(1, True), (2, False)])
async def test_a_source_that_changed_while_it_was_read_is_looked_at_once_more(
    tmp_path: Path, num_changes: int, is_imported: bool
) -> None:
    with closing(FairQueue("admission", 1, 64)) as admission:
        registry = create_autospec(Registry, instance=True)
        registry.publish.return_value = (version := object(), True)
        importer = Importer(registry, tmp_path / "imports", admission, ImportOptions())
        source, events = Restless(num_changes), []
        with nullcontext() if is_imported else pytest.raises(SourceChangedError):
            events = [event async for event in importer.run(TENANT, source, PUBLICATION)]
        assert source.num_looks == 2
        assert events[-1:] == [version] * is_imported
        await importer.close()


async def test_a_caller_hears_of_what_happened_while_it_was_being_told_of_something_else(tmp_path: Path) -> None:
    with closing(FairQueue("admission", 1, 64)) as admission:
        registry = create_autospec(Registry, instance=True)  # nothing is admitted here
        importer = Importer(registry, tmp_path / "imports", admission, ImportOptions())
        fetching, heard = TransferProgress(TransferStage.FETCHING, 0, Stalled.size_bytes), asyncio.Event()

        async def listen() -> None:
            async with aclosing(importer.run(TENANT, Stalled(), PUBLICATION)) as events:
                async for event in events:
                    if event == fetching:
                        heard.set()

        async with aclosing(importer.run(TENANT, Stalled(), PUBLICATION)) as events:
            assert await anext(events) == TransferProgress(TransferStage.QUEUED)
            quick = asyncio.create_task(listen())
            await until(heard.is_set)
            async with asyncio.timeout(60):
                assert await anext(events) == fetching
        quick.cancel()
        await asyncio.wait([quick])
        await importer.close()
