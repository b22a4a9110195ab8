"""Warnings for versions that no live worker could serve say what the workers themselves would, and what to set."""

import re
from dataclasses import replace

import torch
from hypothesis import given
from hypothesis import strategies as st

from hotslot.errors import InvalidAdapterError
from hotslot.formats.manifest import AdapterModule, Manifest
from hotslot.ids import WorkerId, digest_of
from shared.fleet.records import WorkerInfo
from store_service.placement.serving import RANK, TARGET, not_served
from worker_service.model.weights import SlotLayout, SlotWeightsDecoder

BASE = digest_of(b"base")
PATHS = {
    "q_proj": "model.layers.0.self_attn.q_proj",
    "v_proj": "model.layers.0.self_attn.v_proj",
    "down_proj": "model.layers.0.mlp.down_proj",
    "embed_tokens": "model.embed_tokens",
    "lm_head": "lm_head",
}
INSIDE = ("q_proj", "v_proj", "down_proj")
NAMES = st.sets(st.sampled_from(sorted(PATHS)), min_size=1)


def worker(max_rank: int, num_slots: int, slot_rank: int, names: set[str]) -> WorkerInfo:
    target_modules = ",".join(sorted(names))
    return WorkerInfo(
        WorkerId("w"), "w:1", BASE, "org/m", "float32", slot_rank, 0.0, 1, num_slots, max_rank, 64, target_modules
    )


def accepts(worker: WorkerInfo, manifest: Manifest) -> bool:
    """The word of the worker's own check."""
    layout = SlotLayout(
        base_model_digest=BASE,
        shapes={PATHS[name]: (8, 8) for name in worker.target_modules.split(",")},
        max_rank=worker.max_rank,
        total_ranks=worker.num_slots * worker.slot_rank,
        target_modules=(),
        dtype=torch.float32,
    )
    try:
        SlotWeightsDecoder(layout).check(manifest)
    except InvalidAdapterError:
        return False
    return True


WORKERS = st.builds(worker, st.integers(1, 40), st.integers(1, 4), st.integers(1, 16), NAMES).filter(
    lambda it: it.max_rank <= it.num_slots * it.slot_rank
)
MANIFESTS = st.builds(
    lambda names, rank, has_bias: Manifest(
        BASE, digest_of(b"w"), 1, "F32", tuple(AdapterModule(PATHS[n], rank, 1.0, has_bias) for n in sorted(names))
    ),
    NAMES,
    st.integers(1, 64),
    st.booleans(),
)


@given(st.lists(WORKERS, min_size=1, max_size=4), MANIFESTS)
def test_there_are_warnings_exactly_where_every_worker_would_refuse(
    workers: list[WorkerInfo], manifest: Manifest
) -> None:
    assert bool(not_served(manifest, workers)) == (not any(accepts(worker, manifest) for worker in workers))


@given(WORKERS, MANIFESTS)
def test_a_worker_with_the_settings_that_are_named_serves_it(found: WorkerInfo, manifest: Manifest) -> None:
    for warning in not_served(manifest, [found]):
        settings = dict(re.findall(r"HOTSLOT_(\w+)=([\w,-]+)", warning.message))
        names = settings.get("TARGET_MODULES", "")
        if names:
            served = {name for word in names.split(",") for name in (INSIDE if word == "all-linear" else (word,))}
            found = replace(found, target_modules=",".join(sorted(served)))
        found = replace(
            found,
            max_rank=int(settings.get("MAX_RANK", found.max_rank)),
            num_slots=int(settings.get("NUM_SLOTS", found.num_slots)),
        )
    assert accepts(found, manifest)
    assert not_served(manifest, [found]) == ()


def test_workers_that_are_loading_or_of_an_older_version_are_not_held_against_it() -> None:
    manifest = Manifest(BASE, digest_of(b"w"), 1, "F32", (AdapterModule("lm_head", 32, 1.0),))
    assert not_served(manifest, []) == ()
    assert not_served(manifest, [worker(0, 0, 16, set())]) == ()
    older = worker(16, 4, 16, set())
    assert [warning.code for warning in not_served(manifest, [older])] == [RANK]
    assert [warning.code for warning in not_served(manifest, [worker(16, 4, 16, {"q_proj"})])] == [RANK, TARGET]
