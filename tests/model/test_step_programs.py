"""Steps of few tokens on CPU are one call of recorded code, with the bits of the compiled layers."""

from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest
import torch
import transformers

from hotslot.contract.generation import Sampling
from tests.model.tiny_worker import apart, decoded, load_tiny
from tests.support.tiny_models import SIZES, Architecture, make_adapter, save_model
from worker_service.engine.messages import Segment
from worker_service.model.int8_checks import INT8
from worker_service.model.runner import TorchRunner
from worker_service.model.step_programs import StepPrograms

LLAMA = Architecture(transformers.LlamaConfig, {**SIZES, "head_dim": 16})
TOKENS = 4


@pytest.fixture(scope="module", params=["full", INT8])
def runner(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TorchRunner]:
    """Compiled, with an adapter in each of three slots, with weights in either form."""
    folder = Path(tmp_path_factory.mktemp("programs"))
    base = save_model(folder / "base", LLAMA, 0, tie_word_embeddings=False)
    with apart():
        loaded = load_tiny(
            base, dtype="bfloat16", compile=True, token_buckets=(TOKENS,), max_sequences=TOKENS, num_slots=4,
            weights=request.param,
        )  # fmt: skip
        for slot in range(3):
            path = make_adapter(base, folder / f"adapter{slot}", target_modules="all-linear", r=4)
            for _ in loaded.runner.write_slots([slot], decoded(loaded, path)):
                pass
        yield loaded.runner


@pytest.fixture
def programs(runner: TorchRunner) -> StepPrograms:
    assert runner.programs is not None
    return runner.programs


def rows(random: Random, with_adapters: bool) -> list[Segment]:
    def gates() -> tuple[tuple[int, float], ...]:
        chosen = random.sample(range(3), random.randrange(3)) if with_adapters else []
        return tuple((slot, random.choice([1.0, 0.5, -2.0])) for slot in chosen)

    return [
        Segment((random.randrange(60),), random.randrange(3), (row,), gates(), Sampling())
        for row in range(random.randrange(1, TOKENS + 1))
    ]


def test_each_kind_of_step_is_recorded(programs: StepPrograms) -> None:
    assert programs.num_recorded == 2, "with adapters and without"


@pytest.mark.parametrize("with_adapters", [False, True])
def test_steps_have_the_bits_of_the_compiled_layers(
    runner: TorchRunner, programs: StepPrograms, with_adapters: bool
) -> None:
    random = Random(3)
    answers = []
    for _ in range(20):
        segments = rows(random, with_adapters)
        with programs.set_aside():
            expected_RV = runner.logits(segments)[: len(segments)].clone()
        found_RV = runner.logits(segments)[: len(segments)]
        assert torch.equal(found_RV, expected_RV)
        answers.append(found_RV[0].clone())
    assert not all(torch.equal(answer, answers[0]) for answer in answers), "steps differ"


def test_a_prompt_is_one_call_too(runner: TorchRunner, programs: StepPrograms) -> None:
    prompt = [Segment((5, 9, 2), 0, (2,), ((1, 1.0),), Sampling())]
    with programs.set_aside():
        expected_RV = runner.logits(prompt)[:1].clone()
    assert torch.equal(runner.logits(prompt)[:1], expected_RV)
