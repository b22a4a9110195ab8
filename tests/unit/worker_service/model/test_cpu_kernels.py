"""The CPU kernels compute what torch's operators compute, and the same bits whatever stands beside a row."""

import platform
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from worker_service.model import attention  # noqa: F401  (registers hotslot::attend)
from worker_service.model.cpu import library

SLOTS, SLOT_RANK = 4, 16
TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 1e-2}

Random = Callable[..., torch.Tensor]


@pytest.fixture(scope="session", autouse=True)
def kernels(tmp_path_factory: pytest.TempPathFactory) -> None:
    from worker_service.demo_model import default_cache_dir

    assert library.load_kernels(default_cache_dir()), "this machine has a C++ compiler"


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    found: torch.dtype = request.param
    return found


@pytest.fixture
def random(dtype: torch.dtype) -> Random:
    generator = torch.Generator().manual_seed(7)
    return lambda *shape: torch.randn(shape, generator=generator).to(dtype)


def close(found: torch.Tensor, expected: torch.Tensor, dtype: torch.dtype) -> bool:
    error = (found.double() - expected.double()).abs().max() / expected.double().abs().max().clamp_min(1e-9)
    return bool(error <= TOLERANCES[dtype])


@pytest.mark.parametrize("num_tokens", [1, 2, 3, 5, 7, 8, 13, 16, 17, 45])
@pytest.mark.parametrize(("num_in", "num_out"), [(576, 192), (64, 50), (37, 61), (1, 1)])
def test_linear_is_the_matrix_product(
    random: Random, dtype: torch.dtype, num_tokens: int, num_in: int, num_out: int
) -> None:
    x, weight, bias = random(num_tokens, num_in), random(num_out, num_in), random(num_out)
    plain = x.double() @ weight.double().T
    assert close(torch.ops.hotslot_cpu.linear(x, weight, None), plain, dtype)
    assert close(torch.ops.hotslot_cpu.linear(x, weight, bias), plain + bias.double(), dtype)


def slot_linear_inputs(
    random: Random, num_tokens: int, num_in: int = 96, num_out: int = 112, slot_rank: int = SLOT_RANK
) -> list[torch.Tensor]:
    columns = SLOTS * slot_rank
    ones = torch.zeros(SLOTS, slot_rank)
    ones[1, -1] = 1.0  # one rank of one slot is a bias
    return [
        random(num_tokens, num_in), random(num_out, num_in), random(num_out), random(columns, num_in),
        random(columns, num_out), torch.tensor([0.5, 1.0, 2.0, 0.25]), ones,
    ]  # fmt: skip


def mixed_gates(num_tokens: int) -> torch.Tensor:
    """Rows without adapters, with one, and with a mix."""
    gates = torch.zeros(num_tokens, SLOTS)
    for token in range(num_tokens):
        if token % 3:
            gates[token, token % SLOTS] = 1.0
        if token % 5 == 4:
            gates[token, (token + 1) % SLOTS] = -0.7
    return gates


@pytest.mark.parametrize(("num_out", "slot_rank"), [(112, 16), (50, 8), (61, 1), (32, 5)])
@pytest.mark.parametrize("num_tokens", [1, 4, 8, 11, 16, 70])
def test_slot_linear_adds_the_slots_that_are_on(
    random: Random, dtype: torch.dtype, num_tokens: int, num_out: int, slot_rank: int
) -> None:
    x, weight, bias, a, b, scale, one = slot_linear_inputs(random, num_tokens, 96, num_out, slot_rank)
    gates = mixed_gates(num_tokens)
    h = ((x.double() @ a.double().T).view(num_tokens, SLOTS, slot_rank) + one) * (gates * scale)[:, :, None].double()
    expected = x.double() @ weight.double().T + bias.double() + h.flatten(1) @ b.double()
    found = torch.ops.hotslot_cpu.slot_linear(x, weight, bias, a, b, scale, one, gates)
    assert close(found, expected, dtype)
    base = torch.ops.hotslot_cpu.linear(x, weight, bias)
    kept = base.clone()
    assert close(torch.ops.hotslot_cpu.add_slots(x, base, a, b, scale, one, gates), expected, dtype)
    assert torch.equal(base, kept), "the base's result is not written to"


