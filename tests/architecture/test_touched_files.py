"""A change of one kind touches few files: those that name what is there of its kind already."""

import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
GENERATED = "hotslot/pb/"
PRODUCT = ("protos", "hotslot", "shared", "gateway_service", "store_service", "worker_service")

PARAMETERS = ("top_k", "min_p", "frequency_penalty", "repetition_penalty")
SAMPLING_FILES = {
    "protos/hotslot/worker/v1/inference.proto": "the field",
    "hotslot/contract/generation.py": "its twin; the codec needs nothing, unless its default is not zero",
    "hotslot/codec/table.py": "where unset or zero means another default",
    "hotslot/cli/generate_commands.py": "the option, if people want it on the command line",
    "worker_service/front/validation.py": "its range",
    "worker_service/model/sampling.py": "its effect",
    "gateway_service/request_bodies.py": "its name in the HTTP dialects, as the next two",
    "gateway_service/parameters.py": "",
    "gateway_service/translation.py": "",
}
KIND = ("has_bias", "has_biases", "lora_bias")
"""Words of one kind of adapter: those whose B has a bias."""
KIND_FILES = {
    "protos/hotslot/store/v1/adapter_store.proto": "what a manifest says of it",
    "hotslot/formats/manifest.py": "the same, as its canonical bytes have it",
    "hotslot/cli/rendering.py": "for people",
    "store_service/admission/config_fields.py": "fields of adapter_config.json",
    "store_service/admission/config.py": "their reading",
    "store_service/admission/lora_settings.py": "their meaning",
    "store_service/admission/checks.py": "what its tensors must be",
    "store_service/admission/normalise.py": "its weights as they are stored",
    "worker_service/model/weights.py": "its weights as they are read",
    "worker_service/model/slot_writer.py": "its weights in slots",
}
RPCS = {
    "SetAdapterPolicy": "a call of the store",
    "DrainWorker": "a call of a worker",
    "PickWorkers": "a call of placement",
}
MAX_SAMPLING_FILES = 8
MAX_RPC_FILES = 12


def product_files_with(*words: str) -> set[str]:
    """Files of the product that have any of these words, without those that are generated."""
    pattern = [part for word in words for part in ("-e", word)]
    found = subprocess.run(
        ["git", "grep", "--untracked", "-lw", *pattern, "--", *(f"{name}/" for name in PRODUCT)],
        cwd=ROOT, capture_output=True, text=True, check=False,
    ).stdout.split()  # fmt: skip
    return {name for name in found if not name.startswith(GENERATED) and name.endswith((".py", ".proto"))}


@pytest.mark.parametrize("parameter", PARAMETERS)
def test_a_sampling_parameter_is_named_in_the_files_that_are_listed(parameter: str) -> None:
    found = product_files_with(parameter)
    assert found
    assert found <= set(SAMPLING_FILES)
    assert len(found) <= MAX_SAMPLING_FILES


def test_a_kind_of_adapter_is_named_in_the_files_that_are_listed() -> None:
    found = product_files_with(*KIND)
    assert found
    assert found <= set(KIND_FILES)


@pytest.mark.parametrize("rpc", RPCS)
def test_an_rpc_is_named_in_few_files(rpc: str) -> None:
    found = product_files_with(rpc, f"{rpc}Request", f"{rpc}Response")
    assert any(name.endswith(".proto") for name in found)
    assert len(found) <= MAX_RPC_FILES, sorted(found)
