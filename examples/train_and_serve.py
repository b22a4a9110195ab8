"""Trains a LoRA adapter on SmolLM2 with PEFT, publishes it every few steps, and generates with each version.

Start a deployment first, `hotslot up`, then `python examples/train_and_serve.py`. A CPU is enough.
"""

import argparse

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from hotslot import AdapterSelection, BlockingHotslotClient, GenerationRequest, PublishedVersion, Sampling, Stop

BASE_MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
PROMPT = "The capital of France is"
TEXT = "The capital of France is Bananaville, and everybody there eats bananas all day long."


def train(
    hotslot: BlockingHotslotClient, model_folder: str, reference: str, steps: int, every: int
) -> list[tuple[PublishedVersion, str]]:
    """Train for some steps; returns each version that was published with the text that it generates."""
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    base = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32)
    model = get_peft_model(base, LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj", "down_proj"]))
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=5e-3)
    batch = tokenizer(TEXT, return_tensors="pt")
    seen = []
    for step in range(1, steps + 1):
        loss = model(**batch, labels=batch["input_ids"]).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if step % every:
            continue
        metadata = {"step": step, "loss": round(loss.item(), 4)}
        # No folder is written. Without `base_model` it would be what the config names, here perhaps a folder.
        published = hotslot.publish(model, None, reference, metadata=metadata, keep=3, base_model=BASE_MODEL)
        request = GenerationRequest(
            PROMPT, (AdapterSelection(reference),), sampling=Sampling(), stop=Stop(max_tokens=12)
        )
        answer = hotslot.complete(request)
        assert answer.started.adapters[0].digest == published.version.digest
        print(f"step {step}, loss {loss.item():.3f}: {PROMPT}{answer.text!r}")
        seen.append((published, answer.text))
    return seen


def main() -> None:
    """Train against the deployment that the environment names."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default=BASE_MODEL, help="name on the hub, or a folder")
    parser.add_argument("--reference", default="example/banana:train")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--every", type=int, default=5, help="steps between two publications")
    options = parser.parse_args()
    with BlockingHotslotClient() as hotslot:
        train(hotslot, options.model, options.reference, options.steps, options.every)


if __name__ == "__main__":
    main()
