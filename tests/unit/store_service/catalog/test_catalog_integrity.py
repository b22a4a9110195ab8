"""Rows of the catalog that changed behind its back, and rows from before there were checksums."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from alembic import command
from sqlalchemy import Engine, create_engine, inspect, text

from hotslot.errors import CatalogDamagedError, ForbiddenError
from hotslot.formats.manifest import AdapterModule, Manifest
from hotslot.ids import AdapterName, Digest, TagName, TenantId
from hotslot.references import parse_reference
from store_service.catalog.base_models import BaseModels
from store_service.catalog.catalog import Catalog
from store_service.catalog.checksums import base_model_checksum
from store_service.catalog.database import catalog_id, open_database
from store_service.catalog.records import NewVersion
from store_service.catalog.schema import migration_config
from tests.support.checkpoints import base_spec

ACME = TenantId("acme")
SPEC = base_spec()


def new_version(number: int) -> NewVersion:
    manifest = Manifest(
        SPEC.digest, Digest(f"sha256:{number:064x}"), 10, "F32", (AdapterModule(SPEC.modules[1].path, 8, 2.0),)
    )
    return NewVersion(manifest, SPEC.name, "upload", "{}")


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("catalog") / "catalog.sqlite3"
    engine = open_database(f"sqlite:///{path}")
    BaseModels(engine).register(SPEC)
    catalog = Catalog(engine)
    for number, name in enumerate(("bot", "other")):
        for index, tag in enumerate(("latest", "stable")):
            version, labels = new_version(10 * number + index), {"team": name}
            catalog.create_version(ACME, AdapterName(name), version, tag=TagName(tag), new_labels=labels, tag_etag="")
    engine.dispose()
    return path


@pytest.fixture
def engine(written: Path, tmp_path: Path) -> Iterator[Engine]:
    engine = open_database(f"sqlite:///{shutil.copy(written, tmp_path)}")
    yield engine
    engine.dispose()


def execute_all(engine: Engine, statements: str) -> None:
    with engine.begin() as connection:
        for statement in statements.split(";"):
            connection.execute(text(statement))


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE tags SET version_id = 2 WHERE version_id = 1",
        "DELETE FROM tags WHERE version_id = 1; UPDATE tags SET name = 'latest' WHERE version_id = 2",
        "DELETE FROM tags WHERE adapter_id = 1; UPDATE tags SET adapter_id = 1",
        "UPDATE tags SET revision = revision + 1",
        "DELETE FROM tags WHERE adapter_id = 1; UPDATE versions SET adapter_id = 1; UPDATE tags SET adapter_id = 1",
        "UPDATE versions SET weights_digest = 'sha256:00'",
        "UPDATE versions SET source = 'hf:evil/bot@0123456789012345678901234567890123456789'",
        "UPDATE versions SET base_model_digest = 'sha256:00'",
        "UPDATE versions SET max_rank = 1",
        "UPDATE versions SET weights_size_bytes = 1",
        "UPDATE versions SET dtype = 'BF16'",
        "UPDATE versions SET config_json = replace(config_json, '{', '{ ')",
        "UPDATE adapters SET create_time_s = 0",
        "UPDATE adapters SET name = 'swapped' WHERE id = 1; UPDATE adapters SET name = 'bot' WHERE id = 2",
        "UPDATE tags SET checksum = ''",
    ],
)
def test_a_changed_row_is_not_believed(engine: Engine, change: str) -> None:
    catalog = Catalog(engine)
    reference = parse_reference("bot")
    assert catalog.resolve(ACME, reference).version.digest == new_version(0).manifest.digest
    execute_all(engine, change)
    with pytest.raises(CatalogDamagedError):
        catalog.resolve(ACME, reference)


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE labels SET value = 'red'",
        "UPDATE labels SET key = 'pinned'",
        "DELETE FROM labels WHERE adapter_id = 1; UPDATE labels SET adapter_id = 1",
    ],
)
def test_a_changed_label_is_not_believed(engine: Engine, change: str) -> None:
    catalog = Catalog(engine)
    assert catalog.get_adapter(ACME, AdapterName("bot")).labels == {"team": "bot"}
    execute_all(engine, change)
    with pytest.raises(CatalogDamagedError):
        catalog.get_adapter(ACME, AdapterName("bot"))


def test_a_base_model_that_changed_is_not_believed(engine: Engine) -> None:
    with engine.begin() as connection:
        connection.execute(text("UPDATE base_models SET modules = replace(modules, '8', '9')"))
    with pytest.raises(CatalogDamagedError):
        BaseModels(engine).get(SPEC.name)


@pytest.mark.parametrize("change", ["digest = 'sha256:00'", "owner = 'mallory'", "owner = NULL", "name = 'org/other'"])
def test_a_base_models_name_that_changed_is_not_believed(engine: Engine, change: str) -> None:
    with engine.begin() as connection:
        connection.execute(text(f"UPDATE base_model_names SET {change}"))
    with pytest.raises(CatalogDamagedError):
        BaseModels(engine).get("org/other" if "name" in change else SPEC.name)


def test_an_adapter_whose_deletion_was_invented_is_not_purged(engine: Engine) -> None:
    with engine.begin() as connection:
        connection.execute(text("UPDATE adapters SET delete_time_s = 1, purge_time_s = 2 WHERE name = 'bot'"))
    with pytest.raises(CatalogDamagedError):
        Catalog(engine).purge()
    with pytest.raises(CatalogDamagedError):
        Catalog(engine).undelete_adapter(ACME, AdapterName("bot"))


def test_weights_whose_row_changed_are_not_taken_for_garbage(engine: Engine) -> None:
    with engine.begin() as connection:
        connection.execute(text("UPDATE versions SET weights_digest = 'sha256:00' WHERE id = 1"))
    with pytest.raises(CatalogDamagedError):
        Catalog(engine).referenced_weights()


@pytest.fixture
def old(engine: Engine, tmp_path: Path) -> Iterator[Engine]:
    """The same catalog as the first schema had it."""
    old = create_engine(f"sqlite:///{tmp_path / 'old.sqlite3'}")
    with old.begin() as target, engine.connect() as source:
        command.upgrade(migration_config(target), "0001")
        for table in ("tenants", "base_models", "adapters", "versions", "tags", "events", "labels"):
            known = {column["name"] for column in inspect(target).get_columns(table)}
            for row in source.execute(text(f"SELECT * FROM {table}")).mappings():
                values = {name: value for name, value in row.items() if name in known}
                names = ", ".join(f":{name}" for name in values)
                target.execute(text(f"INSERT INTO {table} ({', '.join(values)}) VALUES ({names})"), values)
    yield old
    old.dispose()


def test_what_was_there_before_checksums_gets_them(engine: Engine, old: Engine, tmp_path: Path) -> None:
    upgraded = open_database(f"sqlite:///{tmp_path / 'old.sqlite3'}")
    before, after = Catalog(engine), Catalog(upgraded)
    for name in ("bot:latest", "bot:stable", "other"):
        reference = parse_reference(name)
        assert after.resolve(ACME, reference) == before.resolve(ACME, reference)
    for name in ("bot", "other"):
        assert after.get_adapter(ACME, AdapterName(name)).labels == {"team": name}
        versions = after.list_versions(ACME, AdapterName(name), limit=9, before=0)
        assert versions == before.list_versions(ACME, AdapterName(name), limit=9, before=0)
        assert [version.weights_size_bytes for _, version in versions] == [10, 10]
    assert after.events_after(ACME, 0, limit=100) == before.events_after(ACME, 0, limit=100)
    assert BaseModels(upgraded).get(SPEC.name) == BaseModels(engine).get(SPEC.name)
    assert catalog_id(upgraded) != catalog_id(engine)
    upgraded.dispose()


def test_names_of_base_models_from_before_they_had_owners_mean_what_they_meant(old: Engine, tmp_path: Path) -> None:
    with old.begin() as connection:
        command.upgrade(migration_config(connection), "0006")
        copies = (("a later model", SPEC.name, "sha256:" + "1" * 64), ("a trap", SPEC.digest, "sha256:" + "2" * 64))
        for fingerprint, name, digest in copies:
            row = connection.execute(text("SELECT * FROM base_models WHERE id = 1")).one()
            values = {**row._asdict(), "id": None, "name": name, "digest": digest, "weights_fingerprint": fingerprint}
            values["checksum"] = base_model_checksum(SimpleNamespace(**{**values, "modules": json.loads(row.modules)}))
            names = ", ".join(f":{name}" for name in values)
            connection.execute(text(f"INSERT INTO base_models VALUES ({names})"), values)
    upgraded = open_database(f"sqlite:///{tmp_path / 'old.sqlite3'}")
    models = BaseModels(upgraded)
    assert models.get(SPEC.name).spec.weights_fingerprint == "a later model"
    assert models.get(SPEC.digest).spec == SPEC
    assert models.get(SPEC.name).owner is None
    with pytest.raises(ForbiddenError):
        models.register(SPEC, ACME, move=True)
    models.register(SPEC, move=True)
    assert models.get(SPEC.name).spec == SPEC
    upgraded.dispose()


@pytest.mark.parametrize(
    "change",
    [
        "manifest_json = CAST(replace(manifest_json, 'F32', 'F16') AS BLOB)",
        "manifest_json = 'text'",
        "source = 'dir:/elsewhere'",
    ],
)
def test_an_upgrade_does_not_make_a_damaged_version_good(old: Engine, tmp_path: Path, change: str) -> None:
    with old.begin() as connection:
        command.upgrade(migration_config(connection), "0004")
        connection.execute(text(f"UPDATE versions SET {change} WHERE id = 1"))
    upgraded = open_database(f"sqlite:///{tmp_path / 'old.sqlite3'}")
    with pytest.raises(CatalogDamagedError):
        Catalog(upgraded).list_versions(ACME, AdapterName("bot"), limit=9, before=0)
    assert len(Catalog(upgraded).list_versions(ACME, AdapterName("other"), limit=9, before=0)) == 2
    upgraded.dispose()


@pytest.mark.parametrize("change", ["labels SET value", "labels SET key", "versions SET config_json"])
def test_an_upgrade_bears_texts_that_are_no_text_any_more(old: Engine, tmp_path: Path, change: str) -> None:
    with old.begin() as connection:
        command.upgrade(migration_config(connection), "0004")
        owner = "adapter_id = (SELECT id FROM adapters WHERE name = 'bot')"
        connection.execute(text(f"UPDATE {change} = CAST(x'ff7b7d' AS TEXT) WHERE {owner}"))
    upgraded = open_database(f"sqlite:///{tmp_path / 'old.sqlite3'}")
    catalog = Catalog(upgraded)
    with pytest.raises(CatalogDamagedError):
        _ = catalog.get_adapter(ACME, AdapterName("bot")), catalog.resolve(ACME, parse_reference("bot:latest"))
    assert catalog.get_adapter(ACME, AdapterName("other")).labels == {"team": "other"}
    upgraded.dispose()
