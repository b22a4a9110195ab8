"""A worker's process, from its settings to its exit code."""

import asyncio
from collections.abc import Callable, Mapping
from typing import NoReturn

from hotslot.formats.base_spec import BaseSpec
from shared.failed_start import tell_failed_start, tell_failure
from shared.trace_export import exported_traces
from worker_service.app import run
from worker_service.ending import ProcessEnding
from worker_service.settings import WorkerSettings
from worker_service.starting import LoadModel


def live(
    prog: str,
    settings: WorkerSettings,
    describe: Callable[[], BaseSpec],
    load: LoadModel,
    environment: Mapping[str, str],
) -> NoReturn:
    """Serve until a signal comes, and end the process; `describe` and `load` are those of `run`.

    `environment` says whether traces are exported.
    """
    try:
        with exported_traces("worker", environment):
            ending = asyncio.run(run(settings, describe, load))
    except OSError as exc:
        # The address is taken.
        ending = ProcessEnding(failure=exc, failed_start=True)
    if ending.failure is not None and ending.failed_start:
        ending.code = tell_failed_start(prog, ending.failure, settings.start_pause_s)
    elif ending.failure is not None:
        ending.code = tell_failure(prog, ending.failure)
    ending.leave()
