"""TRL's trainers with the publishing callback: each step's version is served at once, as PEFT answers with it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from transformers import AutoTokenizer
from trl import GRPOConfig, GRPOTrainer, SFTConfig, SFTTrainer

from hotslot import BlockingHotslotClient, PublishedVersion
from hotslot.integrations.transformers import PublishCallback
from tests.integration.test_training import answer, peft_answer, peft_model
from worker_service.demo_model import BASE_MODEL

pytestmark = [pytest.mark.integration, pytest.mark.model]

STEPS = 2
PROMPT = "Ahoy there, what is"
OPTIONS: dict[str, Any] = {
    "max_steps": STEPS,
    "report_to": [],
    "use_cpu": True,
    "bf16": False,
    "logging_steps": 1,
    "save_strategy": "no",
    "learning_rate": 5e-3,
    "disable_tqdm": True,
    "gradient_checkpointing": False,
}


def sft(model: Any, tokenizer: Any, folder: Path, callback: PublishCallback) -> Any:
    texts = Dataset.from_list([{"text": "Ahoy there, what is the sea but salt and wind."}] * 4)
    options = SFTConfig(str(folder), per_device_train_batch_size=1, max_length=32, **OPTIONS)
    return SFTTrainer(model, options, train_dataset=texts, processing_class=tokenizer, callbacks=[callback])


def grpo(model: Any, tokenizer: Any, folder: Path, callback: PublishCallback) -> Any:
    prompts = Dataset.from_list([{"prompt": PROMPT}] * 4)
    options = GRPOConfig(
        str(folder), per_device_train_batch_size=2, num_generations=2, max_completion_length=4, **OPTIONS
    )

    def reward(completions: list[str], **more: object) -> list[float]:
        return [float(position + len(text) % 7) for position, text in enumerate(completions)]

    return GRPOTrainer(model, reward, options, train_dataset=prompts, processing_class=tokenizer, callbacks=[callback])


@pytest.mark.timeout(600)
@pytest.mark.parametrize("make", [sft, pytest.param(grpo, marks=pytest.mark.slow)])
def test_a_trainer_of_trl_publishes_every_step_and_each_version_answers(
    hotslot: BlockingHotslotClient, model_folder: Path, tmp_path: Path, make: Callable[..., Any]
) -> None:
    reference = f"trl/{make.__name__}:train"
    seen: list[tuple[PublishedVersion, str]] = []

    def on_published(published: PublishedVersion) -> None:
        seen.append((published, answer(hotslot, reference, [1, 2, 3])[0]))

    callback = PublishCallback(
        hotslot,
        reference,
        every_steps=1,
        tags_at_end=["final"],
        keep=2,
        base_model=BASE_MODEL,
        on_published=on_published,
    )
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    trainer = make(peft_model(model_folder), tokenizer, tmp_path, callback)
    trainer.train()

    assert [digest for _, digest in seen] == [published.version.digest for published, _ in seen]
    assert len({digest for _, digest in seen}) == STEPS
    assert [published.version.annotations["step"] for published, _ in seen] == ["1", "2", "2"]
    assert all(published.is_ready for published, _ in seen)
    figures = seen[-1][0].version.annotations
    assert {"loss", "epoch", *(["reward"] if make is grpo else [])} <= set(figures)
    assert hotslot.store.resolve("trl/" + make.__name__ + ":final").version.digest == seen[-1][1]
    trainer.model.save_pretrained(tmp_path / "own")
    prompt_ids = tokenizer(PROMPT)["input_ids"]
    assert answer(hotslot, reference, prompt_ids)[1] == peft_answer(model_folder, tmp_path / "own", prompt_ids)
