"""`hotslot up`: a whole deployment on this machine, which ends with the command."""

import importlib.util
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer

from hotslot.cli.detached import LOG_FILE, running_here, start_detached
from hotslot.cli.options import JsonOption
from hotslot.cli.output import print_event, say, spinner
from hotslot.cli.supervisor import ProcessEvent, Supervisor, UpPlan
from hotslot.cli.valkey import SupervisedValkey
from hotslot.clients.store import DEFAULT_STORE
from hotslot.clients.worker import DEFAULT_WORKER
from hotslot.errors import InvalidRequestError
from hotslot.local.children import ChildFailedError
from hotslot.redis_url import check_redis_url
from hotslot.secret_urls import masked_url

DEMO_MODEL = "demo"
START_S = 120.0
"""Longest start of what is no worker; the demo's model is fetched on first use."""
DEFAULT_GATEWAY_PORT = 7600


def up(
    model: Annotated[
        str,
        typer.Option(envvar="HOTSLOT_MODEL", help="Base model: a folder, a hub id, or `demo` for the demo's model."),
    ] = DEMO_MODEL,
    model_name: Annotated[str, typer.Option(envvar="HOTSLOT_MODEL_NAME", help="Public name of the base model.")] = "",
    workers: Annotated[int, typer.Option("--workers", "-w", min=1, max=64, help="Number of workers.")] = 1,
    store_port: Annotated[int, typer.Option(min=1, max=65535, help="Port of the store.")] = int(
        DEFAULT_STORE.rpartition(":")[2]
    ),
    worker_port: Annotated[
        int, typer.Option(min=1, max=65535, help="Port of the first worker; the others follow.")
    ] = int(DEFAULT_WORKER.rpartition(":")[2]),
    gateway_port: Annotated[
        int, typer.Option(min=1, max=65535, help="Port of the gateway, which speaks OpenAI's HTTP.")
    ] = DEFAULT_GATEWAY_PORT,
    gateway: Annotated[bool, typer.Option("--gateway/--no-gateway", help="Gateway beside the workers.")] = True,
    data_dir: Annotated[
        Path, typer.Option(envvar="HOTSLOT_DATA_DIR", help="Folder of adapters, logs and compiled code.")
    ] = Path("~/.local/share/hotslot"),
    redis_url: Annotated[
        str, typer.Option(envvar="HOTSLOT_REDIS_URL", help="Redis to use; by default an embedded one is started.")
    ] = "",
    timeout_s: Annotated[
        float, typer.Option("--timeout", metavar="SECONDS", help="Longest start of the workers.")
    ] = 600.0,
    grace_s: Annotated[
        float, typer.Option("--grace", metavar="SECONDS", help="Longest wait for running requests at the end.")
    ] = 15.0,
    detach: Annotated[
        bool, typer.Option("--detach", "-d", help="Return once everything is ready; `hotslot down` ends it.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Run a store, workers and a gateway on this machine until Ctrl-C; nothing is left running.

    A process that ends is started again. JSON lines: {event: "ready", store, workers, gateway, redis_url, data_dir,
    pids, valkey_pid}, {event: "restarted", name, pid}, {event: "drained", name, endpoint}, {event: "undrained", name,
    endpoint}, {event: "stopped"}; with --detach {event: "detached", pid, data_dir, log}.
    """
    _require_services(gateway=gateway)
    # Other commands do without what this needs.
    from hotslot.base_fetch import local_folder

    _check_redis_url(redis_url)
    if model != DEMO_MODEL:
        local_folder(model)
    data_dir = data_dir.expanduser().absolute()
    (data_dir / "logs").mkdir(parents=True, exist_ok=True)
    if detach:
        settings = {
            "--model": model, "--model-name": model_name, "--workers": workers, "--store-port": store_port,
            "--worker-port": worker_port, "--gateway-port": gateway_port, "--data-dir": data_dir,
            "--redis-url": redis_url, "--timeout": timeout_s, "--grace": grace_s,
        }  # fmt: skip
        given = [f"{name}={value}" for name, value in settings.items()]
        _detach([*given, "--gateway" if gateway else "--no-gateway"], data_dir, timeout_s, as_json=as_json)
        return
    with _stop_on_signals(), running_here(data_dir), ExitStack() as stack:
        for port in (store_port, *range(worker_port, worker_port + workers), *([gateway_port] if gateway else [])):
            require_free(port)
        if model == DEMO_MODEL:
            model, model_name = _demo_model(model_name)
        valkey = None if redis_url else _start_valkey(stack)
        redis_url = valkey.url if valkey is not None else redis_url
        plan = UpPlan(
            model, model_name, workers, store_port, worker_port, data_dir, redis_url, gateway_port if gateway else None
        )
        supervisor = Supervisor(plan, valkey, on_event=lambda event: _report_event(event, as_json=as_json))
        stack.callback(supervisor.stop, grace_s)
        try:
            supervisor.start(timeout_s)
            _report_ready(plan, supervisor, as_json=as_json)
            supervisor.watch()
        except ChildFailedError as exc:
            say(f"hotslot: {exc}")
            raise typer.Exit(1) from exc
        except _Stopped:
            if not as_json:
                say("hotslot: stopping; Ctrl-C again ends at once")
    if as_json:
        print_event("stopped", {})


def _detach(arguments: list[str], data_dir: Path, timeout_s: float, *, as_json: bool) -> None:
    with spinner("starting in the background"):
        pid, printed = start_detached(arguments, data_dir, timeout_s + START_S)
    log = data_dir / LOG_FILE
    if as_json:
        print_event("detached", {"pid": pid, "data_dir": str(data_dir), "log": str(log)})
    else:
        print(printed.replace("Ctrl-C ends it all.", f"`hotslot down` ends it all. Log: {log}"), end="")


class _Stopped(Exception):
    """A signal asked us to end."""


@contextmanager
def _stop_on_signals() -> Iterator[None]:
    """Turn SIGINT, SIGTERM and SIGHUP into an exception in the main thread, so that everything is unwound."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise _Stopped

    signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.signal(number, stop) for number in signals]
    try:
        yield
    except _Stopped:
        pass
    finally:
        for number, handler in zip(signals, before, strict=True):
            signal.signal(number, handler)


def _start_valkey(stack: ExitStack) -> SupervisedValkey:
    try:
        valkey = SupervisedValkey()
    except ModuleNotFoundError as exc:
        problem = "there is no embedded Valkey: install hotslot[embedded], or name a Redis with --redis-url"
        raise InvalidRequestError([], problem) from exc
    stack.callback(valkey.close)
    return valkey


def _require_services(*, gateway: bool) -> None:
    """Raise InvalidRequestError where only the client, or not all that is to be run, is installed."""
    needed = ("store_service", "worker_service", *(("gateway_service", "uvicorn") if gateway else ()))
    missing = [name for name in needed if importlib.util.find_spec(name) is None]
    if missing:
        problem = f"{' and '.join(missing)} cannot be found: `hotslot up` needs hotslot[up] rather than hotslot"
        raise InvalidRequestError([], problem)


def require_free(port: int) -> None:
    """Raise InvalidRequestError when something listens on the port already."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as exc:
            options = "--store-port, --worker-port and --gateway-port"
            problem = f"port {port} is taken, perhaps by another `hotslot up`; choose {options}"
            raise InvalidRequestError([], problem) from exc


def _demo_model(model_name: str) -> tuple[str, str]:
    """Folder and name of the demo's model, fetched and converted on first use by the project's own script."""
    with spinner("preparing the demo's model; the first time takes about a minute"):
        found = subprocess.run(
            [sys.executable, "-m", "deploy.demo.model"], stdout=subprocess.PIPE, text=True, check=False
        )
    if found.returncode != 0:
        raise InvalidRequestError([], "the demo's model is not available here; name one with --model (HOTSLOT_MODEL)")
    return found.stdout.strip().splitlines()[-1], model_name or "HuggingFaceTB/SmolLM2-135M-Instruct"


def _check_redis_url(url: str) -> None:
    """Raise InvalidRequestError, without the URL itself, for one that the children would refuse."""
    try:
        if url:
            check_redis_url(url)
    except ValueError as exc:
        raise InvalidRequestError([], f"--redis-url (HOTSLOT_REDIS_URL): {exc}") from exc


def _report_ready(plan: UpPlan, supervisor: Supervisor, *, as_json: bool) -> None:
    store, *workers = (child.spec for child in supervisor.children)
    gateway = workers.pop() if plan.gateway_port is not None else None
    if as_json:
        print_event(
            "ready",
            {
                "store": store.endpoint,
                "workers": [spec.endpoint for spec in workers],
                "gateway": f"http://{gateway.endpoint}" if gateway is not None else None,
                "redis_url": masked_url(plan.redis_url),
                "data_dir": str(plan.data_dir),
                "pids": {child.spec.name: child.pid for child in supervisor.children},
                "valkey_pid": supervisor.valkey.pid if supervisor.valkey is not None else None,
            },
        )
        return
    print("hotslot is up")
    for spec in (store, *workers):
        print(f"  {spec.name:<10} {spec.endpoint:<18} log {spec.log_path}")
    if gateway is not None:
        print(f"  {gateway.name:<10} {gateway.endpoint:<18} log {gateway.log_path}")
    print(f"  {'model':<10} {plan.model_name or plan.model}")
    print(f"  {'data':<10} {plan.data_dir}")
    print("\nIn another terminal:")
    # Only what differs from the defaults has to be said.
    if store.endpoint != DEFAULT_STORE or workers[0].endpoint != DEFAULT_WORKER:
        print(f"  export HOTSLOT_STORE={store.endpoint} HOTSLOT_WORKER={workers[0].endpoint}")
    print("  hotslot push DIR my-adapter")
    print('  hotslot generate -a my-adapter "Hello"')
    print("  hotslot top")
    if gateway is not None:
        print(f"  OpenAI's HTTP: http://{gateway.endpoint}/v1 (http://{gateway.endpoint}/docs)")
    print("\nCtrl-C ends it all.", flush=True)


def _report_event(event: ProcessEvent, *, as_json: bool) -> None:
    if as_json:
        print_event(event.kind, event.fields)
    else:
        say(f"hotslot: {event.text}")
