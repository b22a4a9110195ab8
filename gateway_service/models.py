"""Models as OpenAI lists them: base models that are served, and the adapters for them; and what `model` stands for."""

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, suppress
from datetime import datetime
from typing import Any

from gateway_service.deployment import Deployment, ServedBase
from gateway_service.errors import ModelNotFoundError, wrong_param
from gateway_service.translation import WantedAnswer
from hotslot import AdapterSelection
from hotslot.clients.store import StoreClient
from hotslot.contract.catalog import Adapter, Version
from hotslot.errors import InvalidReferenceError, NotFoundError, NotImplementedYetError
from hotslot.ids import TenantId
from hotslot.references import DEFAULT_TAG, parse_reference

MAX_LISTED = 10_000
NEITHER = "it is neither a base model that is served nor a reference"
Card = dict[str, Any]


async def selected(deployment: Deployment, wanted: WantedAnswer) -> tuple[str, tuple[AdapterSelection, ...], bool]:
    """The base model to route by, the adapters, and whether it is the base model alone that serves `wanted`.

    A name of both kinds is the base model's; the adapter has `name:tag`. Raises ApiError.
    """
    base = await deployment.base_named(wanted.model)
    if base is not None:
        return base.name, wanted.adapters, not wanted.adapters
    try:
        parse_reference(wanted.model)
    except InvalidReferenceError as exc:
        raise ModelNotFoundError(wanted.model, NEITHER) from exc
    if wanted.adapters:
        raise wrong_param("adapters", "needs the base model's name as model; name all adapters of the mix here")
    return "", (AdapterSelection(wanted.model),), False


async def cards(deployment: Deployment, tenant: TenantId) -> AsyncIterator[Card]:
    """Every model that this tenant can name."""
    bases = {base.digest: base for base in await deployment.bases()}
    for base in bases.values():
        yield base_card(base)
    if not deployment.has_store:
        base = next(iter(bases.values()))
        async with deployment.client(tenant) as client:
            for loaded in (await client.worker.list_adapters()).adapters:
                for reference in loaded.references:
                    name = reference.removesuffix(f":{DEFAULT_TAG}")
                    yield _card(name, f"{name}@{loaded.digest}", base, None)
        return
    count = 0
    async with deployment.client(tenant) as client, aclosing(_listed(client.store)) as adapters:
        async for adapter in adapters:
            version = adapter.latest_version
            if version is None or version.base_model_digest not in bases or not adapter.tags:
                continue
            yield _adapter_card(adapter, version, bases[version.base_model_digest])
            count += 1
            if count == MAX_LISTED:
                return


async def _listed(store: StoreClient) -> AsyncGenerator[Adapter, None]:
    """A tenant's own adapters, then those that others share with it."""
    async with aclosing(store.list_adapters()) as own:
        async for adapter in own:
            yield adapter
    # A store of an earlier release shares nothing.
    with suppress(NotImplementedYetError):
        async with aclosing(store.list_shared_adapters()) as shared:
            async for adapter in shared:
                yield adapter


async def card_of(deployment: Deployment, tenant: TenantId, model: str) -> Card:
    """One model; raises ModelNotFoundError."""
    base = await deployment.base_named(model)
    if base is not None:
        return base_card(base)
    try:
        reference = str(parse_reference(model))
    except InvalidReferenceError as exc:
        raise ModelNotFoundError(model, NEITHER) from exc
    bases = {base.digest: base for base in await deployment.bases()}
    async with deployment.client(tenant) as client:
        if not deployment.has_store:
            for loaded in (await client.worker.list_adapters()).adapters:
                if reference in loaded.references:
                    return _card(model, f"{reference}@{loaded.digest}", next(iter(bases.values())), None)
            raise ModelNotFoundError(model, "the worker does not hold it")
        try:
            version = (await client.store.resolve(model)).version
        except NotFoundError as exc:
            raise ModelNotFoundError(model, "there is no such adapter, tag or version") from exc
    if version.base_model_digest not in bases:
        raise ModelNotFoundError(model, "no worker serves its base model")
    return _card(model, f"{version.adapter}@{version.digest}", bases[version.base_model_digest], version.create_time)


def base_card(base: ServedBase) -> Card:
    """A base model."""
    return {
        "id": base.name,
        "object": "model",
        "created": 0,
        "owned_by": "hotslot",
        "root": base.digest,
        "parent": None,
        "max_model_len": base.max_tokens,
    }


def _adapter_card(adapter: Adapter, version: Version, base: ServedBase) -> Card:
    tag = adapter.tag(DEFAULT_TAG) or adapter.tags[0]
    name = adapter.name if tag.name == DEFAULT_TAG else f"{adapter.name}:{tag.name}"
    return _card(name, f"{adapter.name}@{tag.digest}", base, adapter.create_time)


def _card(name: str, root: str, base: ServedBase, created: datetime | None) -> Card:
    return {
        **base_card(base),
        "id": name,
        "created": int(created.timestamp()) if created is not None else 0,
        "root": root,
        "parent": base.name,
    }
