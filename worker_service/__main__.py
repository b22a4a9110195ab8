"""`python -m worker_service`: one worker, from settings to its end."""

import os
from typing import NoReturn

from hotslot.formats.base_model import spec_from_folder
from hotslot.formats.base_spec import BaseSpec
from shared.process_tuning import importing_much, reuse_freed_memory
from shared.settings import load
from shared.telemetry import set_up_logging
from worker_service.assembly import ServableModel
from worker_service.model.shared_code import SharedCode
from worker_service.process import live
from worker_service.settings import WorkerSettings

PROG = "python -m worker_service"


def main() -> NoReturn:
    """Read the settings and serve until a signal comes."""
    settings = load(WorkerSettings, prog=PROG)
    set_up_logging(settings.log_format, settings.log_level)
    reuse_freed_memory()
    live(PROG, settings, lambda: _describe(settings), lambda code: _load(settings, code), os.environ)


def _describe(settings: WorkerSettings) -> BaseSpec:
    """Base model of the worker: from the files alone, so that others hear of the worker while it loads."""
    from worker_service.model.folder import model_folder

    return spec_from_folder(model_folder(settings.model), settings.model_name or settings.model)


def _load(settings: WorkerSettings, shared_code: SharedCode | None) -> ServableModel:
    """Load the model; torch is imported here, so that the worker is alive while that takes its seconds."""
    with importing_much():
        from worker_service.model.lean_imports import import_leanly

        import_leanly("worker_service.model.loading")
        from worker_service.model.from_settings import model_options
        from worker_service.model.loading import load_model

    return load_model(model_options(settings), shared_code=shared_code)


if __name__ == "__main__":
    main()
