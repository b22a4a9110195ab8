"""Options of an answer: each parameter of a request can be given on the command line, and a new one is missed here."""

import io
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from hotslot.cli.app import run
from hotslot.codec import from_proto
from hotslot.contract.generation import ChatPrompt, GenerationRequest, Logprobs, Sampling, Stop
from hotslot.errors import QueueFullError
from tests.support.machine_pace import within
from tests.unit.hotslot.conftest import Served

Run = Callable[..., tuple[int, str, str]]

GIVEN: dict[type, dict[str, tuple[list[str], Any]]] = {
    Sampling: {
        "temperature": (["--temperature", "0.5"], 0.5),
        "top_k": (["--top-k", "5"], 5),
        "top_p": (["--top-p", "0.5"], 0.5),
        "min_p": (["--min-p", "0.25"], 0.25),
        "seed": (["--seed", "7"], 7),
        "repetition_penalty": (["--repetition-penalty", "1.5"], 1.5),
        "presence_penalty": (["--presence-penalty", "0.5"], 0.5),
        "frequency_penalty": (["--frequency-penalty", "0.5"], 0.5),
        "logit_bias": (["--logit-bias", "5=-1.5", "--logit-bias", "6=2"], {5: -1.5, 6: 2.0}),
    },
    Stop: {
        "max_tokens": (["-n", "9"], 9),
        "min_tokens": (["--min-tokens", "3"], 3),
        "strings": (["--stop", "a", "--stop", "b"], ("a", "b")),
        "token_ids": (["--stop-token", "4", "--stop-token", "5"], (4, 5)),
        "ignore_eos": (["--ignore-eos"], True),
    },
    Logprobs: {
        "num_alternatives": (["--logprobs", "2"], 2),
        "prompt": (["--prompt-logprobs", "--logprobs", "1"], True),
        "enabled": (["--prompt-logprobs"], False),
    },
    GenerationRequest: {
        "adapters": (["-a", "pirate=0.5"], None),
        "base_only": (["--base-only"], True),
        "request_id": (["--request-id", "mine"], "mine"),
        "priority": (["--priority", "3"], 3),
        "num_choices": (["--num-choices", "2"], 2),
        "skip_special_tokens": (["--keep-special-tokens"], False),
        "min_revision": (["--min-revision", "41"], 41),
    },
}
GIVEN_OTHERWISE = {
    "default_max_tokens": "a constant of the client",
    "prompt": "the argument",
    "sampling": "a table of its own",
    "stop": "a table of its own",
    "logprobs": "a table of its own",
}
CHAT = {"messages", "add_generation_prompt", "continue_final_message", "tools", "template_arguments",
        "allow_special_tokens", "template"}  # fmt: skip
"""Turns, --prefill (two fields), --tools, --template-arg, --allow-special-tokens, --template."""
ROWS = [(kind, name, *row) for kind, table in GIVEN.items() for name, row in table.items()]


