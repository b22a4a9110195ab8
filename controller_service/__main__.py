"""`python -m controller_service`: one controller, from settings to its end."""

import asyncio
import os
import sys

from controller_service.app import run
from controller_service.settings import ControllerSettings
from hotslot.errors import HotslotError
from shared.failed_start import tell_failed_start
from shared.settings import load
from shared.telemetry import set_up_logging
from shared.trace_export import exported_traces

PROG = "python -m controller_service"


def main() -> int:
    """Read the settings and work until a signal comes."""
    settings = load(ControllerSettings, prog=PROG)
    set_up_logging(settings.log_format, settings.log_level)
    try:
        with exported_traces("controller", os.environ):
            asyncio.run(run(settings))
    except (HotslotError, OSError) as exc:
        return tell_failed_start(PROG, exc, settings.start_pause_s)
    return 0


if __name__ == "__main__":
    sys.exit(main())
