"""`python -m tests.support.echo_process`: a worker process around the echo model, with the worker's own settings.

HOTSLOT_MODEL says how loading goes: `quick`, `late SECONDS`, `slow` (for ever) or `broken`; `step SECONDS [ROWS]` is
quick, paced so, and has as many rows; `paced SECONDS` is so with steps, copies and decoding; `hang` is quick and never
ends a step.
"""

import os
import time
from dataclasses import replace
from typing import NoReturn

from hotslot.errors import FieldViolation, InvalidRequestError
from shared.settings import load
from shared.telemetry import set_up_logging
from tests.support.echo_model import EchoModel, echo_model
from worker_service.process import live
from worker_service.settings import WorkerSettings

STEP_S = 0.005


def main() -> NoReturn:
    prog = "python -m tests.support.echo_process"
    settings = load(WorkerSettings, prog=prog)
    set_up_logging(settings.log_format, settings.log_level)
    live(prog, settings, lambda: echo_model().spec, lambda _: _load(settings.model), os.environ)


def _load(how: str) -> EchoModel:
    if how == "broken":
        raise InvalidRequestError([FieldViolation("model", "it is broken")])
    if how.startswith("late "):
        time.sleep(float(how.removeprefix("late ")))
    while how == "slow":
        time.sleep(1)
    step_s, _, rows = how.removeprefix("step ").partition(" ") if how.startswith("step ") else (str(STEP_S), "", "")
    model = echo_model(step_s=float(step_s))
    if rows:
        limits = replace(model.limits, max_running=int(rows), num_blocks=32 * int(rows))
        model = replace(model, limits=limits)
    if how.startswith("paced "):
        pace_s = float(how.removeprefix("paced "))
        model = echo_model(step_s=pace_s)
        model.runner.copy_s = model.decoder.decode_s = pace_s
    if how == "hang":
        model.runner.gate.clear()
    return model


if __name__ == "__main__":
    main()
