"""Metrics of any process: its versions, its memory and processor time, and how late its event loop is."""

import asyncio
import platform
from collections.abc import Iterator

import grpc
from prometheus_client import ProcessCollector
from prometheus_client.registry import CollectorRegistry

from hotslot.rpc.server_facts import installed_version
from shared.metrics.numbers import Measured, Spreads
from shared.metrics.table import TABLE

LAG_EVERY_S = 0.1


class ProcessNumbers:
    """Numbers of this process."""

    def __init__(self, service: str) -> None:
        self._collector = ProcessCollector(registry=CollectorRegistry())
        labels = (service, installed_version(), platform.python_version(), grpc.__version__)
        self._build = Measured("hotslot_build_info", 1, labels)
        self._lag = Spreads("hotslot_event_loop_lag_seconds")

    async def watch_lag(self) -> None:
        """Measure, until cancelled, by how much the event loop comes late to a timer."""
        loop = asyncio.get_running_loop()
        while True:
            due_s = loop.time() + LAG_EVERY_S
            await asyncio.sleep(LAG_EVERY_S)
            self._lag.add(max(0.0, loop.time() - due_s))

    def readings(self) -> Iterator[Measured]:
        """Values now."""
        yield self._build
        yield from self._lag.readings()
        for family in self._collector.collect():
            for sample in family.samples:
                if sample.name in TABLE:
                    yield Measured(sample.name, sample.value)
