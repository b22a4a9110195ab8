"""A tiny worker with an adapter of every kind that admission supports, and what freshly loaded PEFT says of each."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from hotslot.contract.generation import Logprobs
from hotslot.errors import HotslotError
from hotslot.formats.base_model import spec_from_folder
from tests.model.driver import Driver
from tests.model.tiny_worker import decoded, load_tiny
from tests.support.tiny_models import VOCAB, Architecture, PeftOracle, make_adapter, save_model
from worker_service.engine.core import EngineCore
from worker_service.engine.messages import Deactivate, Inspect, SequenceId
from worker_service.engine.snapshot import EngineSnapshot
from worker_service.model.options import LoadedModel
from worker_service.model.weights import HostAdapter

TOLERANCE = 1e-3
NUM_SLOTS = 16
"""As many as one adapter of each kind takes, and a few more."""
EVERY_LOGPROB = Logprobs(VOCAB)
NamedMix = Mapping[str, float]
"""Weights by the adapters' names; empty for the base."""


def kinds_of(found: Architecture) -> dict[str, dict[str, Any]]:
    """Arguments of PEFT's LoraConfig; a slot has 4 ranks, so some fill slots, some leave ranks over, one spills."""
    attention, both = [found.attention], [found.attention, found.mlp]
    return {
        "plain": {"target_modules": attention, "r": 4, "lora_alpha": 8},
        "rank pattern": {"target_modules": both, "r": 2, "lora_alpha": 4, "rank_pattern": {found.mlp: 7}},
        "alpha pattern": {"target_modules": both, "r": 3, "lora_alpha": 1, "alpha_pattern": {found.attention: 9}},
        "rslora": {"target_modules": both, "r": 4, "lora_alpha": 3, "use_rslora": True},
        "large": {"target_modules": both, "r": 13, "lora_alpha": 13},
        "biases": {"target_modules": both, "r": 4, "lora_alpha": 6, "lora_bias": True},
        "one layer": {"target_modules": both, "r": 4, "lora_alpha": 12, "layers_to_transform": [1]},
        "ends": {"target_modules": [found.embedding, "lm_head"], "r": 4, "lora_alpha": 1},
    }


def prompt_of(number: int) -> tuple[int, ...]:
    """Of 5 to 11 tokens."""
    generator = torch.Generator().manual_seed(number)
    return tuple(torch.randint(3, VOCAB, (5 + 2 * (number % 4),), generator=generator).tolist())


@dataclass
class ExactBench:
    """A worker's model, the same adapters for it and for PEFT, and answers of PEFT's that were computed before."""

    base: Path
    loaded: LoadedModel
    folders: dict[str, Path]
    adapters: dict[str, HostAdapter]
    _oracles: dict[tuple[tuple[str, float], ...], PeftOracle] = field(default_factory=dict)

    @classmethod
    def make(cls, architecture: Architecture, folder: Path, **changes: Any) -> "ExactBench":
        """A worker with slots on everything."""
        base = save_model(folder / "base", architecture, tie_word_embeddings=False)
        known = {module.name for module in spec_from_folder(base, "tiny").targets}
        ends = tuple(name for name in (architecture.embedding, "lm_head", "embed_out") if name in known)
        loaded = load_tiny(base, num_slots=NUM_SLOTS, target_modules=("all-linear", *ends), **changes)
        kinds = kinds_of(architecture)
        folders = {name: make_adapter(base, folder / name, **arguments) for name, arguments in kinds.items()}
        return cls(base, loaded, folders, {name: decoded(loaded, path) for name, path in folders.items()})

    def add(self, name: str, folder: Path) -> HostAdapter:
        """One more adapter."""
        self.folders[name], self.adapters[name] = folder, decoded(self.loaded, folder)
        return self.adapters[name]

    def driver(self, **limits: int) -> Driver:
        """A fresh engine core; slots hold what was there before."""
        return Driver(EngineCore(self.loaded.runner, replace(self.loaded.limits, **limits), lambda: 0.0))

    def submit(self, driver: Driver, mix: NamedMix, prompt: Sequence[int], max_tokens: int = 4) -> SequenceId:
        """Queue a greedy sequence that reports every log-probability."""
        uses = [(self.adapters[name], weight) for name, weight in mix.items()]
        return driver.submit(prompt, uses, max_tokens=max_tokens, logprobs=EVERY_LOGPROB)

    def check(self, driver: Driver, sequence_id: SequenceId, mix: NamedMix, prompt: Sequence[int]) -> None:
        """Every log-probability of every token as PEFT has it, and each token the one that PEFT finds likeliest."""
        answer = driver.token_ids(sequence_id)
        expected_TV = self._logprobs(mix, [*prompt, *answer])[len(prompt) - 1 : -1]
        found_TV = torch.empty_like(expected_TV)
        for position, token in enumerate(driver.tokens[sequence_id]):
            assert len(token.alternatives) == VOCAB
            for alternative in token.alternatives:
                found_TV[position, alternative.token_id] = alternative.logprob
        error = float((found_TV - expected_TV).abs().max())
        assert error <= TOLERANCE, f"{dict(mix)}: off by {error:.3g}"
        assert answer == expected_TV.argmax(-1).tolist(), dict(mix)
        if mix:
            base_TV = self._logprobs({}, [*prompt, *answer])[len(prompt) - 1 : -1]
            assert float((expected_TV - base_TV).abs().max()) > 10 * TOLERANCE, f"{dict(mix)}: shows too little"

    def check_all(self, driver: Driver, rows: Sequence[tuple[NamedMix, Sequence[int]]], max_tokens: int = 4) -> None:
        """Run rows beside each other and check them."""
        submitted = [self.submit(driver, mix, prompt, max_tokens) for mix, prompt in rows]
        driver.finish()
        for sequence_id, (mix, prompt) in zip(submitted, rows, strict=True):
            self.check(driver, sequence_id, mix, prompt)

    def _logprobs(self, mix: NamedMix, token_ids: Sequence[int]) -> torch.Tensor:
        key = tuple(mix.items())
        if key not in self._oracles:
            folders = [(self.folders[name], weight) for name, weight in mix.items()]
            self._oracles[key] = PeftOracle.of_mix(self.base, folders)
        return self._oracles[key].logits(token_ids).log_softmax(-1)


def evict(driver: Driver, adapter: HostAdapter) -> None:
    """Free an adapter's slots."""
    outcomes: list[HotslotError | None] = []
    driver.core.handle(Deactivate(adapter.digest, outcomes.append))
    while not outcomes:
        driver.turn()
    assert outcomes == [None]


def snapshot_of(driver: Driver) -> EngineSnapshot:
    """What the engine says of itself."""
    snapshots: list[EngineSnapshot] = []
    driver.core.handle(Inspect(snapshots.append))
    return snapshots[0]
