"""What of a row's logits depends on the batch: nothing in steps of few tokens, rounding alone in others."""

from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest
import torch
import transformers

from hotslot.contract.generation import Sampling
from tests.model.tiny_worker import apart, load_tiny
from tests.support.tiny_models import SIZES, Architecture, save_model
from worker_service.engine.messages import Segment
from worker_service.model.runner import TorchRunner

BLOCKS = 7
"""Of 16 tokens each, for every sequence."""
LLAMA = Architecture(transformers.LlamaConfig, {**SIZES, "max_position_embeddings": 256})
ROUNDING = {"float32": 1e-5, "bfloat16": 0.1}


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def dtype(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def runner(dtype: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TorchRunner]:
    base = save_model(Path(tmp_path_factory.mktemp("base")) / "m", LLAMA, 0, tie_word_embeddings=False)
    with apart():
        yield load_tiny(
            base, dtype=dtype, kv_tokens=2048, block_tokens=16, max_sequence_tokens=200,
            token_buckets=(1, 4, 8, 32, 128), cpu_kernels=True,
        ).runner  # fmt: skip


def tokens(random: Random, count: int) -> tuple[int, ...]:
    return tuple(random.randrange(3, 60) for _ in range(count))


def segment(token_ids: tuple[int, ...], start: int, sequence: int) -> Segment:
    table = tuple(range(sequence * BLOCKS, (sequence + 1) * BLOCKS))
    return Segment(token_ids, start, table, (), Sampling())


def logits(runner: TorchRunner, *segments: Segment) -> torch.Tensor:
    """Of the first one's row, `[V]`."""
    return runner.logits(segments)[0].float().clone()


def test_a_decoding_row_has_the_same_bits_in_every_step_of_few_tokens(runner: TorchRunner) -> None:
    random = Random(1)
    for sequence in range(8):
        logits(runner, segment(tokens(random, 20), 0, sequence))
    rows = [segment(tokens(random, 1), 20, sequence) for sequence in range(8)]
    alone = logits(runner, rows[0])
    for count in range(2, 9):
        assert torch.equal(logits(runner, *rows[:count]), alone)
    for length in (3, 7):
        assert torch.equal(logits(runner, rows[0], segment(tokens(random, length), 0, 7)), alone)


def test_steps_of_more_tokens_and_pieces_of_prompts_change_no_more_than_rounding(
    runner: TorchRunner, dtype: str
) -> None:
    random = Random(3)
    prompt = tokens(random, 20)
    whole = logits(runner, segment(prompt, 0, 0))
    row = segment(tokens(random, 1), 20, 0)
    alone = logits(runner, row)
    for length in (15, 31, 100):
        beside = logits(runner, row, segment(tokens(random, length), 0, 7))
        torch.testing.assert_close(beside, alone, atol=ROUNDING[dtype], rtol=0)
        beside = logits(runner, segment(prompt, 0, 0), segment(tokens(random, length), 0, 7))
        torch.testing.assert_close(beside, whole, atol=ROUNDING[dtype], rtol=0)
    for cut in (4, 8, 16):
        logits(runner, segment(prompt[:cut], 0, 1))
        pieces = logits(runner, segment(prompt[cut:], cut, 1))
        torch.testing.assert_close(pieces, whole, atol=ROUNDING[dtype], rtol=0)
