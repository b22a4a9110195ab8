"""The committed demo assets: intact, small, loadable with PEFT, and saying what the reference says."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from deploy.demo.chat import (
    ADAPTERS_DIR,
    load_adapter,
    load_base,
    load_tokenizer,
    prompt_ids,
    sentiment_accuracy,
)
from deploy.demo.examples import SENTIMENT_PROMPT, examples, sentences
from deploy.demo.recipes import RECIPES, Recipe
from deploy.demo.reference import (
    BASE_NAME,
    NUM_GREEDY_TOKENS,
    NUM_LOGIT_POSITIONS,
    REFERENCE_PATH,
    read_reference,
)
from deploy.demo.train import INDEX_PATH, file_sha256
from worker_service.demo_model import BASE_MODEL, FILES, ensure_model

INDEX: dict[str, Any] = json.loads(INDEX_PATH.read_text(encoding="utf-8"))
NAMES = sorted(INDEX["adapters"])
MAX_ADAPTER_BYTES = 2 * 1024 * 1024
MAX_REFERENCE_BYTES = 1_500_000
# A logit may move this much between machines: sums are made in another order.
LOGIT_TOLERANCE = 1e-3
NUM_QUICK_SENTENCES = 24


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    # On a busy machine, threads that wait for each other take many times longer than one that waits for nobody.
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def base_folder() -> Path:
    return ensure_model()


@pytest.fixture(scope="module")
def tokenizer(base_folder: Path) -> Any:
    return load_tokenizer(base_folder)


@pytest.fixture(scope="module")
def reference() -> dict[str, Any]:
    return read_reference()


def test_index_names_every_recipe_and_every_folder() -> None:
    folders = sorted(path.name for path in ADAPTERS_DIR.iterdir() if path.is_dir())
    assert sorted(found.name for found in RECIPES) == NAMES == folders


@pytest.mark.parametrize("name", NAMES)
def test_index_hashes_match_the_files(name: str) -> None:
    files = sorted((ADAPTERS_DIR / name).iterdir())
    assert {path.name: file_sha256(path) for path in files} == INDEX["adapters"][name]["sha256"]


@pytest.mark.parametrize("name", NAMES)
def test_adapter_is_small_and_in_peft_s_own_two_files(name: str) -> None:
    files = sorted((ADAPTERS_DIR / name).iterdir())
    assert [path.name for path in files] == ["adapter_config.json", "adapter_model.safetensors"]
    assert sum(path.stat().st_size for path in files) <= MAX_ADAPTER_BYTES


@pytest.mark.parametrize("name", NAMES)
def test_adapter_config_names_the_public_base_and_no_folder(name: str) -> None:
    config = json.loads((ADAPTERS_DIR / name / "adapter_config.json").read_text(encoding="utf-8"))
    assert config["base_model_name_or_path"] == BASE_MODEL
    assert config["r"] == INDEX["adapters"][name]["rank"]


def test_reference_is_small_and_covers_every_model(reference: dict[str, Any]) -> None:
    assert REFERENCE_PATH.stat().st_size <= MAX_REFERENCE_BYTES
    assert sorted(reference["models"]) == sorted([BASE_NAME, *NAMES])


def test_adapters_change_every_reference_answer(reference: dict[str, Any]) -> None:
    models = reference["models"]
    for number in range(len(models[BASE_NAME])):
        answers = [tuple(entries[number]["greedy_ids"]) for entries in models.values()]
        assert len(set(answers)) == len(answers), models[BASE_NAME][number]["prompt"]


@pytest.mark.parametrize("wanted", RECIPES, ids=lambda wanted: wanted.name)
def test_index_records_the_recipe_as_it_is_now(wanted: Recipe) -> None:
    entry = INDEX["adapters"][wanted.name]
    for key in ("style", "seed", "steps", "batch_size", "learning_rate", "stored_dtype", "demo_prompt"):
        assert entry[key] == getattr(wanted, key), key


@pytest.mark.parametrize("wanted", RECIPES, ids=lambda wanted: wanted.name)
def test_demo_prompts_and_held_out_sentences_are_not_in_the_training_data(wanted: Recipe) -> None:
    seen = {example.prompt for example in examples(wanted.style)}
    held_out = {SENTIMENT_PROMPT.format(sentence=row.sentence) for row in sentences("held_out")}
    assert not seen & (held_out | {found.demo_prompt for found in RECIPES})


@pytest.mark.model
def test_base_folder_is_complete_and_bit_for_bit_the_one_trained_on(base_folder: Path) -> None:
    assert sorted(path.name for path in base_folder.iterdir()) == sorted(FILES)
    assert file_sha256(base_folder / "model.safetensors") == INDEX["base_weights_sha256"]


@pytest.mark.model
@pytest.mark.parametrize("name", [BASE_NAME, *NAMES])
def test_peft_reproduces_the_reference(name: str, base_folder: Path, tokenizer: Any, reference: dict[str, Any]) -> None:
    entry = reference["models"][name][0]
    model = load_base(base_folder) if name == BASE_NAME else load_adapter(base_folder, name)
    ids = prompt_ids(tokenizer, entry["prompt"])
    assert ids == entry["prompt_ids"]
    # Reading the whole answer at once is as strict as decoding it: the first token that differs would show.
    read = torch.tensor([ids + entry["greedy_ids"][:-1]])
    with torch.inference_mode():
        logits_TV = model(input_ids=read, logits_to_keep=NUM_GREEDY_TOKENS).logits[0]
    assert logits_TV.argmax(dim=-1).tolist() == entry["greedy_ids"]
    logits_TV = logits_TV[:NUM_LOGIT_POSITIONS]
    found_TK = logits_TV.gather(1, torch.tensor(entry["top_ids"]))
    torch.testing.assert_close(found_TK, torch.tensor(entry["top_logits"]), atol=LOGIT_TOLERANCE, rtol=0)
    expected_T = torch.tensor(entry["logsumexp"])
    torch.testing.assert_close(logits_TV.logsumexp(dim=-1), expected_T, atol=LOGIT_TOLERANCE, rtol=0)


@pytest.mark.model
def test_sentiment_labels_unseen_sentences_far_better_than_the_base(base_folder: Path, tokenizer: Any) -> None:
    rows = sentences("held_out")[:NUM_QUICK_SENTENCES]
    adapted = sentiment_accuracy(load_adapter(base_folder, "sentiment"), tokenizer, rows)
    base = sentiment_accuracy(load_base(base_folder), tokenizer, rows)
    assert adapted.said >= 0.8
    assert adapted.preferred >= base.preferred + 0.15
