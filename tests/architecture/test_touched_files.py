"""A change of one kind touches few files, all named in CONTRIBUTING.md: those of a change of its kind that is there."""

import re
import subprocess
from pathlib import Path

import pytest

from tests.architecture.test_pages import named_paths

ROOT = Path(__file__).resolve().parents[2]
GENERATED = "hotslot/pb/"
PRODUCT = ("protos", "hotslot", "shared", "controller_service", "gateway_service", "store_service", "worker_service")

PARAMETERS = ("top_k", "min_p", "frequency_penalty", "repetition_penalty")
KIND = ("has_bias", "has_biases", "lora_bias")
"""Words of one kind of adapter: those whose B has a bias."""
SPREAD = {"Generate": "the call that hotslot is about: routing, forwarding and the codec's checks know it"}
"""RPCs that more files name, and why."""
RPCS = sorted({
    rpc
    for path in (ROOT / "protos").rglob("*.proto")
    for rpc in re.findall(r"^ *rpc (\w+)", path.read_text(encoding="utf-8"), re.MULTILINE)
} - SPREAD.keys())  # fmt: skip
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


def missing_from(title: str, found: set[str]) -> set[str]:
    """Files that the steps under a title of CONTRIBUTING.md name neither by themselves nor by their folder."""
    named = set(named_paths((ROOT / "CONTRIBUTING.md").read_text().split(f"\n## {title}\n")[1].split("\n## ")[0]))
    folders = tuple(path for path in named if path.endswith("/"))
    return {name for name in found if name not in named and not name.startswith(folders)}


@pytest.mark.parametrize("parameter", PARAMETERS)
def test_a_sampling_parameter_is_named_in_the_files_that_are_listed(parameter: str) -> None:
    found = product_files_with(parameter)
    assert found
    assert not missing_from("Add a sampling parameter", found)
    assert len(found) <= MAX_SAMPLING_FILES


def test_a_kind_of_adapter_is_named_in_the_files_that_are_listed() -> None:
    found = product_files_with(*KIND)
    assert found
    assert not missing_from("Add an adapter kind", found)


@pytest.mark.parametrize("rpc", RPCS)
def test_an_rpc_is_named_in_few_files_and_in_those_that_are_listed(rpc: str) -> None:
    found = product_files_with(rpc, f"{rpc}Request", f"{rpc}Response")
    assert len(RPCS) > 40
    assert any(name.endswith(".proto") for name in found)
    assert not missing_from("Add an RPC", found)
    assert len(found) <= MAX_RPC_FILES, sorted(found)


def test_a_file_that_no_step_names_is_seen() -> None:
    assert missing_from("Add a sampling parameter", {"hotslot/ids.py", "hotslot/contract/generation.py"}) == {
        "hotslot/ids.py"
    }
