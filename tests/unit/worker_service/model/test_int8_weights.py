"""Weights in 8 bits stand for the nearest values that they can, and the kernel computes with exactly those."""

import pytest
import torch
from torch import nn

from worker_service.demo_model import default_cache_dir
from worker_service.model import int8_weights
from worker_service.model.cpu import library
from worker_service.model.int8_weights import LARGEST, Int8Embedding, Int8Weight

TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 1e-2}


@pytest.fixture(scope="module", autouse=True)
def kernels() -> None:
    assert library.load_kernels(default_cache_dir()), "this machine has a C++ compiler"


def random(*shape: int, seed: int = 3) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_every_weight_is_the_nearest_step_of_its_row() -> None:
    weight_OI = random(40, 64) * torch.logspace(-6, 3, 40)[:, None]
    found = Int8Weight.of(weight_OI)
    errors_OI = (found.values(torch.float32) - weight_OI).abs()
    assert bool((errors_OI <= 0.5001 * found.scale_O[:, None]).all())
    assert found.q_OI.abs().amax(1).tolist() == [LARGEST] * 40


def test_rounding_again_changes_nothing() -> None:
    once = Int8Weight.of(random(30, 50))
    again = Int8Weight.of(once.values(torch.float32))
    assert torch.equal(again.q_OI, once.q_OI)
    torch.testing.assert_close(again.scale_O, once.scale_O)


def test_a_row_of_zeros_stays_one() -> None:
    found = Int8Weight.of(torch.zeros(2, 8))
    assert torch.equal(found.values(torch.bfloat16), torch.zeros(2, 8, dtype=torch.bfloat16))


def test_large_matrices_are_rounded_by_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Int8Weight.of(random(33, 16))
    monkeypatch.setattr(int8_weights, "PIECE_ELEMENTS", 100)
    pieces = Int8Weight.of(random(33, 16))
    assert torch.equal(whole.q_OI, pieces.q_OI)
    assert torch.equal(whole.values(torch.float32), pieces.values(torch.float32))


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("num_tokens", [1, 2, 3, 5, 8, 13, 17, 45])
@pytest.mark.parametrize(("num_in", "num_out"), [(576, 192), (64, 50), (37, 61), (1, 1)])
def test_the_kernel_is_the_matrix_product_with_the_values(
    dtype: torch.dtype, num_tokens: int, num_in: int, num_out: int
) -> None:
    x, bias = random(num_tokens, num_in, seed=4).to(dtype), random(num_out, seed=5).to(dtype)
    weight = Int8Weight.of(random(num_out, num_in).to(dtype))
    plain = x.double() @ (weight.q_OI.double() * weight.scale_O.double()[:, None]).T
    for found, expected in (
        (torch.ops.hotslot_cpu.linear_int8(x, weight.q_OI, weight.scale_O, None), plain),
        (torch.ops.hotslot_cpu.linear_int8(x, weight.q_OI, weight.scale_O, bias), plain + bias.double()),
    ):
        assert found.dtype == dtype
        assert float((found.double() - expected).abs().max() / expected.abs().max()) <= TOLERANCES[dtype]


def test_a_row_has_the_same_bits_whatever_stands_beside_it() -> None:
    x, weight = random(23, 576).bfloat16(), Int8Weight.of(random(200, 576, seed=9))

    def product(rows: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = torch.ops.hotslot_cpu.linear_int8(rows, weight.q_OI, weight.scale_O, None)
        return found

    alone = torch.cat([product(x[row : row + 1]) for row in range(len(x))])
    for count in (2, 3, 7, 8, 16, 23):
        assert torch.equal(product(x[:count]), alone[:count])


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("num_tokens", [1, 4, 19])
def test_slots_are_added_to_the_product_with_the_values(dtype: torch.dtype, num_tokens: int) -> None:
    num_in, num_out, rank = 96, 112, 4
    x, bias = random(num_tokens, num_in, seed=4).to(dtype), random(num_out, seed=5).to(dtype)
    weight = Int8Weight.of(random(num_out, num_in).to(dtype))
    a_CI, b_CO = random(2 * rank, num_in, seed=6).to(dtype), random(2 * rank, num_out, seed=7).to(dtype)
    gates_TS, scale_S, one_SK = torch.zeros(num_tokens, 2), torch.tensor([0.5, 2.0]), torch.zeros(2, rank)
    gates_TS[::2, 1] = 1.0
    slots = (a_CI, b_CO, scale_S, one_SK, gates_TS)
    found = torch.ops.hotslot_cpu.slot_linear_int8(x, weight.q_OI, weight.scale_O, bias, *slots)
    full_OI = weight.q_OI.double() * weight.scale_O.double()[:, None]
    h_TC = (x.double() @ a_CI.double().T) * (gates_TS * scale_S).repeat_interleave(rank, 1)
    expected = x.double() @ full_OI.T + bias.double() + h_TC @ b_CO.double()
    assert float((found.double() - expected).abs().max() / expected.abs().max()) <= TOLERANCES[dtype]
    base = torch.ops.hotslot_cpu.linear_int8(x, weight.q_OI, weight.scale_O, bias)
    assert torch.equal(found[1::2], base[1::2]), "rows that have no slot on"
    assert not torch.equal(found[::2], base[::2])


def test_inputs_that_do_not_fit_are_refused() -> None:
    x, weight = random(2, 32), Int8Weight.of(random(8, 32))
    for wrong in (
        (x, weight.q_OI[:, :16], weight.scale_O, None),
        (x, weight.q_OI, weight.scale_O[:4], None),
        (x, weight.q_OI.float(), weight.scale_O, None),
        (x.half(), weight.q_OI, weight.scale_O, None),
        (x, weight.q_OI, weight.scale_O, random(8).bfloat16()),
    ):
        with pytest.raises(RuntimeError, match="hotslot_cpu"):
            torch.ops.hotslot_cpu.linear_int8(*wrong)


class ScaledEmbedding(nn.Embedding):
    """As Gemma's: what was looked up is multiplied."""

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        return super().forward(input_ids) * 3.0


@pytest.mark.parametrize(("kind", "factor"), [(nn.Embedding, 1.0), (ScaledEmbedding, 3.0)])
def test_an_embedding_reads_rows_and_does_what_it_did(kind: type[nn.Embedding], factor: float) -> None:
    embedding = kind(20, 8, padding_idx=0).bfloat16()
    weight = Int8Weight.of(embedding.weight.detach())
    ids = torch.tensor([[3, 19, 3, 0]])
    found = Int8Embedding(embedding, weight)(ids)
    assert torch.equal(found, weight.values(torch.bfloat16)[ids] * factor)
    assert embedding.weight.numel() == 0
