"""Names of base models over real sockets: what an adapter is admitted for is what its name was registered as."""

from dataclasses import replace
from pathlib import Path

import pytest

from hotslot import errors
from hotslot.codec import to_proto
from hotslot.pb.hotslot.store.v1 import adapter_store_pb2 as pb
from store_service.catalog.records import BaseModelRecord
from store_service.rpc.contract import base_model_of
from tests.support.checkpoints import adapter, base_spec
from tests.support.store import StoreClient, error_of, open_store

SPEC = base_spec()
OTHER = base_spec(num_layers=3)


def registration(name: str = SPEC.name, *, move: bool = False) -> pb.RegisterBaseModelRequest:
    """Another model under a name."""
    message = to_proto(pb.BaseModel, base_model_of(BaseModelRecord(replace(OTHER, name=name), 0)))
    return pb.RegisterBaseModelRequest(base_model=message, move=move)


async def base_digest_of_a_push(store: StoreClient, reference: str, base_model: str = "") -> str:
    return str((await store.push(adapter(), reference, base_model=base_model)).manifest.base_model_digest)


async def test_no_tenant_turns_anothers_pushes_to_another_model(tmp_path: Path) -> None:
    async with open_store(tmp_path) as store:
        acme, mallory = store.of("acme"), store.of("mallory")
        await acme.register(SPEC)
        for move, expected in ((False, errors.BaseModelNameTakenError), (True, errors.ForbiddenError)):
            assert isinstance(await error_of(mallory.call("RegisterBaseModel", registration(move=move))), expected)
        for name in (SPEC.digest, SPEC.digest.upper(), SPEC.digest.removeprefix("sha256:")):
            error = await error_of(mallory.call("RegisterBaseModel", registration(name)))
            assert isinstance(error, errors.InvalidRequestError)
            assert [field.field for field in error.fields] == ["name"]
        assert await base_digest_of_a_push(acme, "by-name") == SPEC.digest
        assert await base_digest_of_a_push(acme, "by-digest", SPEC.digest) == SPEC.digest
    async with open_store(tmp_path) as store:
        assert await base_digest_of_a_push(store.of("acme"), "after-a-restart") == SPEC.digest


async def test_a_move_leaves_adapters_with_the_model_that_they_were_admitted_for(tmp_path: Path) -> None:
    async with open_store(tmp_path) as store:
        await store.register(SPEC)
        await base_digest_of_a_push(store, "bot")
        moved = await store.call("RegisterBaseModel", registration(move=True))
        assert moved.created
        assert (await store.resolve("bot")).manifest.base_model_digest == SPEC.digest
        request = pb.DeleteBaseModelRequest(base_model=SPEC.name)
        error = await error_of(store.call("DeleteBaseModel", request))
        assert isinstance(error, errors.BaseModelInUseError)
        assert "1 adapter was" in error.message
        gone = await store.call("DeleteBaseModel", pb.DeleteBaseModelRequest(base_model=OTHER.digest))
        assert [(model.name, model.digest) for model in gone.base_models] == [(SPEC.name, OTHER.digest)]
        error = await error_of(base_digest_of_a_push(store, "again"))
        assert isinstance(error, errors.BaseModelNotFoundError)


@pytest.mark.parametrize("name", ["", "nobody", "sha256:", SPEC.digest])
async def test_what_is_not_there_is_not_found(name: str, tmp_path: Path) -> None:
    async with open_store(tmp_path) as store:
        error = await error_of(store.call("DeleteBaseModel", pb.DeleteBaseModelRequest(base_model=name)))
        assert isinstance(error, errors.BaseModelNotFoundError)
