"""`python -m store_service`: one store, from settings to its end."""

import asyncio
import os
import sys

from hotslot.errors import HotslotError
from shared.failed_start import tell_failed_start
from shared.process_tuning import reuse_freed_memory, take_turns_often
from shared.settings import load
from shared.telemetry import set_up_logging
from shared.trace_export import exported_traces
from store_service.app import run
from store_service.settings import StoreSettings

PROG = "python -m store_service"


def main() -> int:
    """Read the settings and serve until a signal comes."""
    settings = load(StoreSettings, prog=PROG)
    set_up_logging(settings.log_format, settings.log_level)
    reuse_freed_memory()
    take_turns_often()
    try:
        with exported_traces("store", os.environ):
            asyncio.run(run(settings))
    except (HotslotError, OSError) as exc:
        return tell_failed_start(PROG, exc, settings.start_pause_s)
    return 0


if __name__ == "__main__":
    sys.exit(main())
