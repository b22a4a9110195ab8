"""The processes of one `hotslot up`: started in order, started again when they end, and looked after."""

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hotslot.cli.output import say
from hotslot.cli.stages import Stages, WorkerStages
from hotslot.cli.valkey import SupervisedValkey
from hotslot.clients.blocking import BlockingWorkerClient
from hotslot.errors import HotslotError
from hotslot.local.children import Child, ChildFailedError, ChildSpec, stop_all
from hotslot.local.identity_files import GATEWAY, LOCAL_HOSTS, WORKER, WORKER_NAME, IdentityFiles
from hotslot.rpc.channel import ChannelOptions
from hotslot.rpc.security import NO_SECURITY

STORE_TIMEOUT_S = 60.0
GATEWAY_TIMEOUT_S = 60.0
POLL_S = 0.2
STATUS_TIMEOUT_S = 1.0
LOOKS_EVERY_S = 2.0
"""Time between two questions to a worker whether it is drained."""
STABLE_AFTER_S = 10.0
"""A child that ended after it had lived this long is started again; one that ends sooner would only do so again."""


ANONYMOUS = "HOTSLOT_GATEWAY_ANONYMOUS_SCOPES"
IMPORT_ROOTS = "HOTSLOT_IMPORT_ROOTS"
CALLERS_VARIABLES = frozenset({
    "HOTSLOT_TLS_CERT_FILE", "HOTSLOT_TLS_KEY_FILE", "HOTSLOT_TLS_CLIENT_CA_FILE", "HOTSLOT_TLS_CA_FILE",
    "HOTSLOT_TLS_WORKER_NAME", "HOTSLOT_PRINCIPALS_FILE", "HOTSLOT_TOKEN", "HOTSLOT_TOKEN_FILE",
})  # fmt: skip
"""Variables by which the user's shell may name another deployment; the processes have an identity of their own."""
REDIS_VARIABLES = frozenset(
    f"HOTSLOT_REDIS_{name}" for name in ("PASSWORD_FILE", "CA_FILE", "CERT_FILE", "KEY_FILE", "UNSIGNED")
)
"""Variables of another Redis than the embedded one."""


