"""Names of adapters as pickers know them: every spelling of what stands for a version now, and of nothing else."""

from dataclasses import dataclass, replace
from typing import Any, cast

from hotslot.formats.manifest import AdapterModule, Manifest
from hotslot.ids import DEFAULT_TENANT, Digest, TenantId, digest_of
from hotslot.references import Reference, parse_reference
from worker_service.adapters.holding import Holding
from worker_service.adapters.version import AdapterVersion
from worker_service.metrics import current_names


@dataclass
class KnownReferences:
    """What each reference stands for."""

    versions: dict[tuple[TenantId, Reference], AdapterVersion]

    def peek(self, tenant: TenantId, reference: Reference) -> AdapterVersion | None:
        return self.versions.get((tenant, reference))


MANIFEST = Manifest(digest_of(b"base"), digest_of(b"w"), 100, "F32", (AdapterModule("q_proj", 8, 2.0),))


def version(name: str) -> AdapterVersion:
    return AdapterVersion(DEFAULT_TENANT, parse_reference(name), MANIFEST.digest, MANIFEST)


def parts(*versions: AdapterVersion) -> Any:
    """The parts of a worker, as far as names go."""
    provider = type("Provider", (), {"references": KnownReferences({(v.tenant, v.reference): v for v in versions})})
    return cast(Any, type("Parts", (), {"provider": provider}))


def used(*versions: AdapterVersion) -> Holding:
    holding = Holding(versions[0].digest)
    for number, each in enumerate(versions):
        holding.note(each, float(number))
    return holding


def test_a_version_has_every_spelling_of_the_references_that_stand_for_it() -> None:
    plain = version("bot")
    tagged = replace(plain, reference=parse_reference("bot:v1"))
    assert set(current_names(parts(plain, tagged), used(plain, tagged))) == {"bot", "bot:latest", "bot:v1"}


def test_a_name_that_moved_on_is_none_of_the_version_that_it_left() -> None:
    old = version("bot")
    new = replace(old, digest=Digest("sha256:" + "9" * 64))
    pinned = replace(old, reference=parse_reference("bot:v1"))
    assert set(current_names(parts(new, pinned), used(old, pinned))) == {"bot:v1"}
    assert set(current_names(parts(new), used(new))) == {"bot", "bot:latest"}


def test_names_of_all_tenants_count() -> None:
    ours, theirs = version("bot"), replace(version("helper"), tenant=TenantId("other"))
    theirs = replace(theirs, digest=ours.digest)
    assert ours.tenant == DEFAULT_TENANT
    assert {"bot", "helper"} <= set(current_names(parts(ours, theirs), used(ours, theirs)))
