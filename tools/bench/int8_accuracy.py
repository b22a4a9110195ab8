"""Measures what weights in 8 bits change of the answers: `python -m tools.bench.int8_accuracy` prints one JSON object.

Perplexity of a committed text, the share of its positions at which the likeliest next token is the same, and greedy
answers to the beginnings of its paragraphs. Both models compute in float32, in plain transformers; a worker answers as
the rounded one does, which `tests/model/test_int8.py` holds.
"""

import json
from itertools import takewhile
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional
from transformers import AutoModelForCausalLM, AutoTokenizer

from worker_service.demo_model import ensure_model
from worker_service.model.int8_weights import round_weights

TEXT = Path(__file__).with_name("text.txt")
PROMPT_TOKENS = 24
ANSWER_TOKENS = 32


@torch.no_grad()
def logits_of(model: Any, token_ids: list[int]) -> torch.Tensor:
    """After each token but the last, `[T, V]`."""
    found: torch.Tensor = model(input_ids=torch.tensor([token_ids])).logits[0, :-1]
    return found


@torch.no_grad()
def greedy(model: Any, token_ids: list[int]) -> list[int]:
    """Answer to a prompt, of the likeliest tokens."""
    answered = model.generate(
        torch.tensor([token_ids]), max_new_tokens=ANSWER_TOKENS, min_new_tokens=ANSWER_TOKENS, do_sample=False
    )
    found: list[int] = answered[0, len(token_ids) :].tolist()
    return found


def answers_of(model: Any, paragraphs: list[list[int]]) -> tuple[list[torch.Tensor], list[list[int]]]:
    """Logits over each paragraph, and a greedy answer to the beginning of each."""
    prompts = [ids[:PROMPT_TOKENS] for ids in paragraphs]
    return [logits_of(model, ids) for ids in paragraphs], [greedy(model, ids) for ids in prompts]


def perplexity(logits: list[torch.Tensor], paragraphs: list[list[int]]) -> float:
    """Perplexity of all tokens but the first of each paragraph."""
    losses = [
        functional.cross_entropy(found_TV, torch.tensor(ids[1:]), reduction="none")
        for found_TV, ids in zip(logits, paragraphs, strict=True)
    ]
    return float(torch.cat(losses).mean().exp())


def common(full: list[int], rounded: list[int]) -> int:
    """Tokens until two answers part."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(full, rounded, strict=True)))


def main() -> None:
    """Measure and print."""
    # Threads that wait for each other on a busy machine take several times as long as one.
    torch.set_num_threads(1)
    folder = ensure_model()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    texts = TEXT.read_text(encoding="utf-8").split("\n\n")
    paragraphs: list[list[int]] = [tokenizer(text)["input_ids"] for text in texts]
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    full, full_answers = answers_of(model, paragraphs)
    round_weights(model)
    rounded, rounded_answers = answers_of(model, paragraphs)
    same = torch.cat([a_TV.argmax(-1) == b_TV.argmax(-1) for a_TV, b_TV in zip(full, rounded, strict=True)])
    kept = [common(a, b) for a, b in zip(full_answers, rounded_answers, strict=True)]
    divergence = torch.cat([
        functional.kl_div(b_TV.log_softmax(-1), a_TV.log_softmax(-1), reduction="none", log_target=True).sum(-1)
        for a_TV, b_TV in zip(full, rounded, strict=True)
    ])  # fmt: skip
    before, after = perplexity(full, paragraphs), perplexity(rounded, paragraphs)
    result = {
        "tokens": len(same),
        "perplexity_full": before,
        "perplexity_int8": after,
        "perplexity_int8_over_full": after / before,
        "same_next_token": float(same.float().mean()),
        "divergence_nats": float(divergence.mean()),
        "greedy_answers": len(kept),
        "greedy_tokens_until_they_part": sum(kept) / len(kept),
        "greedy_answers_the_same": sum(count == ANSWER_TOKENS for count in kept),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
