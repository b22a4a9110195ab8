"""A model whose adapters come by a stream of copies has the logits of one that is written slice by slice."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from hotslot.contract.generation import Sampling
from tests.model.tiny_worker import apart, decoded, load_tiny
from tests.support.tiny_models import make_adapter, make_model
from worker_service.engine.messages import Segment
from worker_service.model.cuda.activation import staging_elements
from worker_service.model.slot_embedding import SlotEmbedding
from worker_service.model.slot_linear import SlotLinear
from worker_service.model.stream_writer import StreamWriter
from worker_service.model.streams import SlotReads, StreamEvent
from worker_service.pinned_arena import PinnedArena

MAX_RANK = 16
ADAPTERS = {
    "several slots": {"r": 6, "target_modules": ["q_proj", "down_proj", "lm_head"]},
    "bias that spills": {"r": 4, "target_modules": ["q_proj", "up_proj"], "lora_bias": True},
    "ends": {"r": 4, "target_modules": ["embed_tokens", "lm_head"], "lora_alpha": 1},
    "largest": {"r": MAX_RANK, "target_modules": "all-linear"},
}


class Happened:
    """An event of a stream that runs at once."""

    def query(self) -> bool:
        return True


class AtOnce:
    """A stream that runs what it is given."""

    def give(self, work: Callable[[], None]) -> None:
        work()

    def record_event(self) -> Happened:
        return Happened()

    def wait_event(self, event: StreamEvent) -> None:
        pass


@pytest.fixture
def arena() -> PinnedArena:
    return PinnedArena(2**20, lambda address, size: None)


def test_every_kind_of_adapter_lands_as_it_does_slice_by_slice(tmp_path: Path, arena: PinnedArena) -> None:
    base = make_model(tmp_path / "base", "llama", is_tied=False)
    with apart():
        loaded = load_tiny(base, max_rank=MAX_RANK, target_modules=("all-linear", "embed_tokens", "lm_head"))
        runner, writer = loaded.runner, loaded.runner._writer
        staging = torch.full((staging_elements(writer, MAX_RANK),), torch.nan)
        beside = StreamWriter(writer, SlotReads(AtOnce()), AtOnce(), staging, pins_memory=False)
        loaded.decoder._memory = arena
        for number, (name, arguments) in enumerate(ADAPTERS.items()):
            adapter = decoded(loaded, make_adapter(base, tmp_path / name, seed=number, **arguments))
            assert adapter.stretch_N is not None
            slots = list(range(2, 2 - (-adapter.max_rank // 4)))
            gates = tuple((slot, 1.0) for slot in slots)
            found = []
            for write in (writer.write, beside.write):
                modules: list[SlotLinear | SlotEmbedding] = [
                    *runner.slot_linears.values(),
                    *runner.slot_embeddings.values(),
                ]
                for module in modules:
                    module.a_CI.normal_()
                    module.b_CO.normal_()
                assert not any(list(write(slots, adapter)))
                found.append(runner.logits([Segment((3, 4, 5), 0, (0,), gates, Sampling())])[0].clone())
            assert torch.equal(found[0], found[1]), name
            assert not torch.allclose(found[0], runner.logits([Segment((3, 4, 5), 0, (0,), (), Sampling())])[0])
            del adapter
        assert beside._is_done()
    assert arena.free_bytes == arena.size_bytes