@pytest.fixture
def hotslot(served: Served, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    monkeypatch.setenv("HOTSLOT_STORE", served.endpoints[0])
    monkeypatch.setenv("HOTSLOT_WORKER", served.endpoints[1])

    def run_command(*arguments: str, stdin: str = "") -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
        capsys.readouterr()
        code = run(arguments)
        out, err = capsys.readouterr()
        return code, "".join(line for line in out.splitlines(True) if "[info" not in line), err

    return run_command


def test_each_parameter_of_a_request_has_an_option() -> None:
    for kind, table in GIVEN.items():
        otherwise = GIVEN_OTHERWISE.keys() if kind is not Logprobs else set()
        assert {field.name for field in fields(kind)} - otherwise == table.keys()
    assert {field.name for field in fields(ChatPrompt)} == CHAT


@pytest.mark.parametrize("command", [["generate", "hi"], ["run", "pirate", "hi"], ["chat"]], ids=lambda c: c[0])
@pytest.mark.parametrize(("kind", "name", "given", "expected"), ROWS, ids=[f"{r[0].__name__}.{r[1]}" for r in ROWS])
def test_an_option_arrives_in_the_request(
    hotslot: Run, served: Served, command: list[str], kind: type, name: str, given: list[str], expected: Any
) -> None:
    code, _, err = hotslot(*command, *given, stdin="hi\n")
    assert (code, err) == (0, "")
    request = from_proto(GenerationRequest, served.worker.inference.requests[-1])
    part: Any = {Sampling: request.sampling, Stop: request.stop, Logprobs: request.logprobs}.get(kind, request)
    if name == "adapters":
        assert [(one.reference, one.weight) for one in request.adapters][-1] == ("pirate", 0.5)
    else:
        assert getattr(part, name) == expected


def test_a_prompt_comes_from_an_argument_a_file_or_a_pipe(hotslot: Run, served: Served, tmp_path: Path) -> None:
    (tmp_path / "prompt").write_text("from a file")
    table = [
        (["generate", "said"], "said"),
        (["generate"], "from a pipe"),
        (["generate", "-"], "from a pipe"),
        (["generate", "-f", "-"], "from a pipe"),
        (["generate", "-f", str(tmp_path / "prompt")], "from a file"),
        (["run", "pirate", "said", "so"], "said so"),
        (["run", "pirate"], "from a pipe"),
        (["run", "-f", str(tmp_path / "prompt"), "pirate"], "from a file"),
    ]
    for arguments, expected in table:
        assert hotslot(*arguments, stdin="from a pipe")[0] == 0, arguments
        assert served.worker.inference.requests[-1].text == expected
    (tmp_path / "bytes").write_bytes(b"\xff")
    for arguments, part in (
        (["generate", "x", "-f", "-"], "--file: stands beside a prompt"),
        (["generate", "-f", "/nowhere"], "--file: /nowhere: No such file"),
        (["generate", "-f", str(tmp_path / "bytes")], "found the byte 0xff at 0"),
        (["generate", "x", "--logit-bias", "a=1"], "--logit-bias: found 'a=1'"),
        (["generate", "x", "--num-choices", "0"], "--num-choices"),
        (["run", "A", "x"], "invalid reference 'A'"),
        (["run"], "Missing argument 'REF'"),
    ):
        code, out, err = hotslot(*arguments)
        assert (code, out, len(err.splitlines())) == (2, "", 1)
        assert part in err


def test_choices_stand_one_below_the_other(hotslot: Run) -> None:
    assert hotslot("generate", "hi", "--num-choices", "3")[1] == "Hello, sailor\n" * 3


def test_an_error_in_the_middle_of_an_answer_has_a_line_of_its_own(hotslot: Run, served: Served) -> None:
    served.worker.inference.fail_after_pieces = 1, QueueFullError("full", subject="queue")
    code, out, err = hotslot("generate", "hi")
    assert code == 6
    assert out == "Hello\n", "the half line is ended before the error is said"
    assert err.startswith("hotslot: ")


def test_a_chat_obeys_lines_with_a_slash(hotslot: Run, served: Served) -> None:
    lines = "/system Be brief.\nhi\n/show\n/system\nagain\n/help\n/nope\n"
    code, out, err = hotslot("chat", stdin=lines)
    assert (code, out) == (0, "Hello, sailor\n" * 2)
    first, second = served.worker.inference.requests
    assert [(m.role, m.content) for m in first.chat.messages] == [("system", "Be brief."), ("user", "hi")]
    assert [m.role for m in second.chat.messages] == ["user", "assistant", "user"]
    assert "system: Be brief.\nuser: hi\nassistant: Hello, sailor\n" in err
    assert "/system [TEXT]" in err
    assert "unknown command /nope; /help lists them" in err


def test_ctrl_c_in_the_middle_of_an_answer_ends_it_at_once(served: Served, tmp_path: Path) -> None:
    served.worker.inference.hang_after_pieces = 1
    command = [sys.executable, "-m", "hotslot", "generate", "hi", "--worker", served.endpoints[1]]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        served.wait_for(lambda: served.worker.inference.hanging)
        assert process.stdout is not None
        begun = process.stdout.read(len("Hello"))
        with within(2.0):  # a tenth of a second alone
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=60)
    assert (process.returncode, begun + out, err) == (130, "Hello\n", "hotslot: interrupted\n")