@dataclass(frozen=True, slots=True)
class UpPlan:
    """Processes that `up` starts, and their settings."""

    model: str
    model_name: str
    num_workers: int
    store_port: int
    worker_port: int
    data_dir: Path
    redis_url: str
    gateway_port: int | None
    """None leaves the gateway out."""
    owns_redis: bool = False
    """Redis is the embedded Valkey, which nothing else writes into."""
    identity: IdentityFiles | None = None
    """Certificates and tokens of the processes and of the user; None where each caller is believed."""

    @property
    def hosts(self) -> Mapping[str, Sequence[str]]:
        """Names in each process's certificate; the gateway listens in plaintext and has none."""
        workers = {f"worker-{index + 1}": (*LOCAL_HOSTS, WORKER_NAME) for index in range(self.num_workers)}
        return {"store": LOCAL_HOSTS, **workers}

    @property
    def calls(self) -> ChannelOptions:
        """Options of our own calls to workers."""
        security = self.identity.user.for_workers() if self.identity is not None else NO_SECURITY
        return ChannelOptions(max_attempts=1, security=security)

    def _spec(
        self, name: str, module: str, endpoint: str, settings: Mapping[str, str], principal: str = ""
    ) -> ChildSpec:
        """A process that listens by gRPC, and calls the others as a principal."""
        log_path = self.data_dir / "logs" / f"{name}.log"
        if self.identity is None:
            return ChildSpec(name, module, endpoint, settings, log_path)
        own = {
            "HOTSLOT_TLS_CERT_FILE": str(self.identity.cert_file(name)),
            "HOTSLOT_TLS_KEY_FILE": str(self.identity.key_file(name)),
            **self._identity_of_caller(principal),
            **({"HOTSLOT_POOL_SECRET_FILE": str(self.identity.pool_secret_file)} if self.owns_redis else {}),
        }
        probes = self.identity.probes
        without = CALLERS_VARIABLES | (REDIS_VARIABLES if self.owns_redis else frozenset())
        security = probes.for_workers() if principal == WORKER else probes
        return ChildSpec(name, module, endpoint, {**settings, **own}, log_path, security=security, without=without)

    def _identity_of_caller(self, principal: str) -> dict[str, str]:
        """Settings by which a process knows its callers, and is known where it calls itself."""
        assert self.identity is not None
        known = {"HOTSLOT_PRINCIPALS_FILE": str(self.identity.principals_file)}
        if not principal:
            return known
        return known | {
            "HOTSLOT_TLS_CA_FILE": str(self.identity.trusted_file),
            "HOTSLOT_TLS_WORKER_NAME": WORKER_NAME,
            "HOTSLOT_TOKEN_FILE": str(self.identity.token_file(principal)),
        }

    def store(self) -> ChildSpec:
        """The store's process."""
        endpoint = f"127.0.0.1:{self.store_port}"
        settings = {
            "HOTSLOT_LISTEN": endpoint,
            "HOTSLOT_START_PAUSE_S": "0",
            "HOTSLOT_DATA_DIR": str(self.data_dir / "store"),
            "HOTSLOT_REDIS_URL": self.redis_url,
            **self._import_roots(),
        }
        return self._spec("store", "store_service", endpoint, settings)

    def _import_roots(self) -> dict[str, str]:
        """Folders that `hotslot import dir:` may read: the user's own, where callers are known to be the user."""
        chosen = os.environ.get(IMPORT_ROOTS)
        if chosen is not None or self.identity is None:
            return {}
        return {IMPORT_ROOTS: str(Path.home())}

    def worker(self, index: int) -> ChildSpec:
        """The process of one worker, counted from 0."""
        name = f"worker-{index + 1}"
        endpoint = f"127.0.0.1:{self.worker_port + index}"
        settings = {
            "HOTSLOT_LISTEN": endpoint,
            "HOTSLOT_START_PAUSE_S": "0",
            "HOTSLOT_ADVERTISE": endpoint,
            "HOTSLOT_STORE": f"127.0.0.1:{self.store_port}",
            "HOTSLOT_REDIS_URL": self.redis_url,
            "HOTSLOT_MODEL": self.model,
            "HOTSLOT_MODEL_NAME": self.model_name,
            "HOTSLOT_CACHE_DIR": os.environ.get("HOTSLOT_CACHE_DIR") or str(self.data_dir / "compiled"),
        }
        return self._spec(name, "worker_service", endpoint, settings, WORKER)

    def gateway(self, port: int) -> ChildSpec:
        """The process that speaks OpenAI's HTTP."""
        endpoint = f"127.0.0.1:{port}"
        settings = {
            "HOTSLOT_GATEWAY_LISTEN": endpoint,
            "HOTSLOT_GATEWAY_WORKER": "",
            # A caller that reaches this machine's ports may push and load by gRPC too.
            "HOTSLOT_GATEWAY_LORA_UPDATES": os.environ.get("HOTSLOT_GATEWAY_LORA_UPDATES", "true"),
            "HOTSLOT_START_PAUSE_S": "0",
            "HOTSLOT_STORE": f"127.0.0.1:{self.store_port}",
        }
        log_path = self.data_dir / "logs" / "gateway.log"
        without: frozenset[str] = frozenset()
        if self.identity is not None:
            without = CALLERS_VARIABLES
            # Browsers and curl call it without anything; what changes adapters needs the user's token as an API key.
            anonymous = os.environ.get(ANONYMOUS, "read,use")
            settings |= {**self._identity_of_caller(GATEWAY), ANONYMOUS: anonymous}
        return ChildSpec(
            "gateway", "gateway_service", endpoint, settings, log_path, health_path="/health", without=without
        )


@dataclass(frozen=True, slots=True)
class ProcessEvent:
    """Something that happened to one of the processes."""

    kind: str
    fields: Mapping[str, Any]
    """For programs."""
    text: str
    """For people."""


