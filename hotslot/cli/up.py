"""`hotslot up`: a whole deployment on this machine, which ends with the command."""

import os
import re
import secrets
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer

from hotslot.base_fetch import local_folder
from hotslot.cli import options
from hotslot.cli.detached import LOG_FILE, running_here, start_detached
from hotslot.cli.failures import EXIT_FAILURE, report
from hotslot.cli.options import JsonOption
from hotslot.cli.output import print_event, say
from hotslot.cli.stages import Stages
from hotslot.cli.supervisor import ProcessEvent, Supervisor, UpPlan
from hotslot.cli.up_checks import (
    DEMO_MODEL,
    demo_model,
    require_distinct,
    require_free,
    require_machine,
    require_redis,
    require_redis_url,
    require_services,
)
from hotslot.cli.up_report import keep_context, report_ready
from hotslot.cli.valkey import SupervisedValkey
from hotslot.clients.defaults import DEFAULT_STORE, DEFAULT_WORKER
from hotslot.content_files import make_directory
from hotslot.errors import InvalidRequestError, PreconditionError
from hotslot.local.children import ChildFailedError
from hotslot.local.identity_files import identity_files
from hotslot.sources import DEMO_MODEL_NAME

START_S = 120.0
"""Longest start of what is no worker; the demo's model is fetched on first use."""
DEFAULT_GATEWAY_PORT = 7600
STDERR = 2
INTERRUPT_GRACE_S = 1.0
"""Longest wait for running requests after a Ctrl-C; `hotslot down` waits for as long as --grace says."""
STAGE_LINE = re.compile(r"hotslot: \[ *\d+ s\] (.*)")
"""A stage as `Stages` prints it where there is no terminal."""


