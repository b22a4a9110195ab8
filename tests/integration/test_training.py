"""A training that publishes from memory: each version is served at once, and answers as PEFT does freshly loaded."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments

from examples.train_and_serve import PROMPT, train
from hotslot import AdapterSelection, BlockingHotslotClient, GenerationRequest, PublishedVersion, RawTensor, Stop
from hotslot.clients.trained import trained_files
from hotslot.errors import InvalidAdapterError, InvalidRequestError
from hotslot.integrations.transformers import PublishCallback
from worker_service.demo_model import BASE_MODEL

pytestmark = [pytest.mark.integration, pytest.mark.model]

NUM_TOKENS = 8
TARGETS = ["q_proj", "v_proj"]


def fresh_base(model_folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32)


def peft_model(model_folder: Path, seed: int = 0) -> Any:
    torch.manual_seed(seed)
    model = get_peft_model(fresh_base(model_folder), LoraConfig(r=4, lora_alpha=8, target_modules=TARGETS))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.05)
    return model


def peft_answer(model_folder: Path, adapter: Path, prompt_ids: list[int]) -> list[int]:
    """Greedy tokens of PEFT with the adapter freshly loaded."""
    model = PeftModel.from_pretrained(fresh_base(model_folder), adapter)
    ids = torch.tensor([prompt_ids])
    with torch.no_grad():
        out = model.generate(input_ids=ids, max_new_tokens=NUM_TOKENS, do_sample=False, eos_token_id=-1)
    return [int(token) for token in out[0, len(prompt_ids) :]]


def answer(hotslot: BlockingHotslotClient, reference: str, prompt_ids: list[int]) -> tuple[str, list[int]]:
    stop = Stop(max_tokens=NUM_TOKENS, ignore_eos=True)
    found = hotslot.complete(GenerationRequest(tuple(prompt_ids), (AdapterSelection(reference),), stop=stop))
    return found.started.adapters[0].digest, list(found.choices[0].token_ids)


def test_the_example_serves_each_version_that_it_published(hotslot: BlockingHotslotClient, model_folder: Path) -> None:
    seen = train(hotslot, str(model_folder), "training/example:train", steps=4, every=2)
    assert len({published.version.digest for published, _ in seen}) == 2
    assert [published.version.annotations["step"] for published, _ in seen] == ["2", "4"]
    assert all(published.is_ready for published, _ in seen)
    assert hotslot.store.get_policy("training/example").keep_versions == 3
    # The second time the worker held the name, and was waited for.
    assert [len(published.workers) for published, _ in seen] == [0, 1]


@pytest.mark.parametrize("form", ["model", "torch", "numpy", "bfloat16", "bytes"])
def test_every_form_of_weights_is_served_as_peft_answers_freshly_loaded(
    hotslot: BlockingHotslotClient, model_folder: Path, tmp_path: Path, form: str
) -> None:
    model = peft_model(model_folder)
    if form == "bfloat16":
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_" in name:
                    parameter.data = parameter.data.to(torch.bfloat16)
    model.save_pretrained(tmp_path)
    config, state = model.peft_config["default"], get_peft_model_state_dict(model, save_embedding_layers=False)
    weights: dict[str, Any] = {
        "model": lambda: model,
        "torch": lambda: state,
        "numpy": lambda: {name: tensor.detach().numpy() for name, tensor in state.items()},
        "bfloat16": lambda: {
            name: RawTensor(tensor.detach().view(torch.uint8).numpy().tobytes(), tuple(tensor.shape), "BF16")
            for name, tensor in state.items()
        },
        "bytes": (tmp_path / "adapter_model.safetensors").read_bytes,
    }
    reference = f"training/{form}:train"
    published = hotslot.publish(weights[form](), config, reference, base_model=BASE_MODEL, metadata={"step": 1})
    pushed = hotslot.store.push(tmp_path, f"training/{form}:pushed", base_model=BASE_MODEL)
    assert published.version.digest == pushed.version.digest, "the same version as that of the folder that PEFT wrote"
    prompt_ids = AutoTokenizer.from_pretrained(model_folder)(PROMPT)["input_ids"]
    digest, tokens = answer(hotslot, reference, prompt_ids)
    assert digest == published.version.digest
    assert tokens == peft_answer(model_folder, tmp_path, prompt_ids)


def test_a_trainers_callback_publishes_steps_with_their_figures(
    hotslot: BlockingHotslotClient, model_folder: Path, tmp_path: Path
) -> None:
    seen: list[tuple[PublishedVersion, str]] = []
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    ids = tokenizer("Ahoy there, the sea is wide.")["input_ids"]
    model = peft_model(model_folder)

    def on_published(published: PublishedVersion) -> None:
        seen.append((published, answer(hotslot, "training/callback:train", ids[:4])[0]))

    callback = PublishCallback(
        hotslot,
        "training/callback:train",
        every_steps=1,
        tags_at_end=["final"],
        keep=2,
        base_model=BASE_MODEL,
        annotations={"run": "short"},
        on_published=on_published,
    )
    options = TrainingArguments(
        str(tmp_path), max_steps=2, per_device_train_batch_size=1, report_to=[], use_cpu=True, logging_steps=1,
        save_strategy="no", learning_rate=1e-2, disable_tqdm=True,
    )  # fmt: skip
    Trainer(
        model=model, args=options, train_dataset=[{"input_ids": ids, "labels": ids}] * 2, callbacks=[callback]
    ).train()
    assert [digest for _, digest in seen] == [published.version.digest for published, _ in seen]
    assert [published.version.annotations["step"] for published, _ in seen] == ["1", "2", "2"]
    last = hotslot.store.resolve("training/callback:final").version
    assert last.digest == seen[-1][0].version.digest
    assert last.annotations["run"] == "short"
    assert float(last.annotations["loss"]) > 0


def test_what_is_no_adapter_is_refused_with_every_violation(hotslot: BlockingHotslotClient, model_folder: Path) -> None:
    model = peft_model(model_folder)
    config, state = model.peft_config["default"], dict(get_peft_model_state_dict(model, save_embedding_layers=False))
    bad = sorted(state)[:3]
    for name in bad:
        state[name] = torch.full_like(state[name], float("nan"))
    with pytest.raises(InvalidAdapterError) as refused:
        hotslot.publish(state, config, "training/bad", base_model=BASE_MODEL)
    assert {violation.subject for violation in refused.value.violations} == set(bad)
    for weights in (model.base_model, 3, {"a": "b"}, {}, {"a": np.zeros(2, complex)}):
        with pytest.raises(InvalidRequestError):
            trained_files(weights, config if isinstance(weights, dict) else None, "")
