"""What trainers hand over by mistake: each is refused by name, before anything is sent, and nothing is guessed."""

import json
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig

from hotslot import BlockingStoreClient, FieldViolation, RawTensor
from hotslot.clients.publication_fields import PUSH_ARGUMENTS, annotation_texts, naming, version_request
from hotslot.clients.trained import config_json, trained_files
from hotslot.errors import InvalidReferenceError, InvalidRequestError
from hotslot.references import parse_reference

NAME = "base_model.model.layer.lora_A.weight"
CONFIG = {"peft_type": "LORA", "r": 1}
ROUND: dict[str, Any] = {}
ROUND["again"] = ROUND


@pytest.mark.parametrize(
    ("weights", "named"),
    [
        ({1: torch.ones(1)}, "1"),
        ({1: torch.ones(1), "1": torch.ones(1)}, "1"),
        ({"__metadata__": torch.ones(1)}, "__metadata__"),
        ({NAME: torch.ones(2, device="meta")}, NAME),
        ({NAME: torch.eye(3).to_sparse()}, NAME),
        ({NAME: RawTensor(memoryview(b"abcdef")[::2], (3,), "U8")}, NAME),
        ({NAME: RawTensor("text", (4,), "U8")}, NAME),  # type: ignore[arg-type]
        ({NAME: RawTensor(b"abcd", ("four",), "U8")}, NAME),  # type: ignore[arg-type]
        (b"", "weights"),
        (memoryview(b"abcdef")[::2], "weights"),
    ],
)
def test_weights_that_no_file_can_hold_are_refused_by_name(weights: object, named: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        trained_files(weights, CONFIG, "")
    assert len(caught.value.fields) == 1
    assert named in caught.value.fields[0].field


@pytest.mark.parametrize("config", [LoraConfig, "\ud800", ROUND, {"r": object()}, None, 5, ["r"]])
def test_a_config_that_is_none_is_refused(config: object) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        config_json(config)
    assert [field.field for field in caught.value.fields] == ["config"]


def test_numbers_of_numpy_are_numbers_of_a_config() -> None:
    written = config_json({"r": np.int64(8), "lora_alpha": np.float32(0.5), "use_rslora": np.bool_(True)})
    assert json.loads(written) == {"r": 8, "lora_alpha": 0.5, "use_rslora": True}


def test_a_figure_is_an_annotation_whatever_library_it_is_of() -> None:
    figures = {"loss": torch.tensor(0.5), "step": torch.tensor(3), "done": np.bool_(True), "mean": np.array(1.5)}
    assert annotation_texts(figures) == {"loss": "0.5", "step": "3", "done": "true", "mean": "1.5"}


@pytest.mark.parametrize(
    "figure", [10**5_000, torch.ones(2), torch.ones((), device="meta"), None, {"a": 1}], ids=range(5)
)
def test_an_annotation_that_is_no_figure_is_refused_by_its_name(figure: object) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        version_request("bot", annotations={"loss": figure})
    assert "loss" in caught.value.fields[0].field


@pytest.mark.parametrize("reference", [None, 5, b"bot:train", ("bot", "train")])
def test_a_reference_that_is_no_text_is_refused(reference: Any) -> None:
    with pytest.raises(InvalidRequestError, match="reference: found"):
        version_request(reference)
    with pytest.raises(InvalidReferenceError, match="expected a text"):
        parse_reference(reference)


WEIGHTS = {NAME: torch.ones(1, 1)}
WRONG_ARGUMENTS: dict[str, tuple[dict[str, Any], str]] = {
    "metadata": ({"metadata": {"run": object()}}, "metadata['run']"),
    "metadata that is none": ({"metadata": 5}, "metadata"),
    "a figure without a value": ({"metadata": {"loss": torch.ones((), device="meta")}}, "metadata['loss']"),
    "keep": ({"keep": "five"}, "keep"),
    "tags": ({"tags": [3]}, "tags[0]"),
    "labels": ({"labels": {"a": 1}}, "labels['a']"),
    "tag_etag": ({"tag_etag": 7}, "tag_etag"),
    "base_model": ({"base_model": None}, "base_model"),
    "adapter": ({"adapter": 3}, "adapter"),
}


@pytest.mark.parametrize("name", WRONG_ARGUMENTS)
def test_an_error_names_the_argument_that_the_caller_used(name: str) -> None:
    arguments, named = WRONG_ARGUMENTS[name]
    with BlockingStoreClient("127.0.0.1:1") as store, pytest.raises(InvalidRequestError) as caught:
        store.publish(WEIGHTS, CONFIG, "bot", **arguments)
    assert [field.field for field in caught.value.fields] == [named]
    assert "metadata" in named or "annotations" not in str(caught.value)


def test_a_push_names_its_own_arguments(tmp_path: Any) -> None:
    wrong: dict[str, Any] = {"annotations": {"run": object()}, "keep": "five"}
    with BlockingStoreClient("127.0.0.1:1") as store, pytest.raises(InvalidRequestError) as caught:
        store.push(tmp_path, "bot", **wrong)
    assert [field.field for field in caught.value.fields] == ["annotations['run']", "keep"]


@pytest.mark.parametrize(
    ("sent", "named"),
    [("version.annotations", "annotations"), ("keep_versions", "keep"), ("files[0].path", "files[0].path"), ("", "")],
)
def test_what_the_store_refuses_is_named_so_too(sent: str, named: str) -> None:
    with pytest.raises(InvalidRequestError) as caught, naming(PUSH_ARGUMENTS):
        raise InvalidRequestError([FieldViolation(sent, "found none")])
    assert [field.field for field in caught.value.fields] == [named]
