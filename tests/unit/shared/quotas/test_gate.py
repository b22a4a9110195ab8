"""The gate: calls are charged once, those that run are counted, and no caller marks its way past."""

import pytest

from hotslot.contract.quotas import QuotaKind
from hotslot.errors import TenantQuotaError
from hotslot.formats.principals import CLIENT_SCOPES, Scope
from hotslot.ids import TenantId
from shared.identity.callers import Caller
from shared.quotas.gate import QuotaGate, held_kind
from shared.quotas.limits import TenantLimits
from shared.quotas.rates import Rates
from shared.server.counters import MEANINGS, QUOTA_REFUSALS, Counters
from tests.unit.shared.identity.test_matrix import METHODS, name_of, path_of

ACME = TenantId("acme")
SET_TAG = "/hotslot.store.v1.AdapterStoreService/SetTag"
WRITE = "/hotslot.store.v1.BlobService/WriteBlob"


def gate(**limits: int) -> QuotaGate:
    found = TenantLimits({QuotaKind(kind): limit for kind, limit in limits.items()})
    return QuotaGate(found, Rates(found, clock=lambda: 0.0), Counters())


def caller(*scopes: Scope, via: str = "") -> Caller:
    return Caller("alice", ACME, frozenset(scopes), frozenset({"acme"}), via)


async def enter(it: QuotaGate, who: Caller | None, *keys: str, method: str = SET_TAG) -> QuotaKind | None:
    kind = held_kind(method, is_stream=method == WRITE)
    return await it.enter(method, ACME, who, [(key, "x") for key in keys], kind)


def test_every_rpc_with_a_stream_is_counted_while_it_runs() -> None:
    counted = {
        name_of(method): held_kind(path_of(method), is_stream=method.client_streaming or method.server_streaming)
        for method in METHODS
    }
    uploads = {name for name, kind in counted.items() if kind is QuotaKind.UPLOADS}
    assert uploads == {"BlobService.WriteBlob", "AdapterStoreService.PublishVersion"}
    streams = {name for name, kind in counted.items() if kind is QuotaKind.STREAMS}
    expected = {name_of(method) for method in METHODS if method.client_streaming or method.server_streaming}
    assert streams == (expected - uploads) | {"InferenceService.Complete"}


@pytest.mark.parametrize(
    ("who", "keys", "is_charged"),
    [
        (None, [], True),
        (None, ["hotslot-charged"], False),
        (None, ["hotslot-forwarded-by"], False),
        (caller(*CLIENT_SCOPES), [], True),
        # Marks of services say nothing in the mouth of a client.
        (caller(*CLIENT_SCOPES), ["hotslot-charged", "hotslot-forwarded-by"], True),
        (caller(*CLIENT_SCOPES, via="gate"), [], True),
        (caller(*CLIENT_SCOPES, via="gate"), ["hotslot-charged"], False),
        (caller(*CLIENT_SCOPES, via="gate"), ["hotslot-forwarded-by"], True),
        (caller(Scope.WORKER), [], False),
    ],
)
async def test_a_call_is_charged_where_its_caller_came_in(
    who: Caller | None, keys: list[str], is_charged: bool
) -> None:
    it = gate(requests_per_minute=1)
    await enter(it, who, *keys)
    if is_charged:
        with pytest.raises(TenantQuotaError):
            await enter(it, who, *keys)
        assert it.counters.snapshot() == {(QUOTA_REFUSALS, "requests_per_minute"): 1}
    else:
        await enter(it, who, *keys)
    # What is left can always be looked at.
    await enter(it, who, *keys, method="/hotslot.store.v1.AdapterStoreService/GetQuota")


async def test_calls_that_run_are_counted_and_a_refused_one_holds_nothing() -> None:
    it = gate(uploads=2)
    held = [await enter(it, None, method=WRITE) for _ in range(2)]
    with pytest.raises(TenantQuotaError):
        await enter(it, None, method=WRITE)
    with pytest.raises(TenantQuotaError) as refused:
        await enter(it, None, method=WRITE)
    assert (refused.value.limit, refused.value.used, refused.value.retry_after_s) == (2, 2, 0.5)
    await enter(it, None)
    assert it.held("acme", QuotaKind.UPLOADS) == 2
    it.leave("acme", held[0])
    await enter(it, None, method=WRITE)
    it.leave("acme", None)
    assert it.held("acme", QuotaKind.UPLOADS) == 2
    assert await enter(it, caller(Scope.WORKER), method=WRITE) is None


def test_a_counter_without_a_meaning_is_a_bug() -> None:
    with pytest.raises(AssertionError):
        Counters().add("something", "x")
    assert QUOTA_REFUSALS in MEANINGS
