"""`hotslot plan`: what it prints, as a table and as JSON, and what it refuses."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from hotslot.cli.app import run as run_command

SETTINGS = ["--adapters", "100", "--rank", "40", "--rps", "10", "--dtype", "float32"]
HIDDEN, KEYS = 8, 4


@pytest.fixture
def base(tmp_path: Path) -> Path:
    folder = tmp_path / "base"
    folder.mkdir()
    config = {
        "model_type": "llama", "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1,
        "hidden_size": HIDDEN,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    tensors = {
        "model.embed_tokens.weight": (11, HIDDEN),
        "model.layers.0.self_attn.q_proj.weight": (HIDDEN, HIDDEN),
        "model.layers.0.self_attn.k_proj.weight": (KEYS, HIDDEN),
        "model.norm.weight": (HIDDEN,),
    }
    arrays = {name: np.zeros(shape, np.float32) for name, shape in tensors.items()}
    save_file(arrays, str(folder / "model.safetensors"))
    return folder


class Ran:
    """The command as people run it."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def __call__(self, *arguments: str) -> tuple[int, str, str]:
        code = run_command(["plan", *arguments])
        return (code, *self._capsys.readouterr())


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Ran:
    return Ran(capsys)


def test_json_has_every_number_and_the_table_the_same(base: Path, run: Ran) -> None:
    arguments = ["--base", str(base), *SETTINGS, "--step", "1=11", "--step", "8=18", "--price", "2"]
    code, out, _ = run(*arguments, "--json")
    assert code == 0
    document = json.loads(out)
    assert document["base"]["slot_features"] == 2 * HIDDEN + HIDDEN + KEYS
    assert document["step_cost"]["base_s"] == pytest.approx(0.010)
    assert document["step_cost"]["per_token_s"] == pytest.approx(0.001)
    memory = document["plan"]["memory"]
    assert memory["slot_bytes"] == 16 * (2 * HIDDEN + HIDDEN + KEYS) * 4
    assert memory["slots_per_adapter"] == 3
    assert memory["weights_bytes"] == (11 * HIDDEN + HIDDEN * HIDDEN + KEYS * HIDDEN + HIDDEN) * 4
    assert memory["kv_bytes"] == (1024 + 1) * 16 * 2 * KEYS * 4
    assert document["cost_per_hour"] == 2 * document["plan"]["replicas"]
    code, out, err = run(*arguments)
    assert code == 0
    assert str(document["plan"]["replicas"]) in out
    assert "a full batch wants 24 slots" in err


def test_without_steps_memory_alone_is_told(base: Path, run: Ran) -> None:
    code, out, err = run("--base", str(base), *SETTINGS)
    assert code == 0
    assert "one slot" in out
    assert "replicas" not in out
    assert "give measured steps" in err


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (["--step", "1"], "--step"),
        (["--step", "0=3"], "--step"),
        (["--step", "1=nothing"], "--step"),
        (["--dtype", "int8"], "--dtype"),
    ],
)
def test_what_cannot_be_planned_is_refused_by_name(base: Path, run: Ran, changed: list[str], said: str) -> None:
    code, _, err = run("--base", str(base), *SETTINGS, *changed)
    assert code == 2
    assert said in err
    code, _, err = run("--base", str(base / "none"), *SETTINGS)
    assert code == 3
