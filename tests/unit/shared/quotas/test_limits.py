"""Limits of tenants from settings and a file: precedence, refusals, and changes while a process runs."""

import itertools
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hotslot.contract.quotas import QuotaKind
from hotslot.errors import InvalidRequestError
from shared.quotas.limits import KINDS, TenantLimits, parse_quotas

ADAPTERS, BYTES = QuotaKind.ADAPTERS, QuotaKind.BYTES

WRONG = [
    b"",
    b"[]",
    b"null",
    b'{"tenant": {}}',
    b'{"defaults": []}',
    b'{"defaults": {"adapter": 3}}',
    b'{"defaults": {"unspecified": 3}}',
    b'{"defaults": {"adapters": -1}}',
    b'{"defaults": {"adapters": 1.5}}',
    b'{"defaults": {"adapters": true}}',
    b'{"defaults": {"adapters": "3"}}',
    b'{"defaults": {"adapters": 99999999999999999999}}',
    b'{"tenants": []}',
    b'{"tenants": {"acme": 3}}',
    b'{"tenants": {"a b": {}}}',
    b'{"tenants": ' + b"[" * 100_000,
    b"\xff\xfe",
]


def written(path: Path, document: object) -> Path:
    new = path.with_suffix(".new")
    new.write_text(json.dumps(document))
    new.replace(path)
    return path


@pytest.mark.parametrize("data", WRONG)
def test_what_is_no_file_of_quotas_is_refused_by_name(data: bytes) -> None:
    with pytest.raises(InvalidRequestError) as refused:
        parse_quotas(data, "quotas.json")
    assert refused.value.fields[0].field == "quotas.json"


@given(st.binary(max_size=60))
def test_nothing_else_is_raised_for_any_bytes(data: bytes) -> None:
    try:
        parse_quotas(data, "here")
    except InvalidRequestError:
        return


def test_a_tenants_row_goes_before_the_defaults_and_these_before_the_settings(tmp_path: Path) -> None:
    document = {
        "defaults": {"adapters": 5, "versions": None},
        "tenants": {"acme": {"adapters": 9, "bytes": None}, "none": {"adapters": 0}},
    }
    settings = {ADAPTERS: 1, BYTES: 100, QuotaKind.VERSIONS: 7, QuotaKind.STREAMS: 3}
    limits = TenantLimits(settings, written(tmp_path / "quotas.json", document))
    assert limits.of("other") == {ADAPTERS: 5, BYTES: 100, QuotaKind.STREAMS: 3}
    assert limits.of("acme") == {ADAPTERS: 9, QuotaKind.STREAMS: 3}
    assert limits.of("none")[ADAPTERS] == 0
    assert TenantLimits().of("acme") == {}
    assert {kind.value for kind in KINDS} == {kind.value for kind in QuotaKind} - {"unspecified"}


def test_a_changed_file_holds_and_one_that_is_being_written_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(tmp_path / "quotas.json", {"tenants": {"acme": {"adapters": 1}}})
    limits = TenantLimits(path=path)
    monkeypatch.setattr(limits._table._stamps, "_clock", itertools.count(10**9, 10).__next__)
    assert limits.of("acme") == {ADAPTERS: 1}
    path.write_text('{"tenants": {"acme"')
    assert limits.of("acme") == {ADAPTERS: 1}
    written(path, {"tenants": {"acme": {"adapters": 22}}})
    assert limits.of("acme") == {ADAPTERS: 22}
    written(path, {"defaults": {"adapters": 3}})
    assert limits.of("acme") == {ADAPTERS: 3}
    path.unlink()
    assert limits.of("acme") == {ADAPTERS: 3}
