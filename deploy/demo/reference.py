"""Writes reference.json.gz: greedy tokens and top logits of every adapter, from freshly loaded PEFT in fp32."""

import gzip
import json
from pathlib import Path
from typing import Any

import torch

from deploy.demo.chat import Greedy, greedy, load_adapter, load_base, load_tokenizer, prompt_ids
from deploy.demo.recipes import RECIPES, SENTIMENT_DEMO_PROMPT
from worker_service.demo_model import BASE_MODEL, ensure_model

REFERENCE_PATH = Path(__file__).parent / "reference.json.gz"
PROMPTS = ("What is the capital of France?", "How do I make tea?", SENTIMENT_DEMO_PROMPT)
BASE_NAME = "base"
NUM_GREEDY_TOKENS = 32
# The last prompt position predicts the first new token, so these are that position and the seven after it.
NUM_LOGIT_POSITIONS = 8
TOP_K = 64
# Enough for a comparison at 1e-3, and it keeps the file small.
DECIMALS = 5
NUM_THREADS = 2


def measure(model: Any, tokenizer: Any, prompt: str) -> dict[str, Any]:
    """One prompt's reference. Greedy decoding does not stop at the end token, so that every list is full."""
    ids = prompt_ids(tokenizer, prompt)
    found = greedy(model, ids, NUM_GREEDY_TOKENS, eos_token_id=None)
    top = found.logits[:NUM_LOGIT_POSITIONS].topk(TOP_K)
    return {
        "prompt": prompt,
        "prompt_ids": ids,
        "greedy_ids": found.token_ids,
        "smallest_margin": smallest_margin(found),
        "top_ids": top.indices.tolist(),
        "top_logits": _rounded(top.values),
        "logsumexp": _rounded(found.logits[:NUM_LOGIT_POSITIONS].logsumexp(dim=-1)),
    }


def smallest_margin(found: Greedy) -> float:
    """Smallest lead of the greedy choice over another one: the smallest gap between the best two logits of a step.

    A worker that computes in another order or precision may rightly differ where this is tiny.
    """
    best = found.logits.topk(2).values
    return round(float((best[:, 0] - best[:, 1]).min()), DECIMALS)


def read_reference() -> dict[str, Any]:
    """The committed reference: `models`, by adapter name or `base`, each with one entry a prompt."""
    with gzip.open(REFERENCE_PATH, "rt", encoding="utf-8") as stream:
        reference: dict[str, Any] = json.load(stream)
    return reference


def _rounded(values: torch.Tensor) -> Any:
    return torch.round(values.double(), decimals=DECIMALS).tolist()


def main() -> None:
    """Measures the base and every adapter, and replaces the committed reference."""
    torch.set_num_threads(NUM_THREADS)
    base_folder = ensure_model()
    tokenizer = load_tokenizer(base_folder)
    models: dict[str, Any] = {}
    for name in (BASE_NAME, *(found.name for found in RECIPES)):
        model = load_base(base_folder) if name == BASE_NAME else load_adapter(base_folder, name)
        models[name] = [measure(model, tokenizer, prompt) for prompt in PROMPTS]
        print(name, *(entry["smallest_margin"] for entry in models[name]))
    reference = {"base_model": BASE_MODEL, "dtype": "float32", "top_k": TOP_K, "models": models}
    text = json.dumps(reference, separators=(",", ":"), sort_keys=True)
    # No time stamp inside: the same logits give the same file.
    REFERENCE_PATH.write_bytes(gzip.compress(text.encode(), mtime=0))


if __name__ == "__main__":
    main()
