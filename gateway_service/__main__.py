"""`python -m gateway_service`: one gateway, from settings to its end."""

import asyncio
import os
import sys

from gateway_service.app import run
from gateway_service.settings import GatewaySettings
from hotslot.errors import HotslotError
from shared.failed_start import tell_failed_start
from shared.process_tuning import take_turns_often
from shared.settings import load
from shared.telemetry import set_up_logging
from shared.trace_export import exported_traces

PROG = "python -m gateway_service"


def main() -> int:
    """Read the settings and serve until a signal comes."""
    settings = load(GatewaySettings, prog=PROG)
    set_up_logging(settings.log_format, settings.log_level)
    take_turns_often()
    try:
        with exported_traces("gateway", os.environ):
            asyncio.run(run(settings))
    except (HotslotError, OSError) as exc:
        return tell_failed_start(PROG, exc, settings.start_pause_s)
    return 0


if __name__ == "__main__":
    sys.exit(main())
