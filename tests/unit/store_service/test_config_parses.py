"""adapter_config.json is parsed once a publication, whatever becomes of it."""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import pytest

from hotslot.errors import InvalidAdapterError, QuotaExceededError
from hotslot.formats.strict_json import parse_object
from hotslot.ids import TenantId
from hotslot.references import parse_reference
from store_service.catalog.base_models import BaseModels
from store_service.catalog.records import CatalogEvent
from store_service.content.published import PublishedBlobs
from store_service.content.uploads import UploadFolder
from store_service.opening import open_data
from store_service.publication import Publication
from store_service.registry import Registry
from store_service.settings import StoreSettings
from store_service.signatures.requirement import SignatureRequirement
from tests.support.checkpoints import adapter, base_spec

ACME = TenantId("acme")


@pytest.fixture
def parses(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Sizes of the configs that were parsed."""
    seen: list[int] = []
    parse = parse_object

    def counted(data: bytes) -> object:
        seen.append(len(data))
        return parse(data)

    monkeypatch.setattr("store_service.admission.config.parse_object", counted)
    return seen


class Deaf:
    """Watchers who want no announcements."""

    def hears(self, tenant: TenantId) -> bool:
        return False

    def announce(self, tenant: TenantId, events: Sequence[CatalogEvent]) -> None:
        raise AssertionError("none is made for them")


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Registry]:
    (tmp_path / "data").mkdir()
    settings = StoreSettings(data_dir=tmp_path / "data", blob_cache_bytes=2_000)
    data = open_data(settings, lambda tenant: None)
    base_models = BaseModels(data.engine)
    base_models.register(base_spec(), ACME)
    published = PublishedBlobs(data.catalog, data.blobs)
    uploads = UploadFolder(settings.data_dir, max_upload_bytes=settings.max_adapter_bytes)
    yield Registry(published, base_models, uploads, settings.admission_limits, SignatureRequirement(None), Deaf())
    data.engine.dispose()


def publication(base_model: str) -> Publication:
    return Publication(parse_reference("bot"), base_model, "upload", {})


@pytest.mark.parametrize("base_model", ["", base_spec().name])
def test_a_publication_parses_its_config_once(
    registry: Registry, parses: list[int], tmp_path: Path, base_model: str
) -> None:
    record, created = registry.publish(ACME, adapter().write(tmp_path / "bot"), publication(base_model))
    assert created
    assert '"lora_alpha": 8' in record.config_json
    assert len(parses) == 1


def test_a_publication_without_room_parses_its_config_once(
    registry: Registry, parses: list[int], tmp_path: Path
) -> None:
    registry.publish(ACME, adapter().write(tmp_path / "bot"), publication(""))
    with pytest.raises(QuotaExceededError):
        registry.publish(ACME, adapter(seed=1).write(tmp_path / "other"), publication(""))
    _, created = registry.publish(ACME, adapter().write(tmp_path / "again"), publication(""))
    assert not created
    assert len(parses) == 3


@pytest.mark.parametrize("flaw", [{"r": 0}, {"use_rslora": "yes"}, {"target_modules": ["nowhere"]}])
def test_a_refusal_and_its_base_model_parse_the_config_once(
    registry: Registry, parses: list[int], tmp_path: Path, flaw: dict[str, object]
) -> None:
    draft = adapter()
    draft.config.update(flaw)
    checkpoint = draft.write(tmp_path / "bot")
    with pytest.raises(InvalidAdapterError):
        registry.publish(ACME, checkpoint, publication(""))
    with suppress(InvalidAdapterError):
        registry.base_of(checkpoint, "")  # what an import asks next, to remember the refusal
    assert len(parses) == 1
