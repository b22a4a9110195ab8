"""What commands print with --json is JSON, whatever numbers are in it."""

import json
import math
import os
import subprocess
import sys
from itertools import starmap
from typing import Any

import pytest

from hotslot.cli.output import print_document, print_event
from hotslot.contract.generation import Chunk, TokenAlternative, TokenLogprob

CHUNK = Chunk(
    0,
    "x",
    (1,),
    (TokenLogprob(1, math.nan, tuple(starmap(TokenAlternative, [(2, -math.inf), (3, math.inf), (4, -0.5)]))),),
)


def refuse(constant: str) -> Any:
    raise AssertionError(f"{constant} is no JSON")


def test_numbers_that_json_does_not_have_are_spelled_out(capsys: pytest.CaptureFixture[str]) -> None:
    print_event("chunk", CHUNK)
    (token,) = json.loads(capsys.readouterr().out, parse_constant=refuse)["logprobs"]
    assert (token["logprob"], token["alternatives"]) == ("NaN", [[2, "-Infinity"], [3, "Infinity"], [4, -0.5]])
    print_document({"weights": [math.nan, 1.0], math.inf: -math.inf})
    assert json.loads(capsys.readouterr().out, parse_constant=refuse) == {"weights": ["NaN", 1.0], "inf": "-Infinity"}


@pytest.mark.parametrize("arguments", [["version"], ["--help"]], ids=["print", "rich"])
def test_a_reader_that_has_seen_enough_is_no_failure(arguments: list[str]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        ended = subprocess.run(
            [sys.executable, "-m", "hotslot", *arguments],
            stdout=writer, stderr=subprocess.PIPE, timeout=60, check=False, text=True,
        )  # fmt: skip
    finally:
        os.close(writer)
    assert (ended.returncode, ended.stderr) == (0, "")
