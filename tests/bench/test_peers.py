"""A peer's process is started, asked and ended; its failures are told with the end of its log."""

import sys
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tools.bench import inputs
from tools.bench.peers.environments import Environment
from tools.bench.peers.process import PeerFailedError, PeerProcess
from tools.bench.peers.protocol import PeerSettings, PromptRow
from tools.bench.smollm import ADAPTER_BYTES_A_RANK, HEADS

SETTINGS = PeerSettings("model", "gguf", [], 16, 1, 2, 100, "cache", {"after": "2"})
STARTED_WITHIN_S = 60.0
ECHO = "tests.bench.echo_peer"


def launch(folder: Path, settings: PeerSettings = SETTINGS) -> PeerProcess:
    return PeerProcess("echo", ECHO, sys.executable, settings, folder / "echo.log")


def test_a_peer_answers_batch_after_batch_whatever_it_prints(tmp_path: Path) -> None:
    with launch(tmp_path) as peer:
        peer.wait_ready(STARTED_WITHIN_S)
        assert peer.versions == {"echo": "1"}
        for number in range(2):
            answer = peer.generate([PromptRow([number, 7]), PromptRow([5], 1)], 2, STARTED_WITHIN_S)
            assert answer.token_ids == [[number, number], [5, 5]]
            assert answer.times_s == [[0.0, 1.0], [0.0, 1.0]]
    assert "printed by a library" in (tmp_path / "echo.log").read_text()


def test_a_peer_that_ends_is_told_of_with_its_last_words(tmp_path: Path) -> None:
    with launch(tmp_path) as peer:
        peer.wait_ready(STARTED_WITHIN_S)
        with pytest.raises(PeerFailedError, match="no adapter 9"):
            peer.generate([PromptRow([1], 9)], 2, STARTED_WITHIN_S)


def test_a_peer_that_does_not_answer_is_given_up(tmp_path: Path) -> None:
    with launch(tmp_path) as peer:
        peer.wait_ready(STARTED_WITHIN_S)
        with pytest.raises(PeerFailedError, match=r"did not answer within 0\.2 s"):
            peer.generate([PromptRow([1])], 10_000, 0.2)


def test_an_environment_that_cannot_be_had_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "peers").write_text("no folder")
    monkeypatch.setenv("HOTSLOT_CACHE_DIR", str(tmp_path))
    environment = Environment("none", ("a-package==1",))
    assert environment.install().startswith("a-package==1 could not be installed: ")
    assert not environment.is_installed


def test_adapters_are_the_same_in_both_forms(tmp_path: Path) -> None:
    (folder,) = inputs.adapter_folders(2, 1, tmp_path)
    written = load_file(folder / "adapter_model.safetensors")
    assert sum(tensor.nbytes for tensor in written.values()) == 2 * ADAPTER_BYTES_A_RANK
    read = {tensor.name: tensor for tensor in gguf.GGUFReader(folder / "adapter.gguf").tensors}
    assert len(read) == len(written)
    for ours, theirs in (("mlp.down_proj", "ffn_down"), ("self_attn.v_proj", "attn_v")):
        for side in "AB":
            found = read[f"blk.3.{theirs}.weight.lora_{side.lower()}"]
            values = gguf.dequantize(found.data, found.tensor_type)
            expected = written[f"base_model.model.model.layers.3.{ours}.lora_{side}.weight"].float().numpy()
            assert np.array_equal(values, expected)


def test_rotated_outputs_are_interleaved_head_by_head() -> None:
    values = torch.arange(HEADS * 64)[:, None]
    found = inputs.rotary_order(values, HEADS)[:, 0].tolist()
    assert found[:4] == [0, 32, 1, 33]
    assert found[64:66] == [64, 96]
    assert sorted(found) == list(range(HEADS * 64))
