"""One flipped bit anywhere in the catalog's file: an error that says so, or the right answer; never another one."""

import random
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from hotslot.errors import CatalogDamagedError, DigestMismatchError, HotslotError, StoreUnavailableError
from hotslot.formats.manifest import AdapterModule, Manifest
from hotslot.ids import AdapterName, Digest, TagName, TenantId
from hotslot.references import parse_reference
from store_service.catalog.base_models import BaseModels
from store_service.catalog.catalog import Catalog
from store_service.catalog.database import catalog_id, open_database
from store_service.catalog.records import AdapterFilter, NewVersion, TagRecord
from tests.support.checkpoints import base_spec

ACME = TenantId("acme")
NAMES = [AdapterName(f"acme/bot-{number}") for number in range(6)]
TAGS = [TagName("latest"), TagName("stable")]
SPECS = [base_spec(f"acme/base-{number}", num_layers=number + 1) for number in range(2)]
FLAGGED = (CatalogDamagedError, DigestMismatchError, StoreUnavailableError)


def new_version(number: int) -> NewVersion:
    modules = tuple(AdapterModule(module.path, 8, 2.0) for module in SPECS[1].modules)
    weights = Digest(f"sha256:{number:064x}")
    manifest = Manifest(SPECS[1].digest, weights, 10 + number, "F32", modules)
    return NewVersion(manifest, SPECS[1].name, "upload", f'{{"r": {number}}}')


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A catalog that was closed in order."""
    path = tmp_path_factory.mktemp("catalog") / "catalog.sqlite3"
    engine = open_database(f"sqlite:///{path}")
    for spec in SPECS:
        BaseModels(engine).register(spec)
    catalog = Catalog(engine)
    for index, name in enumerate(NAMES):
        for version in range(2):
            labels = {"team": f"team-{index}"}
            catalog.create_version(
                ACME, name, new_version(10 * index + version), tag=TAGS[version], new_labels=labels, tag_etag=""
            )
    catalog.delete_adapter(ACME, NAMES[-1], etag="", grace_s=1e9)
    engine.dispose()
    assert list(path.parent.iterdir()) == [path]
    return path


def resolved(catalog: Catalog, reference: str) -> Digest:
    return catalog.resolve(ACME, parse_reference(reference)).version.digest


def versions_of(catalog: Catalog, name: AdapterName) -> list[tuple[int, Digest]]:
    found = catalog.list_versions(ACME, name, limit=10, before=0)
    return [(position, record.digest) for position, record in found]


def config_of(catalog: Catalog, reference: str) -> str:
    return catalog.resolve(ACME, parse_reference(reference)).version.config_json


def labels_of(catalog: Catalog, name: AdapterName) -> dict[str, str]:
    return catalog.get_adapter(ACME, name).labels


def tags_of(catalog: Catalog, name: AdapterName) -> tuple[TagRecord, ...]:
    return catalog.get_adapter(ACME, name).tags


def listed(catalog: Catalog) -> list[AdapterName]:
    found, _ = catalog.list_adapters(ACME, AdapterFilter(), limit=99, after=("", 0))
    return [record.name for _, record in found]


def answers(path: Path) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Everything that names are turned into, after a start of the store."""
    engine = open_database(f"sqlite:///{path}")
    catalog, models = Catalog(engine), BaseModels(engine)
    catalog.purge()
    for name in NAMES[:-1]:
        for tag in TAGS:
            yield f"{name}:{tag}", partial(resolved, catalog, f"{name}:{tag}")
            yield f"{name}:{tag} config", partial(config_of, catalog, f"{name}:{tag}")
        yield f"{name}", partial(tags_of, catalog, name)
        yield f"{name}@", partial(versions_of, catalog, name)
        yield f"{name} labels", partial(labels_of, catalog, name)
    yield "all", partial(listed, catalog)
    yield "events", partial(catalog.events_after, ACME, 0, limit=100)
    yield "weights", catalog.referenced_weights
    yield "uses", partial(catalog.weights_uses, (ACME, new_version(0).manifest.weights_digest))
    yield "size", partial(catalog.readable_weights, ACME, new_version(0).manifest.weights_digest)
    for spec in SPECS:
        yield f"base {spec.name}", partial(models.get, spec.name)
        yield f"base {spec.digest}", partial(models.get, spec.digest)
    yield "id", partial(catalog_id, engine)
    engine.dispose()


def answer(ask: Callable[[], Any]) -> Any:
    try:
        return ask()
    except HotslotError as exc:
        return exc


def flip_and_ask(database: Path, folder: Path, right: dict[str, Any], bit: int) -> str:
    """Whether a flip was noticed at the start, by an answer, or had no effect."""
    data = bytearray(database.read_bytes())
    data[bit // 8] ^= 1 << (bit % 8)
    for leftover in folder.iterdir():
        leftover.unlink()
    path = folder / "flipped.sqlite3"
    path.write_bytes(data)
    noticed = False
    try:
        for question, ask in answers(path):
            found = answer(ask)
            noticed = noticed or isinstance(found, FLAGGED)
            assert isinstance(found, FLAGGED) or found == right[question], (bit, question, found)
    except FLAGGED:
        return "start"
    return "answer" if noticed else "none"


def flip_many(database: Path, folder: Path, num_flips: int, seed: int) -> dict[str, int]:
    right = {question: answer(ask) for question, ask in answers(database)}
    assert not [found for found in right.values() if isinstance(found, HotslotError)]
    rng = random.Random(seed)
    effects = {"start": 0, "answer": 0, "none": 0}
    for _ in range(num_flips):
        effects[flip_and_ask(database, folder, right, rng.randrange(database.stat().st_size * 8))] += 1
    return effects


def test_a_flipped_bit_never_changes_an_answer(database: Path, tmp_path: Path) -> None:
    effects = flip_many(database, tmp_path, num_flips=15, seed=0)
    assert effects["start"] + effects["answer"] > 0


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_thousands_of_flipped_bits_never_change_an_answer(database: Path, tmp_path: Path) -> None:
    effects = flip_many(database, tmp_path, num_flips=3000, seed=1)
    assert min(effects.values()) > 0
