"""Checks of a deployment from outside, one after the other, by what its services answer.

Each is a function of the subject that yields findings; `DEPLOYMENT_CHECKS` has them in their order.
"""

import http.client
import json
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property

from hotslot.cli.rendering import short_digest
from hotslot.clients.blocking import BlockingHotslotClient
from hotslot.contract.control import WorkerState
from hotslot.contract.placement import Worker
from hotslot.errors import CoordinationUnavailableError, HotslotError, NotImplementedYetError
from hotslot.local.findings import Finding, fail, ok, warn
from hotslot.local.health_probe import STORE_SERVICE, WORKER_SERVICE, Probed, ProbeOutcome, probe
from hotslot.rpc.channel import ChannelOptions
from hotslot.rpc.server_facts import installed_version

TIMEOUT_S = 5.0
MAX_PROBED = 64
"""Workers of a fleet that are asked, at most."""
SKEW_S = 2.0
"""Difference of clocks from which on times in lists and logs mislead."""
LARGE_SKEW_S = 300.0
"""Difference from which on signatures and tokens are refused."""


PART_ADVICE: Mapping[str, str] = {
    "catalog": "look at the database that HOTSLOT_CATALOG_URL names, and at the store's log",
    "disk": "free or enlarge the disk of HOTSLOT_DATA_DIR, and let the store write there",
    "object_storage": "look at HOTSLOT_BLOB_URL and its credentials; adapters on the disk are served meanwhile",
    "redis": "look at Redis; workers serve meanwhile, each for itself",
}
"""Advice by the part of a store that does not work."""


@dataclass
class CheckedDeployment:
    """A deployment under check, with what was read of it so far."""

    client: BlockingHotslotClient
    store: str
    worker: str
    gateway: str
    options: ChannelOptions
    chosen: frozenset[str] = frozenset()
    """Those of store, worker and gateway that the user named; the others are defaults."""
    workers: list[Worker] | None = field(default=None, init=False)
    """The fleet; None while it is not known."""

    @property
    def worker_options(self) -> ChannelOptions:
        """Options of calls to workers."""
        return replace(self.options, security=self.options.security.for_workers())

    @cached_property
    def store_probed(self) -> Probed:
        """Answer of the store's endpoint."""
        return probe(self.store, STORE_SERVICE, self.options)

    @cached_property
    def worker_probed(self) -> Probed:
        """Answer of the worker's endpoint."""
        return probe(self.worker, WORKER_SERVICE, self.worker_options)

    @property
    def is_there(self) -> bool:
        """True where anything answers, or the user said where it is."""
        named = bool(self.chosen & {"store", "worker"})
        return named or any(p.answer is not ProbeOutcome.SILENT for p in (self.store_probed, self.worker_probed))


def check_store(subject: CheckedDeployment) -> Iterator[Finding]:
    """Reachability of the store."""
    yield _reached("store", subject.store_probed, "`hotslot up` starts one; --store or a context names another")
    if subject.store_probed.answer is not ProbeOutcome.SILENT:
        with suppress(HotslotError):  # a store of an earlier release tells none; others' failures show elsewhere
            for part in subject.client.store.status().failing:
                tell = fail if part.required else warn
                yield tell(f"store {part.name}", part.why, PART_ADVICE.get(part.name, "see the store's log"))


def check_worker(subject: CheckedDeployment) -> Iterator[Finding]:
    """Reachability and readiness of the worker that commands call."""
    probed = subject.worker_probed
    if probed.answer is ProbeOutcome.NOT_SERVING:
        how = "`hotslot undrain` takes a drained one back; otherwise wait, or see `hotslot logs worker`"
        yield warn("worker", probed.found, how)
    else:
        yield _reached("worker", probed, "`hotslot up` starts one; --worker or a context names another")


