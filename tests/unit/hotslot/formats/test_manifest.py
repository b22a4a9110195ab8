"""Manifests: what their bytes are, and what is read back from them."""

import json
from dataclasses import replace

import pytest

from hotslot.errors import InvalidAdapterError
from hotslot.formats.manifest import AdapterModule, Manifest, parse_manifest
from hotslot.ids import digest_of

PLAIN = Manifest(digest_of(b"base"), digest_of(b"weights"), 100, "F32", (AdapterModule("a.q_proj", 4, 0.1),))
WITH_BIAS = replace(PLAIN, modules=(*PLAIN.modules, AdapterModule("a.v_proj", 4, 2.0, has_bias=True)))


def test_a_version_without_biases_has_the_bytes_that_it_always_had() -> None:
    document = json.loads(PLAIN.canonical_json())
    assert document["format"] == "hotslot.manifest/1"
    assert document["modules"] == [["a.q_proj", 4, 0.1]]
    assert PLAIN.digest == "sha256:8628b47db3b4a98ed383f11de67f1eb78348d6e521595eac1a7b55138bcac54c"


@pytest.mark.parametrize("manifest", [PLAIN, WITH_BIAS], ids=["plain", "with a bias"])
def test_what_is_written_is_read_back(manifest: Manifest) -> None:
    assert parse_manifest(manifest.canonical_json(), manifest.digest) == manifest


def test_a_bias_takes_a_rank_more_in_slots() -> None:
    assert (PLAIN.ranks_in_slots, WITH_BIAS.ranks_in_slots, WITH_BIAS.max_rank) == (4, 5, 4)


def test_a_bias_is_said_of_each_module_in_a_format_of_its_own() -> None:
    document = json.loads(WITH_BIAS.canonical_json())
    assert document["format"] == "hotslot.manifest/2"
    assert document["modules"] == [["a.q_proj", 4, 0.1, False], ["a.v_proj", 4, 2.0, True]]


@pytest.mark.parametrize(
    "change",
    [{"format": "hotslot.manifest/99"}, {"modules": [["a", 4, 1.0, True, 0]]}, {"modules": [["a", 0, 1.0]]}],
    ids=["another format", "more than is known", "no rank"],
)
def test_what_is_not_understood_is_refused(change: dict[str, object]) -> None:
    data = json.dumps(json.loads(WITH_BIAS.canonical_json()) | change).encode()
    with pytest.raises(InvalidAdapterError, match="different versions"):
        parse_manifest(data, digest_of(data))