def test_a_slot_full_of_nan_changes_no_bit_of_the_rows_that_do_not_use_it(random: Random) -> None:
    x, weight, bias, a, b, scale, one = slot_linear_inputs(random, 12)
    gates = mixed_gates(12)
    gates[:, 2] = 0.0
    clean = torch.ops.hotslot_cpu.slot_linear(x, weight, bias, a, b, scale, one, gates)
    users = [3, 9]
    for poison in (torch.nan, torch.inf, 1e38):
        a[2 * SLOT_RANK : 3 * SLOT_RANK] = poison
        b[2 * SLOT_RANK : 3 * SLOT_RANK] = poison
        gates[users, 2] = 1.0
        poisoned = torch.ops.hotslot_cpu.slot_linear(x, weight, bias, a, b, scale, one, gates)
        others = [row for row in range(12) if row not in users]
        assert torch.equal(poisoned[others], clean[others])
        assert not torch.equal(poisoned[users], clean[users])


@pytest.mark.parametrize(("num_in", "num_out", "slot_rank"), [(96, 112, 16), (576, 192, 16), (37, 61, 5)])
def test_a_row_has_the_same_bits_alone_and_in_any_batch(
    random: Random, num_in: int, num_out: int, slot_rank: int
) -> None:
    x, weight, bias, a, b, scale, one = slot_linear_inputs(random, 40, num_in, num_out, slot_rank)
    gates = mixed_gates(40)
    batch = torch.ops.hotslot_cpu.slot_linear(x, weight, bias, a, b, scale, one, gates)
    for row in range(40):
        alone = torch.ops.hotslot_cpu.slot_linear(
            x[row : row + 1], weight, bias, a, b, scale, one, gates[row : row + 1]
        )
        assert torch.equal(alone[0], batch[row])
    for count in range(2, 18):
        some = torch.ops.hotslot_cpu.slot_linear(x[:count], weight, bias, a, b, scale, one, gates[:count])
        assert torch.equal(some, batch[:count])
    base_only = torch.ops.hotslot_cpu.linear(x, weight, bias)
    assert torch.equal(base_only[0], batch[0]), "a row without adapters is computed as if there were none"


