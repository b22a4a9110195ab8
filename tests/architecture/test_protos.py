"""The contracts say what they mean: every RPC has its meaning and only errors that exist."""

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from hotslot.rpc.status import STATUS_TABLE
from protos.check_breaking import ACCEPTED, Accepted, complaints, differences

ROOT = Path(__file__).resolve().parents[2]
PROTOS = sorted((ROOT / "protos").rglob("*.proto"))
STATUSES = {(row.code.name, row.reason) for row in STATUS_TABLE}
CODES = {code for code, _ in STATUSES}


class Rpc(NamedTuple):
    """One RPC as its file describes it."""

    name: str
    meaning: str
    errors: str


def rpcs() -> list[Rpc]:
    """Every RPC with the comment above it."""
    found = []
    pattern = re.compile(r"((?:^ *//.*\n)*)^ *rpc (\w+)", re.MULTILINE)
    for path in PROTOS:
        for comment, name in pattern.findall(path.read_text(encoding="utf-8")):
            text = " ".join(line.strip().removeprefix("//").strip() for line in comment.splitlines())
            meaning, _, errors = text.partition("Errors:")
            found.append(Rpc(f"{path.stem}.{name}", meaning.strip(), errors.strip()))
    return found


def test_there_are_rpcs_to_check() -> None:
    assert len(rpcs()) > 30


@pytest.mark.parametrize("rpc", rpcs(), ids=lambda rpc: rpc.name)
def test_an_rpc_says_what_it_does(rpc: Rpc) -> None:
    assert rpc.meaning.endswith("."), f"{rpc.name}: say in a sentence above it what it does"


@pytest.mark.parametrize("rpc", rpcs(), ids=lambda rpc: rpc.name)
def test_an_rpc_names_only_errors_that_the_table_knows(rpc: Rpc) -> None:
    code = ""
    for token in re.findall(r"\b[A-Z][A-Z_]{4,}\b", re.sub(r"\([^)]*\)", "", rpc.errors)):
        if code and (code, token) in STATUSES:
            continue
        assert token in CODES, f"{rpc.name}: {code} {token} is not a row of STATUS_TABLE"
        code = token


def test_generated_stubs_are_current() -> None:
    command = [sys.executable, str(ROOT / "protos" / "generate.py"), "--check"]
    checked = subprocess.run(command, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stderr


def test_the_contract_breaks_nothing_that_was_released_but_what_is_listed_with_its_reason() -> None:
    assert complaints(differences()) == []
    assert all(row.reason for row in ACCEPTED)


BREAKS = {
    "a field that goes": ("  string request_id = 9;\n", "", "FIELD_NO_DELETE"),
    "a field of another type": ("int32 priority = 10;", "string priority = 10;", "FIELD_SAME_TYPE"),
    "a field of another name": ("int32 priority = 10;", "int32 rank = 10;", "FIELD_SAME_NAME"),
    "an RPC that goes": (
        "  rpc GetModelInfo(GetModelInfoRequest) returns (GetModelInfoResponse);\n",
        "",
        "RPC_NO_DELETE",
    ),
    "a stream that is none": ("returns (stream GenerateResponse)", "returns (GenerateResponse)", "RPC_SAME_SERVER"),
}


@pytest.mark.parametrize("case", BREAKS)
def test_a_break_of_the_released_contract_is_found(tmp_path: Path, case: str) -> None:
    found, instead, rule = BREAKS[case]
    shutil.copy(ROOT / "buf.yaml", tmp_path)
    shutil.copytree(ROOT / "protos", tmp_path / "protos", ignore=shutil.ignore_patterns("*.py*", "*.binpb"))
    path = tmp_path / "protos" / "hotslot" / "worker" / "v1" / "inference.proto"
    text = path.read_text(encoding="utf-8")
    assert found in text
    path.write_text(text.replace(found, instead), encoding="utf-8")
    assert any(rule in line for line in complaints(differences(tmp_path)))


def test_an_accepted_difference_that_is_gone_is_told() -> None:
    accepted = (*ACCEPTED, Accepted("RPC_NO_DELETE", "anything", "for this test"))
    assert complaints(differences(), accepted) == ["nothing is accepted by RPC_NO_DELETE: anything; remove the row"]
