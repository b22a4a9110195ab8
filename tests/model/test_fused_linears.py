"""Adapters that were trained on a worker's model with its linears fused, or apart, answer as PEFT does there."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.model.exact_adapters import ExactBench, prompt_of
from tests.model.tiny_worker import apart, load_tiny
from tests.support.tiny_models import make_adapter
from tests.support.twins import PARTS, save_twins

SPLIT = [*PARTS["qkv_proj"], *PARTS["gate_up_proj"]]
FUSED = [*PARTS]
KINDS: dict[str, dict[str, dict[str, Any]]] = {
    "split": {
        "q and v": {"target_modules": ["q_proj", "v_proj"], "r": 3, "lora_alpha": 6},
        "all with biases": {"target_modules": "all-linear", "r": 2, "lora_alpha": 3, "lora_bias": True},
        "powers of two": {
            "target_modules": SPLIT, "r": 4, "lora_alpha": 6, "use_rslora": True,
            "alpha_pattern": {"q_proj": 3, "up_proj": 24},
        },
    },
    "fused": {
        "attention": {"target_modules": ["qkv_proj"], "r": 5, "lora_alpha": 9},
        "all with biases": {"target_modules": "all-linear", "r": 4, "lora_alpha": 3, "lora_bias": True},
        "rsLoRA": {
            "target_modules": FUSED, "r": 3, "lora_alpha": 4, "use_rslora": True, "rank_pattern": {"qkv_proj": 7},
        },
    },
}  # fmt: skip
OTHER = {"split": "fused", "fused": "split"}


@pytest.fixture(scope="module", params=KINDS)
def bench(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ExactBench]:
    """Slots on one twin; adapters, and what PEFT says of them, on the other."""
    folder: Path = tmp_path_factory.mktemp("twins")
    twins, trained = save_twins(folder), request.param
    with apart():
        loaded = load_tiny(twins[OTHER[trained]], num_slots=16, target_modules=("all-linear",))
        made = ExactBench(twins[trained], loaded, {}, {})
        for name, arguments in KINDS[trained].items():
            made.add(name, make_adapter(twins[trained], folder / name, **arguments))
        yield made


def test_alone_and_beside_each_other(bench: ExactBench) -> None:
    driver = bench.driver()
    for number, name in enumerate(bench.adapters):
        bench.check_all(driver, [({name: 1.0}, prompt_of(number))])
    bench.check_all(driver, [({}, prompt_of(8)), *(({name: 0.5}, prompt_of(7)) for name in bench.adapters)])
    bench.check_all(driver, [(dict.fromkeys(bench.adapters, 0.4), prompt_of(9))])
