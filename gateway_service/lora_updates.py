"""vLLM's way of loading and unloading adapters, with references and the hub's repositories in the place of paths."""

import asyncio

from gateway_service.deployment import Deployment
from gateway_service.errors import ApiError, wrong_param
from gateway_service.request_bodies import LoadAdapterBody, UnloadAdapterBody
from hotslot import HotslotClient
from hotslot.errors import AdapterNotLoadedError, InvalidReferenceError, InvalidRequestError, NotFoundError
from hotslot.ids import TenantId
from hotslot.references import Reference, parse_reference
from hotslot.sources import parse_hub_name

HUB_FORM = "hf://ORG/NAME[@REVISION][/FOLDER]"


async def load(deployment: Deployment, tenant: TenantId, body: LoadAdapterBody, min_revision: int) -> tuple[str, int]:
    """Bring an adapter to a worker, imported first where it comes from the hub.

    Returns what was done, and the revision of the tenant's catalog with it; 0 without a store.

    Raises ApiError, and what importing, tagging and loading raise.
    """
    target, revision = _reference("lora_name", body.lora_name), 0
    async with deployment.client(tenant) as client:
        if deployment.has_store:
            revision = await _publish(client, target, body)
        elif body.lora_path != body.lora_name:
            raise wrong_param("lora_path", "without a store, only a reference that is lora_name itself can be loaded")
        endpoint = deployment.worker
        if not endpoint:
            endpoint = (await client.placement.pick_workers([str(target)])).candidates[0].worker.endpoint
    async with deployment.worker_at(tenant, endpoint) as worker:
        await worker.load(str(target), min_revision=max(min_revision, revision))
    return f"Success: LoRA adapter '{body.lora_name}' added successfully.", revision


async def unload(deployment: Deployment, tenant: TenantId, body: UnloadAdapterBody) -> str:
    """Remove an adapter from every worker that holds it; raises AdapterNotLoadedError where none does."""
    target = str(_reference("lora_name", body.lora_name))

    async def unload_at(endpoint: str) -> bool:
        try:
            async with deployment.worker_at(tenant, endpoint) as worker:
                await worker.unload(target)
        except AdapterNotLoadedError:
            return False
        return True

    held = await asyncio.gather(*(unload_at(endpoint) for endpoint in await deployment.endpoints()))
    if not any(held):
        raise ApiError(
            404,
            "ADAPTER_NOT_LOADED",
            f"adapter {body.lora_name[:120]!r} is not loaded on any worker",
            param="lora_name",
            kind="not_found_error",
        )
    return f"Success: LoRA adapter '{body.lora_name}' removed successfully."


async def _publish(client: HotslotClient, target: Reference, body: LoadAdapterBody) -> int:
    """Let the target stand for what lora_path names; returns the revision of the catalog at which it does."""
    path = body.lora_path
    if path.startswith("hf:"):
        try:
            found = parse_hub_name(path, HUB_FORM)
        except InvalidRequestError as exc:
            raise wrong_param("lora_path", f"expected {HUB_FORM}") from exc
        await client.store.import_hub(
            found.repo_id,
            str(target),
            revision=found.revision,
            subfolder=found.subfolder,
            base_model=body.base_model_name or "",
        )
        return client.revision
    if path.startswith(("/", ".", "~")) or "://" in path:
        raise wrong_param("lora_path", "expected a reference or hf://ORG/NAME; files of the server are not read")
    source = _reference("lora_path", path)
    if source == target:
        return 0
    if source.name != target.name or target.tag is None:
        raise wrong_param("lora_name", f"{path} is a version of {source.name!r}: name a tag of that adapter")
    digest = (await client.store.resolve(path)).version.digest
    try:
        resolved = await client.store.resolve(str(target))
        stands_for, revision = resolved.version.digest, resolved.revision
    except NotFoundError:
        stands_for, revision = None, 0
    if stands_for == digest:
        return revision
    if stands_for is not None and not body.load_inplace:
        raise wrong_param("lora_name", f"stands for {stands_for} already; set load_inplace to let it stand for another")
    await client.store.set_tag(target.name, target.tag, digest)
    return client.revision


def _reference(param: str, text: str) -> Reference:
    try:
        return parse_reference(text)
    except InvalidReferenceError as exc:
        raise ApiError(400, "INVALID_REFERENCE", f"{param}: {exc.message}", param=param) from exc
