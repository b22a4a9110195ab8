"""`hotslot doctor`: everything that a deployment, or a first start on this machine, needs, checked line by line."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from hotslot.cli import options
from hotslot.cli.backup_commands import UP_DATA_DIR
from hotslot.cli.deployment_checks import DEPLOYMENT_CHECKS, CheckedDeployment
from hotslot.cli.detached import running_pid
from hotslot.cli.identity_checks import (
    check_credentials,
    check_identity_folder,
    check_token,
    check_transport,
    without_credentials,
)
from hotslot.cli.options import JsonOption, StoreOption, TenantOption, WorkerOption, contexts_file, open_client
from hotslot.cli.output import print_document, say
from hotslot.cli.running_commands import DataDirOption
from hotslot.cli.up_checks import DEMO_MODEL, check_model
from hotslot.contexts import LOCAL, read_contexts
from hotslot.endpoints import Endpoint, dialled_endpoint
from hotslot.errors import InvalidContextsError
from hotslot.local.findings import Finding, fail, failures, ok, warn
from hotslot.local.identity_files import identity_files
from hotslot.local.machine_checks import check_compiled_code, check_compiler, check_data_folder, check_disk, check_hub
from hotslot.local.redis_probe import look_at_redis, redis_access

DEFAULT_GATEWAY = "http://127.0.0.1:7600"


def doctor(
    context: typer.Context,
    before_start: Annotated[
        bool, typer.Option("--before-start", help="Check this machine for a start only, and call no deployment.")
    ] = False,
    gateway: Annotated[
        str, typer.Option("--gateway", envvar="HOTSLOT_GATEWAY", metavar="URL", help="Address of the gateway.")
    ] = DEFAULT_GATEWAY,
    model: Annotated[
        str, typer.Option(envvar="HOTSLOT_MODEL", help="Base model of the next start, as for `hotslot up`.")
    ] = DEMO_MODEL,
    redis_url: Annotated[str, typer.Option(envvar="HOTSLOT_REDIS_URL", help="Redis to look at directly, too.")] = "",
    data_dir: DataDirOption = UP_DATA_DIR,
    store: StoreOption = options.STORE,
    worker: WorkerOption = options.WORKER,
    tenant: TenantOption = options.TENANT,
    as_json: JsonOption = False,
) -> None:
    """Check a deployment, or this machine before the first start; each line is ok, warn or fail, and says what to do.

    Exit code 1 when something fails. JSON: {ok, checks: [{check, level, found, advice}]}.
    """
    found: list[Finding] = []

    def tell(findings: Iterator[Finding]) -> None:
        for one in findings:
            found.append(one)
            if not as_json:
                print(one.line(), flush=True)

    used, said, damage = _contexts(str(context.params.get("context_name") or ""))
    calls = options.channel_options(tenant, store, without_contexts=damage is not None)
    for endpoint, option in ((store, "--store (HOTSLOT_STORE)"), (worker, "--worker (HOTSLOT_WORKER)")):
        options.checked_endpoint(endpoint, option)
    tell(_command_checks(damage))
    tell(check_credentials(calls.security))
    can_call = not any(one.check == "credentials" for one in failures(found))
    if not can_call:
        calls = replace(calls, security=without_credentials(calls.security))
    endpoints = replace(calls, max_attempts=1)
    data_dir = data_dir.expanduser().absolute()
    with open_client(store=store, worker=worker, tenant=tenant, calls=calls) as client:
        # `hotslot up` keeps the context `local` by itself, and what it names may be over.
        named = said if used != LOCAL else {}
        names = ("store", "worker", "gateway")
        chosen = frozenset(name for name in names if name in named or options.is_given(context, name))
        subject = CheckedDeployment(client, store, worker, gateway, endpoints, chosen)
        is_there = can_call and not before_start and subject.is_there
        if is_there:
            for check in DEPLOYMENT_CHECKS:
                tell(check(subject))
            tell(check_transport(subject))
            tell(check_token(subject, identity_files(data_dir)))
        elif can_call and not before_start:
            tell(iter([ok("deployment", f"none at {store} and {worker}: checking this machine for a start")]))
    if not is_there or _is_here(store) or _is_here(worker):
        tell(_machine_checks(data_dir, model if not is_there else ""))
    if redis_url:
        tell(iter([look_at_redis(redis_url, access=redis_access(options.environment()))]))
    failed = failures(found)
    if as_json:
        print_document({"ok": not failed, "checks": found})
    elif failed:
        say(f"hotslot: {len(failed)} of {len(found)} checks failed")
    if failed:
        raise typer.Exit(1)


def _contexts(name: str) -> tuple[str, dict[str, str], InvalidContextsError | None]:
    """The context in use, what it says, and the error of a file that cannot be read, of which nothing is used."""
    try:
        return *options.context_defaults(name), None
    except InvalidContextsError as exc:
        return "", {}, exc


def _command_checks(damage: InvalidContextsError | None) -> Iterator[Finding]:
    """The command's own settings."""
    path = contexts_file()
    if damage is not None:
        yield fail("contexts", f"{path}: {damage.problem}", "mend it, or move it away: no context is used meanwhile")
        return
    contexts = read_contexts(path)
    if path.exists() and path.stat().st_mode & 0o077:
        yield warn("contexts", f"{path} may be read by others", f"chmod 600 {path}")
    else:
        shown = f"{contexts.current} is in use" if contexts.current else "none is in use"
        yield ok("contexts", f"{len(contexts.named)} known, {shown}")


def _machine_checks(data_dir: Path, model: str) -> Iterator[Finding]:
    """This machine; `model` is that of the next start, empty where a deployment runs."""
    if model:
        yield check_compiler(options.environment())
        yield check_model(model, options.environment())
    yield check_data_folder(data_dir)
    yield check_disk(data_dir)
    yield check_compiled_code(Path(options.environment().get("HOTSLOT_CACHE_DIR") or data_dir / "compiled"))
    yield from check_identity_folder(identity_files(data_dir))
    pid = running_pid(data_dir)
    yield ok("up", f"process {pid} runs on {data_dir}" if pid else f"no `hotslot up` runs on {data_dir}")
    yield check_hub(options.environment())


def _is_here(endpoint: str) -> bool:
    """Tell if an endpoint is of this machine alone."""
    target = dialled_endpoint(endpoint)
    if not isinstance(target, Endpoint):
        return target.target.startswith("unix")
    return target.host == "localhost" or (target.address is not None and target.address.is_loopback)