def up(
    context: typer.Context,
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
    insecure: Annotated[
        bool,
        typer.Option("--insecure", help="No certificates and no tokens: all of this machine may call everything."),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Run a store, workers and a gateway on this machine until Ctrl-C; nothing is left running.

    It makes certificates and tokens of its own, in `identity` of the data folder, and the context `local` finds them.
    A process that ends is started again. JSON lines: {event: "ready", store, workers, gateway, redis_url, data_dir,
    ca_file, token_file, pids, valkey_pid}, {event: "renewed", what}, {event: "restarted", name, pid}, {event:
    "drained", name, endpoint}, {event: "undrained", name, endpoint}, {event: "stopped"}; with --detach {event:
    "detached", pid, data_dir, log}.
    """
    require_services(gateway=gateway)
    require_redis_url(redis_url)
    if model != DEMO_MODEL:
        local_folder(model)
    gateway_ports = {"--gateway-port": [gateway_port]} if gateway else {}
    ports = {"--store-port": [store_port], "--worker-port": range(worker_port, worker_port + workers), **gateway_ports}
    require_distinct(ports)
    data_dir = data_dir.expanduser().absolute()
    _make_data_folder(data_dir)
    if detach:
        settings = {
            "--model": model, "--model-name": model_name, "--workers": workers, "--store-port": store_port,
            "--worker-port": worker_port, "--gateway-port": gateway_port, "--data-dir": data_dir,
            "--timeout": timeout_s, "--grace": grace_s,
        }  # fmt: skip
        given = [f"{name}={value}" for name, value in settings.items()]
        given += ["--gateway" if gateway else "--no-gateway", *(["--insecure"] if insecure else [])]
        _detach(given, {**options.environment(), "HOTSLOT_REDIS_URL": redis_url}, data_dir, timeout_s, as_json=as_json)
        return
    stages = Stages(quiet=as_json)
    ending = _Ending(grace_s, is_own_grace=options.is_given(context, "grace_s"))
    with _stop_on_signals(ending, as_json=as_json), running_here(data_dir), ExitStack() as stack:
        require_free(ports)
        if redis_url:
            require_redis(redis_url, options.environment())
        with stages.shown():
            stages.enter("checking this machine")
            require_machine(model, data_dir, options.environment(), lambda finding: stages.say(f"  {finding.line()}"))
            if model == DEMO_MODEL:
                stages.enter("preparing the demo's model", "the first time it is downloaded, about a minute")
                model, model_name = str(demo_model()), model_name or DEMO_MODEL_NAME
        valkey = None if redis_url else _start_valkey(stack, "" if insecure else secrets.token_urlsafe())
        redis_url = valkey.url if valkey is not None else redis_url
        identity = None if insecure else identity_files(data_dir)
        plan = UpPlan(
            model, model_name, workers, store_port, worker_port, data_dir, redis_url,
            gateway_port if gateway else None, valkey is not None, identity,
        )  # fmt: skip
        look_after = _have_identity(plan)
        supervisor = Supervisor(
            plan, valkey, lambda event: _report_event(event, as_json=as_json), stages, ending.check, look_after
        )
        stack.callback(lambda: supervisor.stop(ending.grace_s))
        try:
            supervisor.start(timeout_s)
            is_used = keep_context(plan)
            report_ready(plan, supervisor, is_used=is_used, as_json=as_json)
            supervisor.watch()
        except ChildFailedError as exc:
            if as_json:
                report(PreconditionError(str(exc), "up"), as_json=True)
            else:
                say(f"hotslot: {exc}")
            raise typer.Exit(EXIT_FAILURE) from exc
    if as_json:
        print_event("stopped", {})


def _have_identity(plan: UpPlan) -> Callable[[], ProcessEvent | None]:
    """Have certificates and tokens, or say that there are none; returns what looks after them."""
    if plan.identity is None:
        say("hotslot: --insecure: no certificates and no tokens; all who reach this machine's ports may call")
        return lambda: None
    # Its library comes with what `up` needs, and not with the client.
    from hotslot.cli.up_identity import prepared

    return prepared(plan)


def _detach(
    arguments: list[str], environment: Mapping[str, str], data_dir: Path, timeout_s: float, *, as_json: bool
) -> None:
    stages = Stages(quiet=as_json)

    def relay(line: str) -> None:
        """Show a line of the other process: a stage in its place, anything else as it is."""
        if stage := STAGE_LINE.match(line):
            stages.enter(stage[1])
        else:
            stages.say(line)

    with stages.shown():
        pid, printed = start_detached(arguments, data_dir, timeout_s + START_S, relay, environment=environment)
    log = data_dir / LOG_FILE
    if as_json:
        print_event("detached", {"pid": pid, "data_dir": str(data_dir), "log": str(log)})
    else:
        print(printed.replace("Ctrl-C ends it all.", f"`hotslot down` ends it all. Log: {log}"), end="")


@dataclass
class _Ending:
    """End that signals ask for, and the time that it leaves running requests."""

    grace_s: float
    is_own_grace: bool
    """The user gave the grace, which a Ctrl-C shortens otherwise."""
    is_asked_for: bool = False

    def ask(self, number: int) -> None:
        """Note a signal; who presses Ctrl-C waits at a terminal."""
        self.is_asked_for = True
        if number == signal.SIGINT and not self.is_own_grace:
            self.grace_s = min(self.grace_s, INTERRUPT_GRACE_S)

    def check(self) -> None:
        """Raise what the signal raised: it is lost where it comes in the middle of some object's end."""
        if self.is_asked_for:
            raise _Stopped


class _Stopped(Exception):
    """A signal asked us to end."""


@contextmanager
def _stop_on_signals(ending: _Ending, *, as_json: bool) -> Iterator[None]:
    """Turn SIGINT, SIGTERM and SIGHUP into an exception in the main thread, so that everything is unwound."""

    def stop(number: int, frame: FrameType | None) -> None:
        ending.ask(number)
        if not as_json:
            # A handler may come in the middle of a print, which buffered output does not bear; ^C has a half line.
            text = f"hotslot: stopping; requests have {ending.grace_s:g} s, and Ctrl-C again ends at once\n"
            os.write(STDERR, ("\n" if os.isatty(STDERR) else "").encode() + text.encode())
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


def _make_data_folder(data_dir: Path) -> None:
    """Make the folder with that of its logs; raises PreconditionError."""
    try:
        make_directory(data_dir)
        (data_dir / "logs").mkdir(exist_ok=True)
    except OSError as exc:
        raise PreconditionError(f"--data-dir: {data_dir}: {exc.strerror}; name another folder", "up") from exc


def _start_valkey(stack: ExitStack, password: str) -> SupervisedValkey:
    try:
        valkey = SupervisedValkey(password)
    except ModuleNotFoundError as exc:
        problem = "there is no embedded Valkey: install hotslot[embedded], or name a Redis with --redis-url"
        raise InvalidRequestError([], problem) from exc
    stack.callback(valkey.close)
    return valkey


def _report_event(event: ProcessEvent, *, as_json: bool) -> None:
    if as_json:
        print_event(event.kind, event.fields)
    else:
        say(f"hotslot: {event.text}")
