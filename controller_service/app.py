"""The controller's process: what it is made of, and how it begins and ends."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import structlog

from controller_service.adapter_resource import (
    GROUP,
    PLURAL,
    VERSION,
    Condition,
    DeletionPolicy,
    Outcome,
    Phase,
    finalizers_with,
    has_finalizer,
    is_deleting,
    status_of,
)
from controller_service.following import FollowedResources
from controller_service.kubernetes_api import KubernetesApi, ResourceGoneError
from controller_service.reconciler import BACKOFF, Reconciler
from controller_service.settings import ACCOUNT, ControllerSettings
from controller_service.working import NamedWork
from hotslot.backoff import Backoff
from hotslot.clients.hotslot import HotslotClient
from hotslot.errors import FieldViolation, InvalidRequestError, UnavailableError
from hotslot.ids import parse_tenant
from hotslot.rpc.channel import ChannelOptions
from hotslot.tracing import span
from shared.loops import Loops
from shared.server.grpc_server import RpcServer, ServerOptions, serve, stop_signal
from shared.server.transport import check_dialled
from shared.transport_settings import Transport

log = structlog.get_logger(__name__)


class Controller:
    """Looks at each resource, has it reconciled, and writes its status. Belongs to one event loop."""

    def __init__(
        self, api: KubernetesApi, client: HotslotClient, settings: ControllerSettings, backoff: Backoff = BACKOFF
    ) -> None:
        self._api = api
        self._backoff = backoff
        self._reconciler = Reconciler(client, settings.retry_refused_s, backoff)
        self.resources = FollowedResources(api, self._changed, backoff)
        self.work = NamedWork(self._look, settings.max_imports, backoff)
        self._seen: dict[str, tuple[Any, ...]] = {}
        """Purpose of each look that is under way."""

    def look_at_all(self) -> None:
        """Have a look at every resource, for what others changed in the store."""
        for name in self.resources.names():
            self.work.add(name)

    def _changed(self, name: str) -> None:
        resource = self.resources.get(name)
        if (seen := self._seen.get(name)) is not None and (resource is None or _purpose(resource) != seen):
            # An import for a spec that is not wanted any more need not end.
            self.work.interrupt(name)
        self.work.add(name)

    async def _look(self, name: str) -> float | None:
        resource = self.resources.get(name)
        if resource is None:
            self._reconciler.forget(name)
            return None
        self._seen[name] = _purpose(resource)
        try:
            with span("hotslot.controller.look", {"hotslot.resource": name}):
                return await self._reconcile(name, resource)
        except ResourceGoneError:
            return None  # A further event says what it is now.
        except UnavailableError as exc:
            log.warning("status_not_written", name=name, why=exc.message)
            return self._backoff.pause_s(3)
        finally:
            del self._seen[name]

    async def _reconcile(self, name: str, resource: dict[str, Any]) -> float | None:
        if is_deleting(resource):
            if not has_finalizer(resource):
                return None
            outcome = await self._reconciler.remove(resource)
            if outcome is None:
                await self._set_finalizer(name, resource, ours=False)
                return None
            await self._write(name, resource, outcome)
            return outcome.retry_s
        deletes = (resource.get("spec") or {}).get("deletionPolicy") == DeletionPolicy.DELETE
        if deletes != has_finalizer(resource):
            resource = await self._set_finalizer(name, resource, ours=deletes)

        async def importing() -> None:
            nonlocal resource
            ready = Condition("Ready", None, "Importing", "the store fetches and admits it")
            resource = await self._write(name, resource, Outcome(Phase.PENDING, [ready]))

        outcome = await self._reconciler.reconcile(resource, importing)
        await self._write(name, resource, outcome)
        return outcome.retry_s

    async def _set_finalizer(self, name: str, resource: dict[str, Any], *, ours: bool) -> dict[str, Any]:
        version = resource["metadata"]["resourceVersion"]
        written = await self._api.patch_finalizers(name, finalizers_with(resource, ours=ours), version)
        self.resources.learn(written)
        return written

    async def _write(self, name: str, resource: dict[str, Any], outcome: Outcome) -> dict[str, Any]:
        """Write the status where it is another one; returns the resource with it."""
        if (status := status_of(resource, outcome)) is None:
            return resource
        written = await self._api.patch_status(name, status)
        self.resources.learn(written)
        return written


def _purpose(resource: dict[str, Any]) -> tuple[Any, ...]:
    """Parts of a resource for which a look is another one: its spec, its life, and which of its name it is."""
    metadata = resource["metadata"]
    return metadata.get("uid"), metadata.get("generation"), is_deleting(resource)


@asynccontextmanager
async def running_controller(settings: ControllerSettings, backoff: Backoff = BACKOFF) -> AsyncIterator[Controller]:
    """A controller at work, until the block is left; raises InvalidRequestError, InsecureTransportError and OSError."""
    security = settings.channel_security()
    check_dialled(settings.store, uses_tls=security.uses_tls, insecure=settings.insecure)
    async with AsyncExitStack() as stack:
        health = await stack.enter_async_context(_health(settings))
        api = KubernetesApi(
            settings.kubernetes_url,
            f"/apis/{GROUP}/{VERSION}/namespaces/{_namespace(settings)}/{PLURAL}",
            settings.kubernetes_token_file,
            settings.kubernetes_ca_file,
        )
        stack.push_async_callback(api.close)
        options = ChannelOptions(tenant=parse_tenant(settings.tenant), security=security)
        client = await stack.enter_async_context(HotslotClient(settings.store, options=options))
        controller = Controller(api, client, settings, backoff)
        stack.push_async_callback(controller.work.close)
        loops = await stack.enter_async_context(Loops())
        loops.restarted("resources", controller.resources.follow)

        async def ready() -> None:
            await controller.resources.listed.wait()
            await health.set_ready(True)

        async def resync() -> None:
            controller.look_at_all()

        loops.restarted("readiness", ready)
        loops.repeated("resync", settings.resync_s, resync)
        yield controller


@asynccontextmanager
async def _health(settings: ControllerSettings) -> AsyncIterator[RpcServer]:
    """The health service for probes. There is nothing else to call: its other listener is this machine's alone."""
    transport = Transport(health_address=settings.health_listen)
    async with serve([], ServerOptions(address="127.0.0.1:0", transport=transport, grace_s=0.1)) as server:
        yield server


def _namespace(settings: ControllerSettings) -> str:
    if settings.kubernetes_namespace:
        return settings.kubernetes_namespace
    file = ACCOUNT / "namespace"
    try:
        return Path(file).read_text(encoding="utf-8").strip()
    except OSError as exc:
        problem = f"is not set, and there is no {file} of a pod"
        raise InvalidRequestError([FieldViolation("HOTSLOT_KUBERNETES_NAMESPACE", problem)]) from exc


async def run(settings: ControllerSettings) -> None:
    """Work until a signal comes."""
    async with running_controller(settings):
        log.info("ready", store=settings.store, tenant=settings.tenant, namespace=_namespace(settings))
        received = await stop_signal()
        log.info("stopping", signal=received.name)
