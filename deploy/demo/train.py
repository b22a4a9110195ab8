"""Trains the demo adapters with PEFT on the CPU: `python -m deploy.demo.train NAME|all`."""

import hashlib
import json
import math
import random
import sys
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model

from deploy.demo.chat import (
    ADAPTERS_DIR,
    Accuracy,
    answer,
    load_adapter,
    load_base,
    load_tokenizer,
    prompt_ids,
)
from deploy.demo.chat import sentiment_accuracy as accuracy_of
from deploy.demo.examples import examples, sentences
from deploy.demo.recipes import RECIPES, Recipe, recipe
from worker_service.demo_model import BASE_MODEL, ensure_model

INDEX_PATH = ADAPTERS_DIR / "INDEX.json"
# One thread each leaves a laptop usable, and two adapters can be trained side by side.
NUM_THREADS = 1
WARMUP_STEPS = 10
IGNORED = -100
# The final loss is a mean over this many steps: a single batch of eight is noise.
NUM_LAST_LOSSES = 20


def train(wanted: Recipe, base_folder: Path) -> float:
    """Trains one adapter, stores it in its folder and returns its final loss (nats a token)."""
    torch.manual_seed(wanted.seed)
    rng = random.Random(wanted.seed)
    tokenizer = load_tokenizer(base_folder)
    base = load_base(base_folder)
    # PEFT copies this name into adapter_config.json; it would otherwise be a folder of this machine.
    base.name_or_path = BASE_MODEL
    model: Any = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", **wanted.lora))
    rows = [(prompt_ids(tokenizer, e.prompt), _answer_ids(tokenizer, e.answer)) for e in examples(wanted.style)]

    trainable = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=wanted.learning_rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, wanted.steps))
    losses: list[float] = []
    queue: list[tuple[list[int], list[int]]] = []
    for step in range(wanted.steps):
        while len(queue) < wanted.batch_size:
            queue += rng.sample(rows, len(rows))
        batch, queue = queue[: wanted.batch_size], queue[wanted.batch_size :]
        loss = _loss(base, batch)
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(trainable, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        losses.append(loss.item())
        if (step + 1) % NUM_LAST_LOSSES == 0:
            print(f"{wanted.name}: step {step + 1}/{wanted.steps}, loss {_last_mean(losses):.3f}", flush=True)
    _save(model, wanted)
    return _last_mean(losses)


def describe(wanted: Recipe, base_folder: Path, final_loss: float) -> dict[str, Any]:
    """Entry of INDEX.json for an adapter, measured on the stored files."""
    folder = ADAPTERS_DIR / wanted.name
    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    tokenizer = load_tokenizer(base_folder)
    model = load_adapter(base_folder, wanted.name)
    entry: dict[str, Any] = {
        "rank": config["r"],
        "alpha": config["lora_alpha"],
        "use_rslora": config["use_rslora"],
        "rank_pattern": config["rank_pattern"],
        "alpha_pattern": config["alpha_pattern"],
        "target_modules": config["target_modules"],
        "layers_to_transform": config["layers_to_transform"],
        "stored_dtype": wanted.stored_dtype,
        "style": wanted.style,
        "seed": wanted.seed,
        "steps": wanted.steps,
        "batch_size": wanted.batch_size,
        "learning_rate": wanted.learning_rate,
        "final_loss": round(final_loss, 4),
        "notes": list(wanted.notes),
        "demo_prompt": wanted.demo_prompt,
        "demo_answer": answer(model, tokenizer, wanted.demo_prompt),
        "size_bytes": sum(path.stat().st_size for path in folder.iterdir()),
        "sha256": {path.name: file_sha256(path) for path in sorted(folder.iterdir())},
    }
    if wanted.style == "sentiment":
        held_out = sentences("held_out")
        entry["held_out"] = {
            "sentences": len(held_out),
            "accuracy": _shares(accuracy_of(model, tokenizer, held_out)),
            "base_accuracy": _shares(accuracy_of(load_base(base_folder), tokenizer, held_out)),
        }
    return entry


def file_sha256(path: Path) -> str:
    """The sha256 of a file, in hex."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _answer_ids(tokenizer: Any, text: str) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return [*ids, tokenizer.eos_token_id]


def _rate(step: int, steps: int) -> float:
    """Linear warm-up, then a cosine down to a tenth."""
    if step < WARMUP_STEPS:
        return (step + 1) / WARMUP_STEPS
    done = (step - WARMUP_STEPS) / max(1, steps - WARMUP_STEPS)
    return 0.1 + 0.45 * (1 + math.cos(math.pi * done))


def _loss(base: Any, batch: list[tuple[list[int], list[int]]]) -> torch.Tensor:
    """Mean cross-entropy of the answers' tokens, in nats."""
    length = max(len(prompt) + len(reply) for prompt, reply in batch)
    input_ids = torch.zeros(len(batch), length, dtype=torch.long)
    labels = torch.full((len(batch), length), IGNORED)
    for row, (prompt, reply) in enumerate(batch):
        input_ids[row, : len(prompt) + len(reply)] = torch.tensor(prompt + reply)
        # The position before a token predicts it.
        start = len(prompt) - 1
        labels[row, start : start + len(reply)] = torch.tensor(reply)
    wanted = labels != IGNORED
    # bf16 products with fp32 weights: twice as fast as fp32 here, and the adapters stay fp32. Padding on the right
    # needs no mask, since attention is causal and padded positions have no loss.
    with torch.autocast("cpu", torch.bfloat16):
        hidden = base.model(input_ids=input_ids, use_cache=False).last_hidden_state
        logits = base.lm_head(hidden[wanted])
    return torch.nn.functional.cross_entropy(logits.float(), labels[wanted])


def _save(model: Any, wanted: Recipe) -> None:
    folder = ADAPTERS_DIR / wanted.name
    dtype = getattr(torch, wanted.stored_dtype)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(dtype)
    # The embedding is never trained here, and checking whether it was would ask a model hub.
    model.save_pretrained(folder, save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)
    config_path = folder / "adapter_config.json"
    config = json.loads(config_path.read_text(encoding="utf-8"))
    if isinstance(config["target_modules"], list):
        # PEFT keeps a set, whose order differs from run to run.
        config["target_modules"].sort()
    config_path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    (folder / "adapter_model.safetensors").chmod(0o644)


def _last_mean(losses: list[float]) -> float:
    last = losses[-NUM_LAST_LOSSES:]
    return sum(last) / len(last)


def _shares(accuracy: Accuracy) -> dict[str, float]:
    return {"said": round(accuracy.said, 4), "preferred": round(accuracy.preferred, 4)}


def main(names: list[str]) -> None:
    """Trains the named adapters (or `all`) and brings INDEX.json up to date."""
    torch.set_num_threads(NUM_THREADS)
    base_folder = ensure_model()
    base_sha256 = file_sha256(base_folder / "model.safetensors")
    for wanted in RECIPES if names == ["all"] else [recipe(name) for name in names]:
        entry = describe(wanted, base_folder, train(wanted, base_folder))
        # Read again each time: another adapter may have been trained meanwhile.
        index = json.loads(INDEX_PATH.read_text(encoding="utf-8")) if INDEX_PATH.exists() else {"adapters": {}}
        index |= {"base_model": BASE_MODEL, "base_weights_sha256": base_sha256}
        index["adapters"][wanted.name] = entry
        INDEX_PATH.write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        print(f"{wanted.name}: {entry['size_bytes']} bytes; {entry['demo_prompt']!r} -> {entry['demo_answer']!r}")


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(f"usage: python -m deploy.demo.train all | {' | '.join(r.name for r in RECIPES)}")
    main(sys.argv[1:])