def check_fleet(subject: CheckedDeployment) -> Iterator[Finding]:
    """Redis, as the store has it, and the workers that it knows through it."""
    if subject.store_probed.answer is not ProbeOutcome.SERVING:
        return
    try:
        subject.workers = list(subject.client.placement.list_workers())
    except CoordinationUnavailableError as exc:
        yield fail("redis", f"the store does not reach it: {exc.message}", "start it; workers serve meanwhile")
        return
    except NotImplementedYetError:
        yield warn("redis", "the store has none, so workers do not know each other", "set HOTSLOT_REDIS_URL for it")
        return
    except HotslotError as exc:
        yield fail("redis", f"the fleet cannot be read: {exc.message}", "see the store's log")
        return
    yield ok("redis", "the store reaches it")
    counts = Counter(worker.state for worker in subject.workers)
    shown = ", ".join(f"{count} {state.value}" for state, count in counts.items())
    if counts[WorkerState.READY]:
        yield ok("fleet", f"{len(subject.workers)} workers: {shown}")
    else:
        found = f"no worker is ready{f': {shown}' if shown else ''}"
        yield warn("fleet", found, "wait for one, or see its log; it needs the store's Redis")
    yield from _membership(subject)


def check_versions(subject: CheckedDeployment) -> Iterator[Finding]:
    """Releases of the services against that of this command, and clocks against this machine's."""
    probed = {f"store {subject.store}": subject.store_probed, f"worker {subject.worker}": subject.worker_probed}
    endpoints = [w.endpoint for w in subject.workers or () if w.endpoint != subject.worker][:MAX_PROBED]
    if endpoints:
        with ThreadPoolExecutor(8) as threads:
            found = threads.map(lambda endpoint: probe(endpoint, WORKER_SERVICE, subject.worker_options), endpoints)
            probed |= {f"worker {endpoint}": one for endpoint, one in zip(endpoints, found, strict=True)}
    away = [name for name, one in probed.items() if one.answer is ProbeOutcome.SILENT and name.split()[1] in endpoints]
    if away:
        how = "the store's answers name them: --route and smart clients need a way there"
        yield warn("routes", f"{_few(away)} cannot be reached from here", how)
    heard = {n: p for n, p in probed.items() if p.answer in (ProbeOutcome.SERVING, ProbeOutcome.NOT_SERVING)}
    if not heard:
        return
    own = installed_version()
    others = {name: one.facts.version or "an earlier release" for name, one in heard.items()}
    different = [f"{name} has {version}" for name, version in others.items() if version != own]
    if different:
        how = "releases next to each other work together; update the older side soon"
        yield warn("versions", f"this command has {own}, {_few(different)}", how)
    else:
        yield ok("versions", f"all have {own}")
    yield from _clocks(heard)


def check_bases(subject: CheckedDeployment) -> Iterator[Finding]:
    """Base models of the workers against those that the store has."""
    if subject.store_probed.answer is not ProbeOutcome.SERVING:
        return
    try:
        known = {model.digest for model in subject.client.store.list_base_models()}
    except HotslotError as exc:
        yield fail("base models", f"they cannot be read: {exc.message}", "see the store's log")
        return
    served = {worker.worker_id: str(worker.base_model_digest) for worker in subject.workers or ()}
    if subject.worker_probed.answer is ProbeOutcome.SERVING and not served:
        try:
            status = subject.client.worker.status(timeout_s=TIMEOUT_S)
            served = {status.worker_id: status.base_model_digest}
        except HotslotError as exc:
            yield fail("base models", f"the worker does not say: {exc.message}", "see its log")
            return
    strange = [f"{name} serves {short_digest(digest)}" for name, digest in served.items() if digest not in known]
    if strange:
        how = "it registers it itself when it reaches this store; `hotslot base ls` lists them"
        yield fail("base models", f"{_few(strange)}, which the store does not know", how)
    elif not known:
        yield warn("base models", "the store knows none", "a worker registers its own; `hotslot base add` does, too")
    else:
        yield ok("base models", f"the store knows {len(known)}, and all that workers serve")


