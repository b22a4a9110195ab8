"""Several adapters with weights are PEFT's sum of them, and what a seed draws does not depend on the batch."""

from pathlib import Path

import pytest
import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from transformers import AutoModelForCausalLM

from hotslot.contract.generation import Sampling
from tests.model.conftest import ADAPTERS_DIR
from tests.model.driver import Driver
from worker_service.demo_model import ensure_model
from worker_service.model.weights import HostAdapter

pytestmark = pytest.mark.model

PROMPT = [1, 4093, 198, 1780, 314, 260, 3575, 282, 4649, 47, 2, 198]
WEIGHTS = {"pirate": 0.7, "json": 0.4, "french": -0.3}
"""No two of them alike in rank or targets."""


def test_a_weighted_mix_equals_pefts_sum(driver: Driver, adapters: dict[str, HostAdapter]) -> None:
    mix = [(adapters[name], weight) for name, weight in WEIGHTS.items()]
    sequence_id = driver.submit(PROMPT, mix, max_tokens=4)
    driver.finish()
    found = {a.token_id: a.logprob for a in driver.tokens[sequence_id][0].alternatives}

    expected = peft_logprobs(ensure_model(), PROMPT)
    for token_id, logprob in found.items():
        assert logprob == pytest.approx(float(expected[token_id]), abs=1e-3)


def peft_logprobs(folder: Path, prompt: list[int]) -> torch.Tensor:
    """What PEFT says with all adapters active, each with its scaling multiplied by its weight."""
    base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    first, *others = WEIGHTS
    model = PeftModel.from_pretrained(base, ADAPTERS_DIR / first, adapter_name=first)
    for name in others:
        model.load_adapter(ADAPTERS_DIR / name, adapter_name=name)
    model.base_model.set_adapter(list(WEIGHTS))
    for module in model.modules():
        if isinstance(module, LoraLayer):
            for name in set(WEIGHTS) & set(module.scaling):
                module.scaling[name] *= WEIGHTS[name]
    with torch.no_grad():
        logits: torch.Tensor = model.eval()(input_ids=torch.tensor([prompt])).logits[0, -1]
    return logits.log_softmax(-1)


def test_a_seed_draws_the_same_tokens_whatever_is_in_the_batch(
    driver: Driver, adapters: dict[str, HostAdapter]
) -> None:
    sampling = Sampling(temperature=0.9, top_p=0.95, top_k=50, seed=7)
    alone = driver.submit(PROMPT, ((adapters["pirate"], 1.0),), max_tokens=12, sampling=sampling)
    driver.finish()
    rows = [
        driver.submit(PROMPT[:n], ((adapters[name], 1.0),), max_tokens=12, sampling=Sampling(1.5, seed=n))
        for n, name in ((5, "json"), (9, "sentiment"), (3, "french"))
    ]
    among_others = driver.submit(PROMPT, ((adapters["pirate"], 1.0),), max_tokens=12, sampling=sampling)
    driver.finish()
    assert driver.token_ids(among_others) == driver.token_ids(alone)
    assert len({tuple(driver.token_ids(row)) for row in rows}) == 3


def test_different_seeds_draw_different_tokens(driver: Driver) -> None:
    answers = []
    for seed in range(4):
        sequence_id = driver.submit(PROMPT, max_tokens=12, sampling=Sampling(temperature=1.0, seed=seed))
        driver.finish()
        answers.append(tuple(driver.token_ids(sequence_id)))
    assert len(set(answers)) > 1