class Supervisor:
    """The children of one `up`."""

    def __init__(
        self,
        plan: UpPlan,
        valkey: SupervisedValkey | None,
        on_event: Callable[[ProcessEvent], None],
        stages: Stages,
        check: Callable[[], None],
        look_after: Callable[[], ProcessEvent | None] = lambda: None,
    ) -> None:
        """`valkey` is the embedded one, which its caller ends; None where Redis is another's.

        `check` is called again and again, and raises what ends it all; so is `look_after`, which tells of what it did.
        """
        self._look_after = look_after
        self._check = check
        self._stages = stages
        self._plan = plan
        self.valkey = valkey
        self._on_event = on_event
        self.children: list[Child] = []
        self._drained: set[str] = set()
        self._looked_at_s = time.monotonic()

    def start(self, timeout_s: float) -> None:
        """Start the store, then all workers at once, then the gateway; return when everything is ready."""
        with self._stages.shown():
            self._stages.enter("store: starting")
            self._launch(self._plan.store()).wait_ready(STORE_TIMEOUT_S, self._check)
            self._start_workers(timeout_s)
            if self._plan.gateway_port is not None:
                self._stages.enter("gateway: starting")
                self._launch(self._plan.gateway(self._plan.gateway_port)).wait_ready(GATEWAY_TIMEOUT_S, self._check)

    def _start_workers(self, timeout_s: float) -> None:
        specs = [self._plan.worker(index) for index in range(self._plan.num_workers)]
        compiled = Path(specs[0].settings["HOTSLOT_CACHE_DIR"])
        is_first = not compiled.is_dir() or not any(compiled.iterdir())
        sizes = [spec.log_path.stat().st_size if spec.log_path.exists() else 0 for spec in specs]
        workers = [self._launch(spec) for spec in specs]
        logs = [(spec.name, spec.log_path, size) for spec, size in zip(specs, sizes, strict=True)]
        heard = WorkerStages(self._stages, logs, is_first=is_first)

        def look() -> None:
            self._check()
            heard.look()

        try:
            for worker in workers:
                worker.wait_ready(timeout_s, look)
        finally:
            heard.close()

    def _launch(self, spec: ChildSpec) -> Child:
        child = Child(spec)
        self.children.append(child)
        return child

    def watch(self) -> None:
        """Start again what ends; raises ChildFailedError when a child does not live long enough for that."""
        while True:
            self._check()
            if self.valkey is not None and self.valkey.revive():
                fields = {"name": "valkey", "pid": self.valkey.pid}
                self._on_event(ProcessEvent("restarted", fields, f"valkey was started again at {self.valkey.url}"))
            for index, child in enumerate(self.children):
                if child.exit_code() is None:
                    continue
                if time.monotonic() - child.started_s < STABLE_AFTER_S:
                    raise ChildFailedError(child.failure())
                say(f"hotslot: {child.failure()}")
                child.kill()
                self.children[index] = Child(child.spec)
                fields = {"name": child.spec.name, "pid": self.children[index].pid}
                self._on_event(ProcessEvent("restarted", fields, f"{child.spec.name} was started again"))
            if (event := self._look_after()) is not None:
                self._on_event(event)
            if time.monotonic() - self._looked_at_s >= LOOKS_EVERY_S:
                self._look_for_drained()
                self._looked_at_s = time.monotonic()
            time.sleep(POLL_S)

    def _look_for_drained(self) -> None:
        """Tell of workers that were drained, since nothing else takes them back."""
        for child in self.children[1 : 1 + self._plan.num_workers]:
            name, endpoint = child.spec.name, child.spec.endpoint
            drained = _is_drained(endpoint, self._plan.calls)
            if drained is None or drained == (name in self._drained):
                continue
            fields = {"name": name, "endpoint": endpoint}
            if drained:
                self._drained.add(name)
                text = f"{name} is drained and takes no requests; `hotslot undrain --worker {endpoint}` takes it back"
                self._on_event(ProcessEvent("drained", fields, text))
            else:
                self._drained.discard(name)
                self._on_event(ProcessEvent("undrained", fields, f"{name} takes requests again"))

    def stop(self, grace_s: float) -> None:
        """End everything but the Valkey."""
        stop_all(self.children, grace_s)


def _is_drained(endpoint: str, calls: ChannelOptions) -> bool | None:
    """None while the worker does not say."""
    try:
        with BlockingWorkerClient(endpoint, calls) as worker:
            return worker.status(timeout_s=STATUS_TIMEOUT_S).drained
    except HotslotError:
        return None
