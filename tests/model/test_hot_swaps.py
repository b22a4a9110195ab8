"""What PEFT's own hot-swap tests ask for, asked of a worker: after a swap each adapter answers as if freshly loaded.

The cases are those of PEFT 0.21's `TestHotSwapping` in tests/test_initialization.py and tests/test_gpu_examples.py. Its
adapters on convolutions have no meaning for causal language models.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from hotslot.errors import HotslotError, InvalidAdapterError, RankTooLargeError, UnsupportedAdapterError
from tests.model.architectures import CASES
from tests.model.driver import Driver
from tests.model.exact_adapters import ExactBench, evict, prompt_of
from tests.model.tiny_worker import admitted, apart, decoded, load_tiny
from tests.support.tiny_models import make_adapter

Lora = dict[str, Any]
PROMPT = prompt_of(2)


def lora(*targets: str, r: int, alpha: float | None = None, **others: Any) -> Lora:
    return {"target_modules": list(targets), "r": r, "lora_alpha": r if alpha is None else alpha, **others}


PAIRS: dict[str, tuple[Lora, Lora]] = {
    "ranks 11, 11": (lora("q_proj", "v_proj", r=11), lora("q_proj", "v_proj", r=11)),
    "ranks 7, 13": (lora("q_proj", "v_proj", r=7), lora("q_proj", "v_proj", r=13)),
    "ranks 13, 7": (lora("q_proj", "v_proj", r=13), lora("q_proj", "v_proj", r=7)),
    "alphas 7, 13": (lora("q_proj", r=8, alpha=7), lora("q_proj", r=8, alpha=13)),
    "ranks and alphas": (lora("q_proj", r=13, alpha=7), lora("q_proj", r=7, alpha=13)),
    "keys of the first are missing": (lora("q_proj", "v_proj", r=8), lora("q_proj", r=8)),
    "keys that the first has not": (lora("q_proj", r=8), lora("q_proj", "v_proj", "down_proj", r=8)),
    "nothing in common": (lora("q_proj", r=8), lora("up_proj", r=8)),
    "rank pattern": (
        lora("q_proj", "v_proj", r=10, rank_pattern={"q_proj": 3}),
        lora("q_proj", "v_proj", r=4, rank_pattern={"layers.1.self_attn.v_proj": 12}),
    ),
    "alpha pattern": (
        lora("q_proj", "v_proj", r=8, alpha_pattern={"q_proj": 16}),
        lora("q_proj", "v_proj", r=8, alpha_pattern={"v_proj": 1}),
    ),
    "rslora": (lora("q_proj", r=9, alpha=6, use_rslora=True), lora("q_proj", r=9, alpha=6)),
    "biases": (lora("q_proj", "up_proj", r=4, lora_bias=True), lora("q_proj", "up_proj", r=4)),
    "other layers": (lora("q_proj", r=8, layers_to_transform=[0]), lora("q_proj", r=8, layers_to_transform=[1])),
}


@pytest.fixture(scope="module", params=[False, pytest.param(True, marks=pytest.mark.slow)], ids=["eager", "compiled"])
def bench(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ExactBench]:
    with apart():
        yield ExactBench.make(CASES["llama"].architecture, tmp_path_factory.mktemp("llama"), compile=request.param)


def swap(bench: ExactBench, driver: Driver, old: str, new: str) -> None:
    """The new one takes the slots that the old one had."""
    before = driver.activate(bench.adapters[old])
    evict(driver, bench.adapters[old])
    after = driver.activate(bench.adapters[new])
    assert not after.already
    assert set(after.slots) & set(before.slots)


@pytest.mark.parametrize("name", PAIRS)
def test_swapped_there_and_back_each_answers_as_freshly_loaded(name: str, bench: ExactBench, tmp_path: Path) -> None:
    for number, arguments in enumerate(PAIRS[name]):
        bench.add(f"{name} {number}", make_adapter(bench.base, tmp_path / str(number), seed=number, **arguments))
    driver, addresses = bench.driver(), bench.loaded.runner.addresses()
    names = [f"{name} {number}" for number in (0, 1, 0)]
    for old, new in zip([names[1], *names], names, strict=False):
        swap(bench, driver, old, new)
        bench.check_all(driver, [({new: 1.0}, PROMPT), ({}, PROMPT)])
    assert bench.loaded.runner.addresses() == addresses
    assert bench.loaded.runner.recompiles == 0


def test_a_name_that_begins_like_another_is_not_touched(bench: ExactBench, tmp_path: Path) -> None:
    for number in (1, 10, 2):
        folder = make_adapter(bench.base, tmp_path / f"lora{number}", seed=number, **lora("q_proj", r=8))
        bench.add(f"lora{number}", folder)
    driver = bench.driver()
    for name in ("lora1", "lora10"):
        driver.activate(bench.adapters[name])
    swap(bench, driver, "lora1", "lora2")
    bench.check_all(driver, [({"lora10": 1.0}, PROMPT), ({"lora2": 1.0}, PROMPT)])


def refused(bench: ExactBench, folder: Path, error: type[HotslotError], match: str) -> None:
    """It is refused, and what is in slots answers as before."""
    driver = bench.driver()
    driver.activate(bench.adapters["plain"])
    with pytest.raises(error, match=match):
        decoded(bench.loaded, folder)
    bench.check_all(driver, [({"plain": 1.0}, PROMPT)])


def test_an_extra_key_is_refused(bench: ExactBench, tmp_path: Path) -> None:
    folder = make_adapter(bench.base, tmp_path, **lora("q_proj", r=8))
    weights = folder / "adapter_model.safetensors"
    tensors = load_file(weights)
    first = next(iter(tensors))
    save_file({**tensors, first.replace("layers.0", "layers.7"): tensors[first].clone()}, weights, {"format": "pt"})
    refused(bench, folder, InvalidAdapterError, r"layers\.7")


def test_half_of_a_pair_is_refused(bench: ExactBench, tmp_path: Path) -> None:
    folder = make_adapter(bench.base, tmp_path, **lora("q_proj", r=8))
    weights = folder / "adapter_model.safetensors"
    tensors = load_file(weights)
    del tensors["base_model.model.model.layers.1.self_attn.q_proj.lora_B.weight"]
    save_file(tensors, weights, {"format": "pt"})
    refused(bench, folder, InvalidAdapterError, r"layers\.1\.self_attn\.q_proj")


def test_a_rank_beyond_the_largest_is_refused(bench: ExactBench, tmp_path: Path) -> None:
    folder = make_adapter(bench.base, tmp_path, **lora("q_proj", r=bench.loaded.max_rank + 1))
    refused(bench, folder, RankTooLargeError, "raise HOTSLOT_MAX_RANK")


def test_another_method_and_dora_are_refused(bench: ExactBench, tmp_path: Path) -> None:
    dora = make_adapter(bench.base, tmp_path / "dora", **lora("q_proj", r=8, use_dora=True))
    refused(bench, dora, UnsupportedAdapterError, "DoRA")
    other = make_adapter(bench.base, tmp_path / "ia3", **lora("q_proj", r=8))
    config = json.loads((other / "adapter_config.json").read_text())
    (other / "adapter_config.json").write_text(json.dumps({**config, "peft_type": "IA3"}))
    refused(bench, other, UnsupportedAdapterError, "only LoRA adapters are served")


def test_keys_without_slots_are_refused(bench: ExactBench, tmp_path: Path) -> None:
    folder = make_adapter(bench.base, tmp_path, **lora("q_proj", "v_proj", r=8))
    with apart():
        loaded = load_tiny(bench.base, target_modules=("q_proj",))
    manifest, _ = admitted(loaded, folder)
    with pytest.raises(UnsupportedAdapterError, match="HOTSLOT_TARGET_MODULES=q_proj,v_proj"):
        loaded.decoder.check(manifest)
