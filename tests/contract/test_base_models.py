"""Names of base models, in SQLite and a real PostgreSQL: no tenant takes over another's."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace

import pytest
from sqlalchemy import Engine

from hotslot.errors import (
    BaseModelInUseError,
    BaseModelNameTakenError,
    BaseModelNotFoundError,
    ForbiddenError,
    HotslotError,
    InvalidRequestError,
)
from hotslot.formats.base_spec import BaseSpec, check_spec, looks_like_a_digest
from hotslot.formats.manifest import AdapterModule, Manifest
from hotslot.ids import DEFAULT_TENANT, AdapterName, TagName, TenantId, digest_of
from store_service.catalog.base_models import BaseModels
from store_service.catalog.catalog import Catalog
from store_service.catalog.records import NewVersion
from tests.support.checkpoints import base_spec

ACME, OTHER = TenantId("acme"), TenantId("other")
FIRST, SECOND = (base_spec(fingerprint=fingerprint) for fingerprint in "ab")
NAME = FIRST.name


@pytest.fixture
def models(engine: Engine) -> BaseModels:
    return BaseModels(engine)


def publish(engine: Engine, spec: BaseSpec, name: str = "bot", tenant: TenantId = ACME) -> None:
    manifest = Manifest(spec.digest, digest_of(name.encode()), 1, "F32", (AdapterModule(spec.modules[1].path, 4, 2.0),))
    version = NewVersion(manifest, spec.name, "upload", "{}")
    Catalog(engine).create_version(
        tenant, AdapterName(name), version, tag=TagName("latest"), new_labels={}, tag_etag="", requires_base=True
    )


@pytest.mark.parametrize("by", [ACME, OTHER, DEFAULT_TENANT])
def test_a_name_stays_what_it_was_registered_as_whoever_comes_next(models: BaseModels, by: TenantId) -> None:
    models.register(FIRST, ACME)
    with pytest.raises(BaseModelNameTakenError) as caught:
        models.register(SECOND, by)
    for part in (NAME, FIRST.digest, SECOND.digest, "register it with move"):
        assert part in caught.value.message
    assert models.get(NAME).spec == FIRST
    with pytest.raises(BaseModelNotFoundError):
        models.get(SECOND.digest)
    assert not models.register(FIRST, by)[1]


def test_a_name_is_moved_by_its_owner_and_by_operators_only(models: BaseModels) -> None:
    models.register(FIRST, ACME)
    with pytest.raises(ForbiddenError):
        models.register(SECOND, OTHER, move=True)
    assert models.get(NAME).spec == FIRST
    for spec, by in ((SECOND, ACME), (FIRST, DEFAULT_TENANT)):
        models.register(spec, by, move=True)
        assert models.get(NAME).spec == spec
        assert models.get(NAME).owner == ACME
    listed = {record.spec.digest: record.is_superseded for _, record in models.list(limit=9, after=0)}
    assert listed == {FIRST.digest: False, SECOND.digest: True}
    assert models.get(SECOND.digest).is_superseded


@pytest.mark.parametrize("make", [
    lambda digest: digest,
    lambda digest: digest.upper(),
    lambda digest: f" {digest}",
    lambda digest: digest.removeprefix("sha256:"),
    lambda digest: digest.removeprefix("sha256:").upper(),
    lambda digest: digest[:30],
    lambda digest: "sha256:",
    lambda digest: "Sha256:latest",
    lambda digest: digest.replace(":", "\uff1a"),
    lambda digest: "".join(chr(ord(character) + 0xFEE0) for character in digest),
    lambda digest: digest + "\n",
])  # fmt: skip
def test_what_looks_like_a_digest_is_no_name(make: object) -> None:
    name = make(FIRST.digest)  # type: ignore[operator]
    assert looks_like_a_digest(name)
    with pytest.raises(InvalidRequestError, match="looks like a digest"):
        check_spec(replace(SECOND, name=name))


@pytest.mark.parametrize("name", ["org/model ", "\torg/model", "org/\u200bmodel", "org/model\x00", "a" * 513])
def test_a_name_that_people_cannot_tell_from_another_is_refused(name: str) -> None:
    with pytest.raises(InvalidRequestError):
        check_spec(replace(FIRST, name=name))


@pytest.mark.parametrize("name", ["org/model", "./sha256", "my sha256: model", "abc123", "模型", "/models/a b"])
def test_other_names_are_names(name: str) -> None:
    check_spec(replace(FIRST, name=name))


def test_a_digest_is_not_looked_up_among_the_names(models: BaseModels) -> None:
    models.register(replace(SECOND, name=FIRST.digest), OTHER)  # as it was possible once
    with pytest.raises(BaseModelNotFoundError):
        models.get(FIRST.digest)
    models.register(FIRST, ACME)
    assert models.get(FIRST.digest).spec == FIRST
    assert models.get(SECOND.digest).spec.digest == SECOND.digest


def test_a_digest_stands_for_the_first_registration_of_it(models: BaseModels) -> None:
    def with_values(spec: BaseSpec, values: bytes) -> BaseSpec:
        return replace(spec, modules=(replace(spec.modules[0], values_digest=digest_of(values)), *spec.modules[1:]))

    models.register(FIRST, ACME)
    models.register(with_values(replace(FIRST, name="other/copy"), b"invented"), OTHER)
    models.register(with_values(FIRST, b"invented"), OTHER)
    assert models.get(FIRST.digest).spec.name == NAME
    assert models.get(FIRST.digest).spec.modules[0].values_digest == ""
    models.register(with_values(FIRST, b"right"), ACME)
    assert models.get(NAME).spec.modules[0].values_digest == digest_of(b"right")


def test_of_many_that_register_one_name_at_once_one_has_it(models: BaseModels) -> None:
    specs = [base_spec(fingerprint=str(number)) for number in range(8)]

    def register(spec: BaseSpec) -> HotslotError | bool:
        try:
            return models.register(spec, TenantId(f"tenant-{spec.weights_fingerprint}"))[1]
        except HotslotError as exc:
            return exc

    with ThreadPoolExecutor(8) as threads:
        outcomes = list(threads.map(register, specs))
    assert [outcome for outcome in outcomes if outcome is True] == [True]
    assert all(isinstance(outcome, BaseModelNameTakenError) for outcome in outcomes if outcome is not True)
    winner = specs[outcomes.index(True)]
    assert models.get(NAME).spec == winner
    assert models.get(NAME).owner == f"tenant-{winner.weights_fingerprint}"
    assert len(models.list(limit=99, after=0)) == 1


def test_workers_that_register_one_model_at_once_are_all_content(models: BaseModels) -> None:
    with ThreadPoolExecutor(8) as threads:
        created = list(threads.map(lambda _: models.register(FIRST)[1], range(16)))
    assert created.count(True) == 1


def test_a_base_model_in_use_stays_and_says_by_how_many(models: BaseModels, engine: Engine) -> None:
    models.register(FIRST, ACME)
    for name, tenant in (("bot", ACME), ("bot", OTHER), ("second", ACME)):
        publish(engine, FIRST, name, tenant)
    Catalog(engine).delete_adapter(ACME, AdapterName("second"), etag="", grace_s=1e9)
    for wanted in (NAME, FIRST.digest):
        with pytest.raises(BaseModelInUseError, match="3 adapters"):
            models.delete(wanted, ACME)
    assert models.get(NAME).spec == FIRST


def test_deleting_takes_a_name_with_all_that_it_stood_for(models: BaseModels, engine: Engine) -> None:
    models.register(FIRST, ACME)
    models.register(SECOND, ACME, move=True)
    publish(engine, FIRST)
    with pytest.raises(BaseModelInUseError):
        models.delete(NAME, ACME)
    assert [record.spec for record in models.delete(SECOND.digest, ACME)] == [SECOND]
    with pytest.raises(BaseModelNotFoundError):
        models.get(NAME)
    assert models.get(FIRST.digest).spec == FIRST
    for missing in (NAME + "x", SECOND.digest):
        with pytest.raises(BaseModelNotFoundError):
            models.delete(missing, ACME)


def test_only_the_owner_and_operators_delete(models: BaseModels) -> None:
    models.register(FIRST, ACME)
    models.register(replace(FIRST, name="other/copy"), OTHER)
    with pytest.raises(ForbiddenError):
        models.delete(NAME, OTHER)
    with pytest.raises(ForbiddenError):
        models.delete(FIRST.digest, ACME)
    assert len(models.delete(FIRST.digest, DEFAULT_TENANT)) == 2
    assert models.list(limit=9, after=0) == []
    models.register(SECOND, OTHER)
    assert models.get(NAME).owner == OTHER


def test_another_name_of_a_model_in_use_can_go(models: BaseModels, engine: Engine) -> None:
    models.register(FIRST, ACME)
    models.register(replace(FIRST, name="acme/alias"), ACME)
    publish(engine, FIRST)
    assert [record.spec.name for record in models.delete("acme/alias", ACME)] == ["acme/alias"]
    with pytest.raises(BaseModelInUseError, match="1 adapter was"):
        models.delete(NAME, ACME)


def test_publishing_and_deleting_at_once_leave_no_adapter_without_its_base(models: BaseModels, engine: Engine) -> None:
    for round_number in range(12):
        spec = base_spec(f"acme/round-{round_number}", fingerprint=f"round {round_number}")
        models.register(spec, ACME)

        def remove(spec: BaseSpec = spec) -> None:
            with suppress(BaseModelInUseError):
                models.delete(spec.name, ACME)

        def add(spec: BaseSpec = spec) -> bool:
            try:
                publish(engine, spec, f"bot-{spec.weights_fingerprint[-2:].strip()}")
            except BaseModelNotFoundError:
                return False
            return True

        with ThreadPoolExecutor(2) as threads:
            removed, added = threads.submit(remove), threads.submit(add)
            removed.result()
            if added.result():
                assert models.get(spec.digest).spec == spec
            else:
                with pytest.raises(BaseModelNotFoundError):
                    models.get(spec.name)


@pytest.mark.parametrize("slashes", ["/", "//"])
def test_a_folders_name_is_found_with_a_slash_behind_it(slashes: str, models: BaseModels) -> None:
    models.register(replace(FIRST, name="./tiny"))
    assert models.get("./tiny" + slashes).spec.name == "./tiny"
    models.register(replace(FIRST, name=f"./old{slashes}"))
    assert models.get(f"./old{slashes}").spec.name == f"./old{slashes}", "as older clients registered it"


def test_those_of_a_name_or_a_digest_are_listed_alone(models: BaseModels) -> None:
    further = replace(FIRST, name="org/further")
    for spec in (FIRST, further):
        models.register(spec, ACME)
    models.register(SECOND, ACME, move=True)

    def listed(name_or_digest: str, after: int = 0, limit: int = 9) -> list[tuple[str, str]]:
        found = models.list(limit=limit, after=after, name_or_digest=name_or_digest)
        return [(record.spec.name, record.spec.digest) for _, record in found]

    assert listed(NAME) == [(NAME, FIRST.digest), (NAME, SECOND.digest)]
    assert listed(FIRST.digest) == [(NAME, FIRST.digest), ("org/further", FIRST.digest)]
    assert listed(FIRST.digest, limit=1) == [(NAME, FIRST.digest)]
    assert listed(FIRST.digest, after=1) == [("org/further", FIRST.digest)]
    assert listed("org/none") == listed("sha256:" + "0" * 64) == []
