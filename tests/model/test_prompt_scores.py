"""Log-probabilities of a prompt's tokens, against plain transformers and against generating the same tokens."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    LlamaConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from hotslot.contract.generation import Logprobs
from tests.model.driver import Driver
from worker_service.engine.core import EngineCore
from worker_service.engine.messages import SampledToken
from worker_service.model.loading import load_model
from worker_service.model.options import LoadedModel, ModelOptions

SIZES = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
}
CONFIGS = {
    "llama": LlamaConfig(**SIZES),
    # Its forward bends the logits after the head, and scores must be bent alike.
    "gemma2": Gemma2Config(**SIZES, final_logit_softcapping=3.0, sliding_window=128),
}
PROMPT = tuple((7 * i + 3) % 97 for i in range(61))
WITH_ALTERNATIVES = Logprobs(5, prompt=True, enabled=False)


@pytest.fixture(params=sorted(CONFIGS))
def tiny(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[LoadedModel, PreTrainedModel]]:
    """A model of random weights, as a worker has it (though not compiled) and as transformers has it."""
    config: PretrainedConfig = CONFIGS[request.param]
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    model.save_pretrained(tmp_path)
    words = {f"w{i}": i for i in range(97)}
    PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel(words, "w0"))).save_pretrained(tmp_path)
    options = ModelOptions(
        model=str(tmp_path),
        model_name="test/tiny",
        dtype="float32",
        num_slots=2,
        slot_rank=4,
        max_rank=8,
        max_sequences=4,
        kv_tokens=512,
        token_buckets=(4, 16),
        compile=False,
        num_threads=1,
    )
    # Loading arms the compiler for the whole process.
    with torch.compiler.set_stance("default"):
        yield load_model(options), model


def test_scores_are_those_of_plain_transformers_through_chunks_and_beside_others(
    tiny: tuple[LoadedModel, PreTrainedModel],
) -> None:
    loaded, model = tiny
    driver = Driver(EngineCore(loaded.runner, loaded.limits, lambda: 0.0))
    driver.submit(PROMPT[:40], logprobs=replace(WITH_ALTERNATIVES, prompt=False))
    driver.turn()
    scored = driver.submit(PROMPT, logprobs=WITH_ALTERNATIVES)
    short = driver.submit(PROMPT[:2], logprobs=WITH_ALTERNATIVES)
    single = driver.submit(PROMPT[:1], logprobs=Logprobs(20, prompt=True))
    driver.finish()
    with torch.no_grad():
        logprobs_TV = model(torch.tensor([PROMPT])).logits[0].log_softmax(-1)
    check(driver.prompt_scores[scored], logprobs_TV)
    check(driver.prompt_scores[short], logprobs_TV[:2])
    assert driver.prompt_scores[single] == ()


def check(scores: tuple[SampledToken, ...], logprobs_TV: torch.Tensor) -> None:
    """Every token but the first, with the likeliest alternatives at its place."""
    assert [score.token_id for score in scores] == list(PROMPT[1 : len(logprobs_TV)])
    for score, logprobs_V in zip(scores, logprobs_TV, strict=False):
        assert score.logprob == pytest.approx(float(logprobs_V[score.token_id]), abs=1e-4)
        best = logprobs_V.topk(5)
        assert [a.token_id for a in score.alternatives] == best.indices.tolist()
        assert [a.logprob for a in score.alternatives] == pytest.approx(best.values.tolist(), abs=1e-4)


@pytest.mark.model
def test_a_compiled_model_scores_an_answer_as_it_generated_it_and_compiles_nothing(
    driver: Driver, loaded: LoadedModel
) -> None:
    prompt = list(range(1000, 1100))
    sequence_id = driver.submit(prompt, max_tokens=20)
    driver.finish()
    answer = driver.tokens[sequence_id]
    again = driver.submit([*prompt, *driver.token_ids(sequence_id)], max_tokens=1, logprobs=Logprobs(20, prompt=True))
    driver.finish()
    scores = driver.prompt_scores[again]
    assert len(scores) == 119
    for score, token in zip(scores[99:], answer, strict=True):
        assert score.token_id == token.token_id
        assert score.logprob == pytest.approx(token.logprob, abs=2e-3)
        assert score.alternatives[0].token_id == token.token_id
    assert loaded.runner.recompiles == 0
