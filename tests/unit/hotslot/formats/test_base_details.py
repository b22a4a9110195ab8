"""Details of a base model, and what lies beside weights: how folders of every kind are read."""

import json
from pathlib import Path
from typing import Any

import pytest
import transformers

from hotslot.formats.base_details import BaseDetails, details_from_json
from hotslot.formats.base_model import spec_from_folder
from hotslot.formats.companions import Companions, companions_from_json, read_companions
from hotslot.formats.strict_json import StrictJsonError
from tests.support.tiny_tokenizers import byte_tokenizer


def written(folder: Path, **files: Any) -> Companions:
    for name, content in files.items():
        path = folder / (name.replace("__", "."))
        path.write_text(content if isinstance(content, str) else json.dumps(content))
    return read_companions(folder)


def test_what_transformers_writes_is_read(tmp_path: Path) -> None:
    byte_tokenizer(extra=["<x>"]).save_pretrained(tmp_path)
    transformers.GenerationConfig(eos_token_id=[258, 259]).save_pretrained(tmp_path)
    found = read_companions(tmp_path)
    assert (found.end_token_ids, found.end_token) == ((258, 259), "<|im_end|>")
    assert found.added_tokens["<x>"] == 260
    assert found.chat_template_digest.startswith("sha256:")


@pytest.mark.parametrize(
    ("files", "token_id"),
    [
        ({"tokenizer_config__json": {"added_tokens_decoder": {"260": {"content": "<x>"}}}}, 260),
        ({"added_tokens__json": {"<x>": 260}}, 260),
        ({"tokenizer__json": {"added_tokens": [{"id": 260, "content": "<x>"}]}}, 260),
        ({"tokenizer__json": {"added_tokens": [{"id": "260", "content": "<x>"}, 3]}}, None),
        ({"tokenizer_config__json": {"added_tokens_decoder": {"x": {"content": "<x>"}, "1": 2}}}, None),
        ({"tokenizer__json": "{"}, None),
    ],
)
def test_added_tokens_are_found_wherever_they_are_written(
    files: dict[str, Any], token_id: int | None, tmp_path: Path
) -> None:
    assert written(tmp_path, **files).added_tokens.get("<x>") == token_id


def test_one_template_is_the_same_wherever_it_is_written(tmp_path: Path) -> None:
    text = "{{ messages }}\n"
    forms: list[dict[str, Any]] = [
        {"chat_template__jinja": text},
        {"chat_template__jinja": text.replace("\n", "\r\n")},
        {"tokenizer_config__json": {"chat_template": text}},
        {"tokenizer_config__json": {"chat_template": [{"name": "default", "template": text.strip()}]}},
        {"chat_template__json": {"chat_template": text}},
    ]
    digests = set()
    for number, files in enumerate(forms):
        folder = tmp_path / str(number)
        folder.mkdir()
        digests.add(written(folder, **files).chat_template_digest)
    assert len(digests) == 1
    assert digests != {""}


@pytest.mark.parametrize("value", [258, [258], [258, 258, -1, "x", None, True]])
def test_end_tokens_are_one_or_several(value: Any, tmp_path: Path) -> None:
    assert written(tmp_path, generation_config__json={"eos_token_id": value}).end_token_ids == (258,)


def test_details_survive_their_text(tmp_path: Path) -> None:
    companions = written(
        tmp_path,
        added_tokens__json={"<x>": 260, "ü\u2028": 261},
        generation_config__json={"eos_token_id": 2},
        special_tokens_map__json={"eos_token": {"content": "</s>"}},
        chat_template__jinja="x",
    )
    details = BaseDetails(frozenset({"a.b", "c"}), companions)
    assert details_from_json(details.to_json()) == details
    assert companions_from_json(companions.to_json().encode()) == companions
    assert details.says_more_than(None)
    assert details.says_more_than(BaseDetails())
    assert not details.says_more_than(details)


@pytest.mark.parametrize(
    "text", ["[]", "{", '{"bias_paths": 1}', '{"bias_paths": [1]}', '{"bias_paths": [], "x": NaN}']
)
def test_what_is_no_details_is_refused(text: str) -> None:
    with pytest.raises(StrictJsonError):
        details_from_json(text)


@pytest.mark.parametrize("has_bias", [False, True])
def test_a_base_models_folder_gives_its_biases_and_ends(has_bias: bool, tmp_path: Path) -> None:
    config = transformers.LlamaConfig(
        vocab_size=32, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        attention_bias=has_bias, eos_token_id=[3, 5],
    )  # fmt: skip
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path)
    (tmp_path / "generation_config.json").unlink()
    details = spec_from_folder(tmp_path, "tiny").details
    assert details is not None
    assert details.companions.end_token_ids == (3, 5)
    parts = ("q_proj", "k_proj", "v_proj", "o_proj")
    assert details.bias_paths == {f"model.layers.0.self_attn.{part}" for part in parts if has_bias}


def test_details_that_are_too_large_lose_their_tokens_first() -> None:
    tokens = {f"<{'x' * 500}{number}>": number for number in range(4_000)}
    large = BaseDetails(frozenset({"a"}), Companions(end_token="<e>", added_tokens=tokens))
    assert large.within_bounds() == BaseDetails(frozenset({"a"}), Companions(end_token="<e>"))
    assert BaseDetails(frozenset(tokens)).within_bounds() is None
