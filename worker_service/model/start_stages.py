"""Times the parts of a model's start."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import structlog

from hotslot.contract.control import StartupStage

log = structlog.get_logger(__name__)


@dataclass
class StartStages:
    """Times the parts of the start and reports the current one."""

    on_stage: Callable[[str], None]
    done: list[StartupStage] = field(default_factory=list)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        self.on_stage(name)
        log.info("startup_stage_begun", stage=name)
        began_s = time.monotonic()
        yield
        self.done.append(StartupStage(name, time.monotonic() - began_s))
        log.info("startup_stage", stage=name, duration_s=round(self.done[-1].duration_s, 2))
