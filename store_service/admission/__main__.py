"""Checks an adapter's folder without any server: `python -m store_service.admission DIR --base FOLDER`."""

import argparse
import json
import sys
from pathlib import Path

from hotslot.errors import FieldViolation, HotslotError, InvalidRequestError
from hotslot.formats.base_model import spec_from_folder
from hotslot.formats.base_spec import BaseModule, BaseSpec, ModuleKind, check_spec
from hotslot.formats.companions import read_companions
from hotslot.formats.file_names import CONFIG_FILE, WEIGHTS_FILES
from store_service.admission.admit import PICKLE_FILES, Checkpoint, admit
from store_service.admission.report import as_json, as_text
from store_service.admission.settings import AdmissionLimits
from store_service.admission.shards import shard_names

EXIT_VALID = 0
EXIT_REFUSED = 1
EXIT_USAGE = 2


def checkpoint_of_folder(folder: Path) -> Checkpoint:
    """The files of a folder that admission knows."""
    names = (CONFIG_FILE, *WEIGHTS_FILES, *PICKLE_FILES, *shard_names([path.name for path in folder.iterdir()]))
    files = {name: folder / name for name in names if (folder / name).is_file()}
    return Checkpoint(files, read_companions(folder))


def read_base(path: Path) -> BaseSpec:
    """The spec of a model folder, or one written down as JSON; raises InvalidRequestError."""
    if path.is_dir():
        return spec_from_folder(path, path.resolve().name)
    try:
        document = json.loads(path.read_bytes())
        if not isinstance(document, dict):
            raise TypeError("it is no JSON object")
        spec = BaseSpec(
            name=str(document.get("name", path.stem)),
            model_type=str(document["model_type"]),
            weights_fingerprint=str(document["weights_fingerprint"]),
            modules=tuple(
                BaseModule(str(module_path), ModuleKind(kind), int(num_in), int(num_out), str(*values_digest[:1]))
                for module_path, kind, num_in, num_out, *values_digest in document["modules"]
            ),
        )
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as exc:
        raise InvalidRequestError(
            [FieldViolation("base", f"{path} is neither a model folder nor a base spec: {exc!r}")]
        ) from exc
    check_spec(spec)
    return spec


def main(arguments: list[str] | None = None) -> int:
    """Returns 0 when the adapter would be admitted, 1 when it is refused, 2 when it cannot be checked."""
    parser = argparse.ArgumentParser(prog="python -m store_service.admission", description=__doc__)
    parser.add_argument("folder", type=Path, help="folder with adapter_config.json and adapter_model.safetensors")
    parser.add_argument("--base", type=Path, required=True, help="folder of the base model, or its spec as JSON")
    parser.add_argument("--max-rank", type=int, default=AdmissionLimits().max_rank, help="largest rank taken")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args(arguments)
    try:
        if not options.folder.is_dir():
            raise InvalidRequestError([FieldViolation("folder", f"{options.folder} is no folder")])
        limits = AdmissionLimits(max_rank=options.max_rank)
        verdict = admit(checkpoint_of_folder(options.folder), read_base(options.base), limits)
    except (HotslotError, OSError) as exc:
        message = exc.message if isinstance(exc, HotslotError) else str(exc)
        sys.stderr.write(f"{message}\n")
        if options.json:
            sys.stdout.write(json.dumps({"error": message}) + "\n")
        return EXIT_USAGE
    sys.stdout.write((as_json(verdict) if options.json else as_text(verdict, str(options.folder))) + "\n")
    return EXIT_VALID if verdict.manifest is not None else EXIT_REFUSED


if __name__ == "__main__":
    sys.exit(main())
