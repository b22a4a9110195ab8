"""Report of a `hotslot up` that is ready: the context that it keeps, and the lines that say where everything is."""

from dataclasses import replace

from hotslot.cli import options
from hotslot.cli.output import print_event, say
from hotslot.cli.supervisor import Supervisor, UpPlan
from hotslot.clients.found_security import variables_of
from hotslot.contexts import LOCAL, Contexts, SavedContext, change_contexts
from hotslot.errors import InvalidRequestError
from hotslot.local.identity_files import USER, WORKER_NAME
from hotslot.secret_urls import masked_url


def keep_context(plan: UpPlan) -> bool:
    """Have the context `local` name this deployment, and in use where none is; False where another one is in use."""

    def change(now: Contexts) -> Contexts:
        after = now.having(LOCAL, _of_plan(now.named.get(LOCAL, SavedContext()), plan))
        return after if now.current else after.using(LOCAL)

    try:
        return change_contexts(options.contexts_file(), change).current == LOCAL
    except (OSError, InvalidRequestError) as exc:
        say(f"hotslot: the context {LOCAL!r} is not kept: {exc}")
        return False


def report_ready(plan: UpPlan, supervisor: Supervisor, *, is_used: bool, as_json: bool) -> None:
    """Print where everything is, and what to type next."""
    context = _of_plan(SavedContext(), plan)
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
                "ca_file": context.ca_file or None,
                "token_file": context.token_file or None,
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
    if plan.identity is not None:
        print(f"  {'identity':<10} {plan.identity.folder} (TLS and a token; the gateway answers this machine by HTTP)")
    else:
        print(f"  {'identity':<10} none: all of this machine may call")
    print("\nIn another terminal:")
    # Only what differs from what commands do anyway has to be said.
    if not is_used:
        print(f"  hotslot context use {LOCAL}")
        print(f"  or: export {' '.join(f'{name}={value}' for name, value in variables_of(context).items())}")
    print("  hotslot push DIR my-adapter")
    print('  hotslot generate -a my-adapter "Hello"')
    print("  hotslot top")
    if gateway is not None:
        print(f"  OpenAI's HTTP: http://{gateway.endpoint}/v1 (http://{gateway.endpoint}/docs)")
    print("\nCtrl-C ends it all.", flush=True)


def _of_plan(context: SavedContext, plan: UpPlan) -> SavedContext:
    """A context with the endpoints and credentials of a plan's deployment."""
    files = plan.identity
    return replace(
        context,
        store=f"127.0.0.1:{plan.store_port}",
        worker=f"127.0.0.1:{plan.worker_port}",
        ca_file=str(files.trusted_file) if files is not None else "",
        cert_file="",
        key_file="",
        token_file=str(files.token_file(USER)) if files is not None else "",
        worker_name=WORKER_NAME if files is not None else "",
    )
