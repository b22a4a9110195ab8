"""Expressions that are made to take long are refused in time, at admission and over the wire."""

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest

from hotslot.errors import UnsupportedAdapterError
from hotslot.formats.base_spec import BaseSpec
from hotslot.pb.hotslot.store.v1 import adapter_store_pb2 as pb
from store_service.admission.admit import admit, error_class_of
from store_service.admission.settings import AdmissionLimits
from tests.support.checkpoints import Draft, adapter, base_spec
from tests.support.store import open_store

SLOW = "(?:(?:.?){300}(?:[a-z0-9_.]?){300}zz)"
"""RE2 takes about a millisecond of it for one path."""
BASE = base_spec("acme/many", num_layers=600)

BOMBS: dict[str, dict[str, Any]] = {
    "a target": {"target_modules": f"{SLOW}|.*q_proj"},
    "what is excluded": {"exclude_modules": SLOW},
    "rank patterns": {"rank_pattern": {f"{SLOW}{index}": 4 for index in range(200)}},
    "alpha patterns": {"alpha_pattern": {f"{SLOW}{index}": 4 for index in range(200)}},
    "layer patterns": {"layers_to_transform": [1], "layers_pattern": [f"{SLOW}{index}" for index in range(200)]},
}


def bomb(fields: dict[str, Any], base: BaseSpec = BASE) -> Draft:
    draft = adapter(("q_proj",), spec=base, rank=1)
    draft.config |= fields
    return draft


@pytest.mark.parametrize("fields", BOMBS.values(), ids=BOMBS.keys())
def test_expressions_have_a_bounded_time(tmp_path: Path, fields: dict[str, Any]) -> None:
    checkpoint = bomb(fields).write(tmp_path)
    began_s = time.thread_time()
    verdict = admit(checkpoint, BASE, AdmissionLimits(max_match_s=0.3))
    took_s = time.thread_time() - began_s
    assert verdict.manifest is None
    found = [violation for violation in verdict.violations if violation.code == "UNSUPPORTED_PATTERN"]
    assert len(found) == 1, verdict.violations[:5]
    assert "took more than 0.3 s of processor time" in found[0].found + found[0].message
    assert error_class_of(verdict.violations) is UnsupportedAdapterError
    assert took_s < 10, "without the bound it is a minute or more"


def test_an_ordinary_config_with_expressions_is_admitted_for_a_large_base(tmp_path: Path) -> None:
    draft = bomb(
        {"target_modules": r".*\.layers\.\d+\.(self_attn|mlp)\.q_proj", "alpha_pattern": {r"layers\.\d+.*": 4}}
    )
    began_s = time.thread_time()
    verdict = admit(draft.write(tmp_path), BASE, AdmissionLimits())
    assert verdict.manifest is not None, verdict.violations[:3]
    assert time.thread_time() - began_s < 10


@pytest.mark.integration
async def test_a_tenant_whose_configs_take_long_does_not_keep_others_waiting(tmp_path: Path) -> None:
    async with open_store(tmp_path / "data", max_admissions=1) as store:
        await store.register(BASE)
        await store.register()
        hostile = await store.of("hostile").upload(bomb(BOMBS["a target"]))
        honest = await store.of("honest").upload(adapter())
        request = pb.ValidateAdapterRequest(files=hostile, base_model="acme/many")
        bombs = [asyncio.create_task(store.of("hostile").call("ValidateAdapter", request)) for _ in range(6)]
        await asyncio.sleep(0.2)
        answer = await store.of("honest").call("ValidateAdapter", pb.ValidateAdapterRequest(files=honest))
        assert answer.valid
        # Each takes five seconds of processor time: in order, the honest one would have come last.
        assert sum(call.done() for call in bombs) <= 2
        for call in bombs:
            call.cancel()
        await asyncio.gather(*bombs, return_exceptions=True)
        began_s = time.monotonic()
        assert (await store.of("honest").call("ValidateAdapter", pb.ValidateAdapterRequest(files=honest))).valid
        assert time.monotonic() - began_s < 20, "work that nobody waits for goes on"
