"""Prompts and greedy answers of the demo model, with plain transformers and PEFT: the yardstick for the worker."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from deploy.demo.examples import LABELS, SENTIMENT_PROMPT, Sentence

LABEL_BATCH_SIZE = 12
# Enough for a talkative model's "The sentence is positive".
NUM_LABEL_TOKENS = 12
ADAPTERS_DIR = Path(__file__).parent / "adapters"


@dataclass(frozen=True)
class Greedy:
    """A greedy continuation: the new token ids, and the logits that chose each, `[T, vocabulary]` in fp32."""

    token_ids: list[int]
    logits: torch.Tensor


def load_base(folder: Path) -> Any:
    """The base model in fp32 on the CPU, ready to answer."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()


def load_adapter(folder: Path, name: str) -> Any:
    """A fresh fp32 base with one committed adapter on it.

    Fresh each time: PEFT's switching and hot-swapping are not a yardstick.
    """
    return PeftModel.from_pretrained(load_base(folder), ADAPTERS_DIR / name).eval()


def load_tokenizer(folder: Path) -> Any:
    """The base model's tokenizer."""
    return AutoTokenizer.from_pretrained(folder)


def prompt_ids(tokenizer: Any, prompt: str) -> list[int]:
    """The token ids of one user message in the chat template, up to where the assistant speaks."""
    messages = [{"role": "user", "content": prompt}]
    text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


@torch.inference_mode()
def greedy(model: Any, ids: list[int], max_new_tokens: int, eos_token_id: int | None) -> Greedy:
    """Decodes greedily; stops after `eos_token_id` (which is kept), or never early if it is None."""
    new_ids: list[int] = []
    steps: list[torch.Tensor] = []
    cache = None
    step_input = torch.tensor([ids])
    while len(new_ids) < max_new_tokens and (not new_ids or new_ids[-1] != eos_token_id):
        out = model(input_ids=step_input, past_key_values=cache, use_cache=True, logits_to_keep=1)
        cache = out.past_key_values
        steps.append(out.logits[0, -1].float())
        new_ids.append(int(steps[-1].argmax()))
        step_input = torch.tensor([new_ids[-1:]])
    return Greedy(new_ids, torch.stack(steps))


def answer(model: Any, tokenizer: Any, prompt: str, max_new_tokens: int = 48) -> str:
    """The greedy answer to one question, as text."""
    found = greedy(model, prompt_ids(tokenizer, prompt), max_new_tokens, tokenizer.eos_token_id)
    text: str = tokenizer.decode(found.token_ids, skip_special_tokens=True)
    return text.strip()


@dataclass(frozen=True)
class Accuracy:
    """Shares of sentences labelled rightly: by the first label the answer says, and by the likelier label.

    The second is kinder to a model that never learnt the form: it compares the logits of the labels alone.
    """

    said: float
    preferred: float


@torch.inference_mode()
def sentiment_accuracy(model: Any, tokenizer: Any, sentences: list[Sentence]) -> Accuracy:
    """Labels `sentences` with the model, a batch at a time, and counts what it gets right."""
    label_ids = [tokenizer(label, add_special_tokens=False)["input_ids"] for label in LABELS]
    assert all(len(ids) == 1 for ids in label_ids), "a label must be one token for its logit to be its score"
    scored = torch.tensor([ids[0] for ids in label_ids])
    said = preferred = 0
    for start in range(0, len(sentences), LABEL_BATCH_SIZE):
        rows = sentences[start : start + LABEL_BATCH_SIZE]
        prompts = [prompt_ids(tokenizer, SENTIMENT_PROMPT.format(sentence=row.sentence)) for row in rows]
        # Padded on the left, so that every row's next token is at the same position.
        batch = tokenizer.pad({"input_ids": prompts}, padding_side="left", return_tensors="pt")
        out = model.generate(
            **batch,
            do_sample=False,
            max_new_tokens=NUM_LABEL_TOKENS,
            output_logits=True,
            return_dict_in_generate=True,
        )
        texts = tokenizer.batch_decode(out.sequences[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
        likelier = out.logits[0][:, scored].argmax(dim=-1).tolist()
        for row, text, choice in zip(rows, texts, likelier, strict=True):
            labels = [word for word in re.findall(r"[a-z]+", text.lower()) if word in LABELS]
            said += labels[:1] == [row.label]
            preferred += LABELS[choice] == row.label
    return Accuracy(said / len(sentences), preferred / len(sentences))