def check_gateway(subject: CheckedDeployment) -> Iterator[Finding]:
    """Reachability, readiness and release of the gateway."""
    url = subject.gateway.rstrip("/")
    named = "gateway" in subject.chosen
    try:
        status, body = _get(f"{url}/health")
        release = json.loads(_get(f"{url}/version")[1] or b"{}").get("version", "") if status == 200 else ""
    except (OSError, ValueError, http.client.HTTPException, AttributeError) as exc:
        reason = getattr(exc, "reason", exc)
        if not named and isinstance(reason, ConnectionRefusedError):
            yield ok("gateway", f"none at {url}; --gateway or HOTSLOT_GATEWAY names one")
        else:
            yield fail("gateway", f"{url} does not answer as one: {reason}", "start it, or name another with --gateway")
        return
    if status != http.client.OK:
        message = _error_message(body)
        yield fail("gateway", f"{url} is not ready: {status}{f' {message}' if message else ''}", "see its log")
    elif not release:
        yield fail("gateway", f"{url} answers, and is no gateway", "name one with --gateway")
    elif release != installed_version():
        how = "releases next to each other work together; update the older side soon"
        yield warn("gateway", f"{url} has {release}, this command {installed_version()}", how)
    else:
        yield ok("gateway", f"{url} serves")


Check = Callable[[CheckedDeployment], Iterator[Finding]]
DEPLOYMENT_CHECKS: Sequence[Check] = (
    check_store,
    check_worker,
    check_fleet,
    check_versions,
    check_bases,
    check_gateway,
)


def _reached(check: str, probed: Probed, how: str) -> Finding:
    match probed.answer:
        case ProbeOutcome.SERVING:
            return ok(check, probed.found)
        case ProbeOutcome.NOT_SERVING:
            return warn(check, probed.found, "wait, or see its log")
        case _:
            return fail(check, probed.found, how)


def _membership(subject: CheckedDeployment) -> Iterator[Finding]:
    """Tell of a worker that commands call and that the store does not know."""
    if subject.worker_probed.answer is not ProbeOutcome.SERVING:
        return
    try:
        worker_id = subject.client.worker.status(timeout_s=TIMEOUT_S).worker_id
    except HotslotError as exc:
        yield fail("membership", f"the worker does not say who it is: {exc.message}", "see its log")
        return
    if worker_id not in {worker.worker_id for worker in subject.workers or ()}:
        how = "give both one HOTSLOT_REDIS_URL, or name another worker with --worker"
        yield warn("membership", f"the worker at {subject.worker} is not in the store's fleet", how)


def _clocks(heard: Mapping[str, Probed]) -> Iterator[Finding]:
    skews = {name: one.ahead_s for name, one in heard.items() if one.ahead_s is not None}
    wrong = {
        name: skew for name, skew in skews.items() if abs(skew) > SKEW_S + heard[name].within_s
    }  # fmt: skip
    if not wrong:
        if skews:
            yield ok("clocks", f"within {max(SKEW_S, *map(abs, skews.values())):.0f} s of this machine's")
        return
    shown = _few([f"{name} is {abs(skew):.0f} s {'ahead' if skew > 0 else 'behind'}" for name, skew in wrong.items()])
    report = fail if max(map(abs, wrong.values())) > LARGE_SKEW_S else warn
    yield report("clocks", shown, "set them by NTP: times in lists, signatures and tokens go by them")


def _get(url: str) -> tuple[int, bytes]:
    """Status and body, without any proxy."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=TIMEOUT_S) as answer:
            return answer.status, answer.read(65_536)
    except urllib.error.HTTPError as exc:
        return exc.code, exc.read(65_536)


def _error_message(body: bytes) -> str:
    try:
        return str(json.loads(body)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return ""


def _few(texts: Sequence[str], most: int = 3) -> str:
    rest = len(texts) - most
    return ", ".join(texts[:most]) + (f" and {rest} more" if rest > 0 else "")
