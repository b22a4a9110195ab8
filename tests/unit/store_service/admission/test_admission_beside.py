"""Files beside an adapter's weights: tokens that end its answers, warnings of what is not used, and several files."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import save_file

from hotslot.clients.checkpoint import files_beside
from hotslot.formats.base_details import BaseDetails
from hotslot.formats.base_spec import BaseSpec
from hotslot.formats.companions import SUMMARY_FILE, Companions, read_companions
from hotslot.formats.manifest import Manifest, parse_manifest
from store_service.admission.__main__ import checkpoint_of_folder
from store_service.admission.admit import Checkpoint, Verdict, admit
from store_service.admission.settings import AdmissionLimits
from tests.support.checkpoints import Draft, adapter, base_spec

BASE = Companions(
    files=("generation_config.json", "tokenizer.json", "chat_template.jinja"),
    end_token_ids=(2,),
    end_token="</s>",
    chat_template_digest="sha256:base",
    added_tokens={"</s>": 2, "<|end|>": 5},
)


def base(companions: Companions | None = BASE) -> BaseSpec:
    """The small base, of 16 tokens, with what lies beside its weights."""
    details = BaseDetails(frozenset(), companions) if companions is not None else None
    return replace(base_spec(), details=details)


def check(found: Companions, folder: Path, spec: BaseSpec | None = None) -> Verdict:
    checkpoint = adapter().write(folder)
    path = folder / SUMMARY_FILE
    path.write_text(found.to_json())
    return admit(Checkpoint({**checkpoint.files, SUMMARY_FILE: path}), spec or base(), AdmissionLimits())


def codes(verdict: Verdict) -> list[str]:
    return [warning.code for warning in verdict.warnings]


@pytest.mark.parametrize(
    ("found", "ends", "warned"),
    [
        (Companions(), (), []),
        (BASE, (), []),
        (replace(BASE, end_token_ids=(5,)), (5,), []),
        (replace(BASE, end_token_ids=(2, 7)), (7,), []),
        (replace(BASE, end_token="<|end|>", end_token_ids=()), (5,), []),
        (replace(BASE, end_token="<|end|>", end_token_ids=(9,)), (5, 9), []),
        (replace(BASE, end_token_ids=(16, 3)), (3,), ["END_TOKEN_NOT_IN_BASE"]),
        (replace(BASE, end_token="<new>"), (), ["END_TOKEN_NOT_IN_BASE"]),
        (
            replace(BASE, end_token="<new>", added_tokens={"<new>": 16}),
            (),
            ["ADDED_TOKENS_NOT_USED", "END_TOKEN_NOT_IN_BASE"],
        ),
        (replace(BASE, added_tokens={**BASE.added_tokens, "<x>": 15}), (), ["ADDED_TOKENS_NOT_USED"]),
        (replace(BASE, added_tokens={"</s>": 3}), (), ["ADDED_TOKENS_NOT_USED"]),
        (replace(BASE, added_tokens={"</s>": 2}), (), []),
        (replace(BASE, chat_template_digest="sha256:other"), (), ["CHAT_TEMPLATE_NOT_USED"]),
        (replace(BASE, chat_template_digest=""), (), []),
    ],
)
def test_what_differs_is_said_and_end_tokens_are_part_of_the_version(
    found: Companions, ends: tuple[int, ...], warned: list[str], tmp_path: Path
) -> None:
    verdict = check(found, tmp_path)
    assert verdict.require().end_token_ids == ends
    assert codes(verdict) == warned


@pytest.mark.parametrize(("known", "ends"), [(None, ()), (Companions(end_token_ids=(2,)), (5,))])
def test_a_base_that_was_registered_without_them_is_said_to_be(
    known: Companions | None, ends: tuple[int, ...], tmp_path: Path
) -> None:
    verdict = check(replace(BASE, end_token_ids=(5,)), tmp_path, base(known))
    assert codes(verdict) == ["BESIDE_NOT_COMPARED"]
    assert verdict.require().end_token_ids == ends


def test_a_version_without_end_tokens_keeps_its_digest_and_one_with_some_has_another(tmp_path: Path) -> None:
    plain = admit(adapter().write(tmp_path / "plain"), base_spec(), AdmissionLimits()).require()
    same = check(BASE, tmp_path / "same").require()
    other = check(replace(BASE, end_token_ids=(5,)), tmp_path / "other").require()
    assert plain.digest == same.digest
    assert plain.digest != other.digest
    assert plain.weights_digest == other.weights_digest
    assert b"end_token_ids" not in plain.canonical_json()


@pytest.mark.parametrize("has_bias", [False, True])
def test_end_tokens_survive_the_manifests_text(has_bias: bool, tmp_path: Path) -> None:
    found = check(replace(BASE, end_token_ids=(5, 7)), tmp_path).require()
    manifest = replace(found, modules=tuple(replace(module, has_bias=has_bias) for module in found.modules))
    assert parse_manifest(manifest.canonical_json(), manifest.digest) == manifest
    assert isinstance(manifest, Manifest)


def test_a_summary_that_cannot_be_read_is_a_violation(tmp_path: Path) -> None:
    files = dict(adapter().write(tmp_path).files)
    files[SUMMARY_FILE] = tmp_path / SUMMARY_FILE
    for text in ("[]", "{", json.dumps({"files": 3}), json.dumps({"files": [], "x": "y" * 2**21})):
        files[SUMMARY_FILE].write_text(text)
        verdict = admit(Checkpoint(files), base(), AdmissionLimits())
        assert [violation.code for violation in verdict.violations] == ["BAD_COMPANIONS"]


def sharded(folder: Path, num_files: int, draft: Draft) -> None:
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps(draft.config))
    names = list(draft.tensors)
    for number in range(num_files):
        part: dict[str, Any] = {name: draft.tensors[name] for name in names[number::num_files]}
        save_file(part, folder / f"adapter_model-{number + 1:05}-of-{num_files:05}.safetensors")


@pytest.mark.parametrize("num_files", [1, 2, 3, 8])
def test_an_adapter_in_several_files_is_the_same_version(num_files: int, tmp_path: Path) -> None:
    draft = adapter()
    sharded(tmp_path / "sharded", num_files, draft)
    written, expected = bytearray(), bytearray()
    found = admit(checkpoint_of_folder(tmp_path / "sharded"), base_spec(), AdmissionLimits(), written.extend)
    whole = admit(draft.write(tmp_path / "whole"), base_spec(), AdmissionLimits(), expected.extend)
    assert found.require() == whole.require()
    assert written == expected


def test_shards_that_are_missing_double_or_of_two_sets_are_refused(tmp_path: Path) -> None:
    sharded(tmp_path / "a", 3, adapter())
    first = tmp_path / "a" / "adapter_model-00001-of-00003.safetensors"
    second = tmp_path / "a" / "adapter_model-00002-of-00003.safetensors"

    def violations() -> list[tuple[str, str]]:
        verdict = admit(checkpoint_of_folder(tmp_path / "a"), base_spec(), AdmissionLimits())
        return [(violation.code, violation.subject) for violation in verdict.violations]

    data = second.read_bytes()
    second.write_bytes(first.read_bytes())
    assert violations()[0][0] == "DUPLICATE_TENSOR"
    second.unlink()
    assert violations() == [("MISSING_FILE", second.name)]
    second.write_bytes(data)
    assert violations() == []
    (tmp_path / "a" / "adapter_model-00001-of-00002.safetensors").write_bytes(data)
    assert violations()[0][0] == "MISSING_FILE"


DAMAGED: dict[str, tuple[str, bytes]] = {
    "cut off": ("generation_config.json", b'{"eos_token_id": [2'),
    "empty": ("tokenizer.json", b""),
    "a list": ("tokenizer_config.json", b"[1]"),
    "not UTF-8": ("chat_template.jinja", b"{{ \xff }}"),
    "nested too deep": ("added_tokens.json", b"[" * 100_000),
    "an end token of another form": ("generation_config.json", b'{"eos_token_id": {"id": 2}}'),
    "an end token below zero": ("generation_config.json", b'{"eos_token_id": [2, -1]}'),
    "an end token that is no text": ("tokenizer_config.json", b'{"eos_token": 3}'),
    "a template that is none": ("tokenizer_config.json", b'{"chat_template": 3}'),
}


@pytest.mark.parametrize("is_pushed", [False, True])
@pytest.mark.parametrize("case", DAMAGED)
def test_a_file_beside_the_weights_that_cannot_be_used_is_named(case: str, is_pushed: bool, tmp_path: Path) -> None:
    name, data = DAMAGED[case]
    adapter().write(tmp_path)
    (tmp_path / name).write_bytes(data)
    checkpoint = checkpoint_of_folder(tmp_path)
    if is_pushed:
        with files_beside(tmp_path) as (summary,):
            files = {**checkpoint.files, SUMMARY_FILE: summary.local}
            verdict = admit(Checkpoint(files), base(), AdmissionLimits())
    else:
        verdict = admit(checkpoint, base(), AdmissionLimits())
    assert verdict.violations == ()
    assert [warning.code for warning in verdict.warnings] == ["BESIDE_NOT_READABLE"]
    assert name in verdict.warnings[0].message
    assert len(verdict.warnings[0].message) < 400


def test_the_checker_without_a_server_reads_what_lies_beside(tmp_path: Path) -> None:
    adapter().write(tmp_path)
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [2, 6]}')
    verdict = admit(checkpoint_of_folder(tmp_path), base(), AdmissionLimits())
    assert verdict.require().end_token_ids == (6,)
    assert read_companions(tmp_path).files == ("generation_config.json",)
