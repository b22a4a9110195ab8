"""Checks of this machine before a deployment starts here: compiler, model, disk, hub, caches, ports."""

import importlib.util
import json
import shutil
import socket
import ssl
import subprocess
import sysconfig
import tempfile
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path

from hotslot.errors import HotslotError
from hotslot.formats.base_model import refuse_quantised, weights_files
from hotslot.local.findings import Finding, fail, ok, warn
from hotslot.local.listeners import listener

COMPILER_TIMEOUT_S = 30.0
HUB_TIMEOUT_S = 3.0
DEFAULT_HUB = "https://huggingface.co"
LITTLE_BYTES = 2 * 10**9
"""Compiled code and a few adapters take less."""
TOO_LITTLE_BYTES = 200 * 10**6
_PROGRAM = "#include <Python.h>\n#include <vector>\nint main() { return std::vector<int>(1)[0]; }\n"
_NO = ("0", "false", "f", "no", "n", "off")


def check_compiler(environment: Mapping[str, str]) -> Finding:
    """Compile a few lines of C++ against Python's headers, as torch.compile does when a worker starts."""
    check = "compiler"
    named = environment.get("CXX") or "g++"
    needed = environment.get("HOTSLOT_COMPILE", "true").lower() not in _NO
    report = fail if needed else warn
    how = "install g++ and Python's headers (on Debian: g++ libc6-dev python3-dev), or name one with CXX"
    path = shutil.which(named)
    if path is None:
        return report(check, f"no {named} on PATH, which torch.compile needs", how)
    command = [path, f"-I{sysconfig.get_path('include')}", "-fsyntax-only", "-x", "c++", "-"]
    try:
        done = subprocess.run(
            command, input=_PROGRAM, capture_output=True, text=True, timeout=COMPILER_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as exc:
        return report(check, f"{path} cannot be run: {exc}", how)
    if done.returncode != 0:
        first = next((line for line in done.stderr.splitlines() if "error" in line), done.stderr.strip()[:200])
        return report(check, f"{path} compiles no program with Python.h: {first}", how)
    return ok(check, f"{path} compiles against {sysconfig.get_path('include')}")


def check_model_folder(folder: Path) -> Finding:
    """Look for the files of a model that can be served: config, safetensors that are all there, tokenizer."""
    check = "model"
    how = "name a folder that save_pretrained wrote, or download it again"
    try:
        config = json.loads((folder / "config.json").read_bytes())
        refuse_quantised(folder)
        missing = [file.name for file in weights_files(folder) if not file.is_file()]
    except HotslotError as exc:
        return fail(check, exc.message, how)
    except (OSError, ValueError) as exc:
        return fail(check, f"{folder}: config.json: {exc}", how)
    if missing:
        return fail(check, f"{folder} lacks {', '.join(missing[:3])}", how)
    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "vocab.json")):
        return fail(check, f"{folder} has no tokenizer.json", how)
    size_bytes = sum(file.stat().st_size for file in weights_files(folder))
    kind = config.get("model_type", "?") if isinstance(config, dict) else "?"
    return ok(check, f"{folder} ({kind}, {_size(size_bytes)} of weights)")


def check_hub_model(repo_id: str, environment: Mapping[str, str]) -> Finding:
    """Look for a repository's model in the hub's cache; what is not there needs the hub."""
    check = "model"
    if importlib.util.find_spec("huggingface_hub") is None:
        return fail(check, f"{repo_id} is a repository's name, and huggingface_hub is not installed", "install it")
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        cached = try_to_load_from_cache(repo_id, "config.json")
    except HFValidationError:
        return fail(check, f"{repo_id!r} is neither a folder here nor a repository's name", "expected ORG/NAME")
    if isinstance(cached, str):
        return ok(check, f"{repo_id} is in the hub's cache")
    reached = check_hub(environment)
    if reached.advice:
        return fail(check, f"{repo_id} is not in the hub's cache, and {reached.found}", "or name a folder with --model")
    return ok(check, f"{repo_id} will be downloaded from {environment.get('HF_ENDPOINT') or DEFAULT_HUB}")


def check_hub(environment: Mapping[str, str]) -> Finding:
    """Ask the hub for any answer; without it, models and imports of repositories must be here already."""
    check = "hub"
    hub = environment.get("HF_ENDPOINT") or DEFAULT_HUB
    how = "folders and uploads work without it; HF_ENDPOINT names another, HTTPS_PROXY a way"
    if environment.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "on", "yes"):
        return warn(check, "HF_HUB_OFFLINE is set: nothing is downloaded", "unset it to download")
    try:
        request = urllib.request.Request(hub, method="HEAD")
        with urllib.request.urlopen(request, timeout=HUB_TIMEOUT_S):
            pass
    except urllib.error.HTTPError:
        pass  # It answers, though not this.
    except (OSError, ValueError, ssl.SSLError) as exc:
        reason = getattr(exc, "reason", exc)
        return warn(check, f"{hub} cannot be reached: {reason}", how)
    return ok(check, f"{hub} answers")


def check_disk(folder: Path, check: str = "disk") -> Finding:
    """Room where a folder is, or is going to be."""
    there = next(path for path in (folder, *folder.parents) if path.exists())
    free_bytes = shutil.disk_usage(there).free
    how = "free some, or name another place with --data-dir"
    if free_bytes < TOO_LITTLE_BYTES:
        return fail(check, f"{_size(free_bytes)} free at {there}", how)
    if free_bytes < LITTLE_BYTES:
        return warn(check, f"{_size(free_bytes)} free at {there}", how)
    return ok(check, f"{_size(free_bytes)} free at {there}")


def check_data_folder(folder: Path) -> Finding:
    """Right to write into the data folder, or to make it."""
    check = "data folder"
    there = next(path for path in (folder, *folder.parents) if path.exists())
    if problem := _unwritable(there):
        return fail(check, problem, "change its rights, or name another with --data-dir (HOTSLOT_DATA_DIR)")
    return ok(check, str(folder) if there == folder else f"{folder}, which is made at the first start")


def check_compiled_code(folder: Path) -> Finding:
    """Compiled code that an earlier start left, which makes the next one a matter of seconds."""
    check = "compiled code"
    if folder.exists() and (problem := _unwritable(folder)):
        return fail(check, problem, "change its rights, or set HOTSLOT_CACHE_DIR")
    files = [path for path in folder.rglob("*") if path.is_file()] if folder.is_dir() else []
    if not files:
        return ok(check, "none yet: the first start compiles, which takes a minute or more")
    size_bytes = sum(path.stat().st_size for path in files)
    return ok(check, f"{_size(size_bytes)} in {folder}")


def taken_port(port: int) -> str:
    """Reason why nothing of ours can listen on a port of the loopback; empty where it is free."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except PermissionError:
            return f"port {port} is for the administrator alone"
        except OSError:
            by = listener(port)
            return f"port {port} is taken" + (f" by {by}" if by is not None else "")
    return ""


def _unwritable(folder: Path) -> str:
    """Reason why no file can be made in a folder; empty where one can."""
    if not folder.is_dir():
        return f"{folder} is a file"
    try:
        with tempfile.TemporaryFile(dir=folder):
            return ""
    except OSError as exc:
        return f"{folder} cannot be written to: {exc.strerror}"


def _size(size_bytes: int) -> str:
    return f"{size_bytes / 1e9:.1f} GB" if size_bytes >= 10**8 else f"{size_bytes / 1e6:.1f} MB"