def test_rounding_to_bfloat16_is_torchs_with_infinities_and_nan() -> None:
    values = torch.cat([
        torch.randn(997, generator=torch.Generator().manual_seed(5)) * 10.0 ** torch.arange(-38, 39).repeat(13)[:997],
        torch.tensor([0.0, -0.0, torch.inf, -torch.inf, torch.nan, 3.4028235e38, 1.0 + 2**-8, 1.0 + 3 * 2**-8, 1e-40]),
    ])  # fmt: skip
    size = values.shape[0]
    one_hot = torch.zeros(1, size, dtype=torch.bfloat16)
    one_hot[0, 0] = 1.0
    parts = [values.bfloat16(), (values - values.bfloat16().float()).bfloat16()]
    if library._multiplies_bf16():  # such instructions take what is below the smallest normal number for 0
        parts[0][parts[0].abs() < torch.finfo(torch.bfloat16).tiny] = 0.0
    weight = torch.zeros(size, size, dtype=torch.bfloat16)
    weight[:, 0] = parts[0]
    found = torch.ops.hotslot_cpu.linear(one_hot, weight, parts[1])[0]
    torch.testing.assert_close(found, (parts[0].float() + parts[1].float()).bfloat16(), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("softcap", [0.0, 3.0])
@pytest.mark.parametrize("window", [0, 50])
@pytest.mark.parametrize(("num_heads", "num_kv_heads", "head_size"), [(9, 3, 64), (4, 4, 16), (8, 1, 80)])
def test_attention_equals_the_operators_on_contiguous_and_scattered_blocks(
    random: Random, dtype: torch.dtype, softcap: float, window: int, num_heads: int, num_kv_heads: int, head_size: int
) -> None:
    block_tokens, num_positions = 16, 4096
    lengths = [1, 16, 17, 33, 90, 200, 130]
    counts = [1, 1, 2, 1, 8, 1, 70]
    num_tokens = sum(counts) + 2  # two tokens are padding
    caches = [random(num_positions, num_kv_heads, head_size) for _ in range(2)]
    q = random(num_tokens, num_heads, head_size)
    k, v = random(num_tokens, num_kv_heads, head_size), random(num_tokens, num_kv_heads, head_size)
    segments = torch.zeros(len(lengths) + 1, 4, dtype=torch.int64)
    tables = torch.zeros(len(lengths) + 1, 16, dtype=torch.int32)
    positions = torch.full((num_tokens,), num_positions - 1)
    shuffled = torch.randperm(200, generator=torch.Generator().manual_seed(3))
    first = 0
    for row, (length, count) in enumerate(zip(lengths, counts, strict=True)):
        num_blocks = -(-length // block_tokens)
        scattered = bool(row % 2)
        blocks = shuffled[row * 16 :][:num_blocks] if scattered else torch.arange(row * 16, row * 16 + num_blocks)
        if not scattered:
            blocks = blocks + 150
        tables[row, :num_blocks] = blocks.int()
        start = -1 if scattered else int(blocks[0]) * block_tokens
        segments[row] = torch.tensor([first, count, length, start])
        for token in range(count):
            position = length - count + token
            positions[first + token] = blocks[position // block_tokens] * block_tokens + position % block_tokens
        first += count

    def attend(kernel_tokens: int) -> list[torch.Tensor]:
        k_cache, v_cache = (cache.clone() for cache in caches)
        out = torch.ops.hotslot.attend(
            q, k, v, k_cache, v_cache, positions, segments, tables, block_tokens, head_size**-0.5, window,
            kernel_tokens, softcap,
        )  # fmt: skip
        return [out, k_cache, v_cache]

    expected = attend(0)
    for kernel_tokens in (200, 8, 2):  # longer segments take the other way
        found = attend(kernel_tokens)
        assert close(found[0], expected[0], dtype)
        assert torch.equal(found[1], expected[1])
        assert torch.equal(found[2], expected[2])
        assert not found[0][-2:].any(), "padding gets zeros"


def test_a_tokens_attention_has_the_same_bits_in_pieces_of_any_size(random: Random, dtype: torch.dtype) -> None:
    num_keys, window, block_tokens = 150, 67, 16
    blocks = torch.randperm(12, generator=torch.Generator().manual_seed(4))[:10]
    places = torch.tensor([int(blocks[j // block_tokens]) * block_tokens + j % block_tokens for j in range(num_keys)])
    q, k, v = random(num_keys, 6, 32), random(num_keys, 2, 32), random(num_keys, 2, 32)
    tables = torch.zeros(2, 10, dtype=torch.int32)
    tables[0] = blocks.int()

    def attend(sizes: list[int]) -> torch.Tensor:
        caches = [torch.full((256, 2, 32), torch.nan, dtype=dtype) for _ in range(2)]
        outs, first = [], 0
        for size in sizes:
            here = slice(first, first + size)
            segments = torch.tensor([[0, size, first + size, -1], [0, 0, 0, 0]])
            outs.append(torch.ops.hotslot.attend(
                q[here], k[here], v[here], *caches, places[here], segments, tables, block_tokens, 0.2, window, 200
            ))  # fmt: skip
            first += size
        return torch.cat(outs)

    whole = attend([num_keys])
    assert not whole.isnan().any(), "what is not written yet is not read"
    for sizes in ([1] * num_keys, [70, 80], [3, 8, 64, 75]):
        assert torch.equal(attend(sizes), whole)


@pytest.mark.parametrize("window", [0, 21])
@pytest.mark.parametrize(("num_heads", "num_kv_heads"), [(9, 3), (4, 4), (10, 2)])
def test_a_decoding_rows_attention_has_the_same_bits_alone_and_beside_rows_that_are_read_together(
    random: Random, dtype: torch.dtype, num_heads: int, num_kv_heads: int, window: int
) -> None:
    """From two rows a thread on, all key heads of a row are one piece of work; a row alone is split by key heads."""
    lengths = (150, 1, 16, 33)
    caches = [random(640, num_kv_heads, 48) for _ in range(2)]
    q, k, v = (random(len(lengths), heads, 48) for heads in (num_heads, num_kv_heads, num_kv_heads))
    tables = torch.randperm(40, generator=torch.Generator().manual_seed(5)).view(4, 10).int()
    segments = torch.tensor([[row, 1, length, -1] for row, length in enumerate(lengths)])
    at = [int(tables[row, (length - 1) // 16]) * 16 + (length - 1) % 16 for row, length in enumerate(lengths)]

    def attend(rows: list[int]) -> torch.Tensor:
        those = segments[rows].clone()
        those[:, 0] = torch.arange(len(rows))
        out: torch.Tensor = torch.ops.hotslot.attend(
            q[rows], k[rows], v[rows], *(cache.clone() for cache in caches), torch.tensor(at)[rows], those,
            tables[rows], 16, 0.2, window, 8,
        )  # fmt: skip
        return out

    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        together = attend([0, 1, 2, 3])
        for row in range(len(lengths)):
            assert torch.equal(attend([row])[0], together[row])
    finally:
        torch.set_num_threads(num_threads)


def test_attention_of_very_unequal_scores_stays_finite_and_exact(random: Random, dtype: torch.dtype) -> None:
    k_cache, v_cache = random(64, 1, 16) * 60, random(64, 1, 16)
    q = random(1, 1, 16) * 60
    segments = torch.tensor([[0, 1, 40, 0], [0, 0, 0, 0]])
    arguments = (torch.tensor([39]), segments, torch.zeros(2, 4, dtype=torch.int32), 16, 1.0, 0)
    k, v = k_cache[39:40].clone(), v_cache[39:40].clone()
    expected = torch.ops.hotslot.attend(q, k, v, k_cache, v_cache, *arguments, 0)
    found = torch.ops.hotslot.attend(q, k, v, k_cache, v_cache, *arguments, 8)
    assert close(found, expected, dtype)


@pytest.mark.slow
@pytest.mark.parametrize("flags", [("-DHOTSLOT_LANES=16",), ("-march=x86-64-v2",)], ids=["wide", "narrow"])
def test_vectors_of_other_widths_compute_the_same(tmp_path: Path, flags: tuple[str, ...]) -> None:
    """What AVX-512 machines run in the wide form, and old ones in the narrow one, is run here, though slowly."""
    if platform.machine() != "x86_64":
        flags = flags[:1] if flags[0].startswith("-D") else ()
    ways = "linear or rounding or same_bits or attention"
    code = (
        "import sys, pytest\nfrom worker_service.model.cpu import library\n"
        f"library._FLAGS = (*library._FLAGS, *{flags!r})\n"
        f"sys.exit(pytest.main([{__file__!r}, '-q', '-p', 'no:cacheprovider', '-k', '({ways}) and not widths']))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    assert " passed" in done.stdout


def test_without_a_compiler_the_worker_goes_on_without_kernels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "are_loaded", lambda: False)
    monkeypatch.setattr(library, "cpp_compiler", lambda: "/nowhere/c++")
    assert not library.load_kernels(tmp_path)
    assert not list(tmp_path.iterdir()), "nothing half-built stays"


def test_other_sources_flags_or_compilers_are_another_library(monkeypatch: pytest.MonkeyPatch) -> None:
    first = library._digest("c++")
    assert library._digest("c++") == first
    assert library._digest("clang++") != first
    monkeypatch.setattr(library, "_FLAGS", ("-O1",))
    assert library._digest("c++") != first
