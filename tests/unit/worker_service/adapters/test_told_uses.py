"""The store is told of what a worker pins, and of digests in its defaults, each by its digest."""

from hotslot.errors import StoreUnavailableError
from hotslot.ids import TenantId, digest_of
from hotslot.references import Reference, parse_reference
from tests.unit.worker_service.adapters.test_holdings import Weights
from worker_service.adapters.holdings import Holdings
from worker_service.adapters.policy import AdapterDefaults, Selection
from worker_service.adapters.told_uses import ToldUses

ACME = TenantId("acme")
PINNED, NAMED = digest_of(b"pinned"), digest_of(b"named")


def holdings_with_a_pin() -> Holdings:
    holdings = Holdings(1000)
    holdings.commit(holdings.reserve(PINNED, 10), Weights(PINNED, 10))
    holdings.pin((ACME, parse_reference("bot:train")), PINNED)
    return holdings


async def test_pins_and_digests_in_defaults_are_told_and_tags_are_not() -> None:
    told: list[tuple[TenantId, Reference]] = []

    async def resolve(tenant: TenantId, reference: Reference) -> None:
        told.append((tenant, reference))
        raise StoreUnavailableError("away")

    defaults = AdapterDefaults()
    defaults.set_defaults(ACME, tuple(Selection(parse_reference(text)) for text in (f"mix@{NAMED}", "mix:stable")))
    holdings = holdings_with_a_pin()
    uses = ToldUses(resolve, holdings, defaults)
    await uses.tell()
    assert sorted(str(reference) for _, reference in told) == sorted([f"bot@{PINNED}", f"mix@{NAMED}"])
    assert {tenant for tenant, _ in told} == {ACME}
    holdings.unpin((ACME, parse_reference("bot:train")))
    defaults.set_defaults(ACME, ())
    assert uses.kept() == set()
