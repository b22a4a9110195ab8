"""`python -m worker_service.compiled_code export|import FILE`: compiled code from, and into, a cache directory.

The settings are the worker's own, as variables or as flags after the file: they say what the code is for. A process
that imports a file runs the code in it; with HOTSLOT_COMPILED_CODE_SECRET or HOTSLOT_POOL_SECRET_FILE only files
sealed with it are taken.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from hotslot.errors import FieldViolation, HotslotError, InvalidRequestError
from hotslot.formats.base_model import spec_from_folder
from shared.settings import EXIT_WRONG_SETTING, load
from shared.telemetry import set_up_logging
from worker_service.compiled_code.archive import Archiver
from worker_service.settings import WorkerSettings

PROG = "python -m worker_service.compiled_code"
EXIT_FAILED = 1


def main(argv: Sequence[str]) -> int:
    """Returns the exit code."""
    if len(argv) < 2 or argv[0] not in ("export", "import"):
        print(f"usage: {PROG} export|import FILE [the worker's settings]", file=sys.stderr)  # noqa: T201
        return EXIT_WRONG_SETTING
    action, file = argv[0], Path(argv[1])
    settings = load(WorkerSettings, prog=f"{PROG} {action} FILE", argv=argv[2:])
    set_up_logging(settings.log_format, settings.log_level)
    try:
        num_files = _run(action, file, settings)
    except (HotslotError, OSError) as exc:
        print(f"{PROG}: {exc}", file=sys.stderr)  # noqa: T201
        return EXIT_FAILED
    done = "files written to" if action == "export" else "new files from"
    print(f"{num_files} {done} {file}")  # noqa: T201
    return 0


def _run(action: str, file: Path, settings: WorkerSettings) -> int:
    # Imported here: they bring torch, which takes seconds, and a wrong setting should be said at once.
    from worker_service.model.code_key import code_key
    from worker_service.model.folder import model_folder
    from worker_service.model.from_settings import model_options
    from worker_service.model.loading import configure_torch

    if settings.cache_dir is None:
        raise InvalidRequestError([FieldViolation("cache_dir", "must be set: it has, or gets, the code")])
    options = model_options(settings)
    configure_torch(options)
    folder = model_folder(settings.model)
    key = code_key(options, spec_from_folder(folder, settings.model_name or settings.model).digest, folder)
    archiver = Archiver.of(settings, settings.cache_dir)
    return archiver.pack(key, file) if action == "export" else archiver.unpack(key, file)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
