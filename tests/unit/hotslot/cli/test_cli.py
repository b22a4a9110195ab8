"""The `hotslot` command against a store in memory and a fake worker on real sockets."""

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hotslot.cli.app import run
from hotslot.contract.generation import DEFAULT_MAX_TOKENS
from hotslot.contract.store_status import StorePart
from hotslot.errors import (
    BaseModelMismatchError,
    DrainingError,
    InvalidAdapterError,
    PromptTooLongError,
    QueueFullError,
    RankTooLargeError,
    Violation,
)
from hotslot.ids import DEFAULT_TENANT
from hotslot.pb.hotslot.placement.v1 import placement_pb2
from hotslot.pb.hotslot.store.v1 import adapter_store_pb2 as store_pb2
from tests.unit.hotslot.conftest import Served

DIGEST = "sha256:" + "ab" * 32
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def hotslot(served: Served, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command with the fakes as its endpoints; returns exit code, stdout, stderr."""
    monkeypatch.setenv("HOTSLOT_STORE", served.endpoints[0])
    monkeypatch.setenv("HOTSLOT_WORKER", served.endpoints[1])

    def run_command(*arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = run(arguments)
        out, err = capsys.readouterr()
        # The fakes' servers log to stdout, in another thread.
        return code, "".join(line for line in out.splitlines(True) if "[info" not in line), err

    return run_command


def test_ls_prints_an_aligned_table_with_short_digests(hotslot: Run) -> None:
    code, out, err = hotslot("ls")
    assert (code, err) == (0, "")
    header, _, first, *_ = out.splitlines()
    assert header.split()[:4] == ["NAME", "TAGS", "VERSIONS", "NEWEST"]
    assert first.startswith("adapter-0 ")
    assert "1.2 MB" in first
    assert "sha256:" not in out
    assert all(line == line.rstrip() for line in out.splitlines())


def test_ls_as_json_has_full_digests_and_a_stable_shape(hotslot: Run) -> None:
    code, out, _ = hotslot("ls", "--json")
    (first, *others) = json.loads(out)["adapters"]
    assert code == 0
    assert len(others) == 4
    assert first["latest_version"]["digest"].startswith("sha256:")
    assert sorted(first) == [
        "create_time", "delete_time", "etag", "labels", "latest_version", "name", "num_versions", "purge_time",
        "tags", "update_time",
    ]  # fmt: skip


def test_push_says_which_version_it_became(hotslot: Run, served: Served, adapter_folder: Path) -> None:
    code, out, err = hotslot("push", str(adapter_folder), "acme/pirate", "--base", "org/base", "--label", "team=a")
    assert code == 0
    assert out.startswith("acme/pirate:latest is version sha256:")
    assert "sent 1.5 MB of 1.5 MB" in err
    (request,) = served.store.catalog.calls.create
    assert (request.base_model, dict(request.labels)) == ("org/base", {"team": "a"})


@pytest.mark.parametrize("as_json", [False, True])
def test_a_refused_adapter_lists_every_violation(
    hotslot: Run, served: Served, adapter_folder: Path, as_json: bool
) -> None:
    violations = tuple(
        Violation("SHAPE_MISMATCH", f"t{i}", "[1]", "[2]", f"t{i}: found [{1 + i // 29}],\nexpected [2]")
        for i in range(30)
    )
    served.store.catalog.refuse = InvalidAdapterError(violations)
    served.store.catalog.violations = violations
    code, out, err = hotslot("push", str(adapter_folder), "pirate", *(["--json"] if as_json else []))
    assert (code, out) == (4, "")
    if as_json:
        error = json.loads(err)["error"]
        assert error["reason"] == "INVALID_ADAPTER"
        assert [v["subject"] for v in error["violations"]] == [f"t{i}" for i in range(30)]
    else:
        first, *lines = err.splitlines()
        assert first == "hotslot: the adapter is refused for 30 reasons:"
        assert lines == [
            "  SHAPE_MISMATCH: 29 times (t0, t1, t2, …): found [1], expected [2]",
            "  SHAPE_MISMATCH: t29: found [2], expected [2]",
        ], "those that differ in their subject alone are one line"


def test_validate_of_a_bad_adapter_exits_with_the_same_code_as_push(
    hotslot: Run, served: Served, adapter_folder: Path
) -> None:
    served.store.catalog.violations = (Violation("NON_FINITE", "t", "NaN", "finite", "t has NaN"),)
    code, out, err = hotslot("validate", str(adapter_folder))
    assert (code, out) == (4, "")
    assert err.endswith("would be refused:\n  NON_FINITE: t has NaN\n")
    code, out, _ = hotslot("validate", str(adapter_folder), "--json")
    assert code == 4
    assert json.loads(out)["valid"] is False


def test_validate_reports_what_is_missing_here_beside_what_the_store_finds(
    hotslot: Run, served: Served, adapter_folder: Path
) -> None:
    (adapter_folder / "adapter_config.json").unlink()
    served.store.catalog.violations = (
        Violation("MISSING_FILE", "adapter_config.json", "no such file", "adapter_config.json", "no config"),
        Violation("NON_FINITE", "t", "NaN", "finite", "t has NaN"),
    )
    code, out, err = hotslot("validate", str(adapter_folder), "--json")
    report = json.loads(out)
    assert (code, err, report["valid"]) == (4, "", False)
    assert [(v["code"], v["subject"]) for v in report["violations"]] == [
        ("MISSING_FILE", "adapter_config.json"),
        ("NON_FINITE", "t"),
    ]
    assert "is this what `save_pretrained` wrote?" in report["violations"][0]["message"]


def test_validate_of_an_empty_folder_is_a_report_too(hotslot: Run, tmp_path: Path) -> None:
    code, out, _ = hotslot("validate", str(tmp_path), "--json")
    assert code == 4
    assert [v["code"] for v in json.loads(out)["violations"]] == ["MISSING_FILE", "MISSING_FILE"]


def test_a_valid_adapter_is_told_apart_by_the_exit_code(hotslot: Run, adapter_folder: Path) -> None:
    assert hotslot("validate", str(adapter_folder))[0] == 0


def test_pickled_weights_say_how_to_convert_them(hotslot: Run, tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    (tmp_path / "adapter_model.bin").write_bytes(b"x")
    code, _, err = hotslot("push", str(tmp_path), "pirate")
    assert code == 4
    assert len(err.splitlines()) == 1
    assert "convert it where you trust it: python -c" in err


def test_import_follows_the_stores_progress(hotslot: Run) -> None:
    code, out, err = hotslot("import", "hf:org/lora@main", "pirate")
    assert code == 0, err
    assert out.startswith("pirate:latest is version sha256:")


@pytest.mark.parametrize("command", ["push", "validate", "import"])
def test_warnings_stand_beside_the_result_and_change_no_exit_code(
    hotslot: Run, served: Served, adapter_folder: Path, command: str
) -> None:
    served.store.catalog.warnings = [store_pb2.Warning(code="RANK", message="set HOTSLOT_MAX_RANK=64")]
    arguments = {
        "push": ["push", str(adapter_folder), "pirate"],
        "validate": ["validate", str(adapter_folder)],
        "import": ["import", "hf:org/lora", "pirate"],
    }[command]
    code, _, err = hotslot(*arguments)
    assert code == 0
    assert "set HOTSLOT_MAX_RANK=64" in err.splitlines()[-1]
    code, out, err = hotslot(*arguments, "--json")
    document = json.loads(out)
    assert code == 0
    assert {"code": "RANK", "message": "set HOTSLOT_MAX_RANK=64"} in _warnings(document)
    assert "HOTSLOT_MAX_RANK" not in err


def _warnings(document: dict[str, Any]) -> list[Any]:
    """Of a push or a dry run beside the result, of an import within the version."""
    return list(document.get("warnings", document.get("version", {}).get("warnings", [])))


def test_show_has_the_adapter_and_its_versions(hotslot: Run) -> None:
    code, out, _ = hotslot("show", "adapter-1")
    assert code == 0
    assert "q_proj: 1 × rank 16, scaling 2" in out
    document = json.loads(hotslot("show", "adapter-1", "--json")[1])
    assert sorted(document) == ["adapter", "version", "versions"]
    assert document["version"]["modules"][0]["scaling"] == 2.0


def test_tag_moves_a_tag_to_what_the_reference_stands_for(hotslot: Run, served: Served) -> None:
    code, out, _ = hotslot("tag", "adapter-1:v1", "prod")
    (request,) = served.store.catalog.calls.set_tags
    assert code == 0
    assert (request.adapter, request.tag) == ("adapter-1", "prod")
    assert out.startswith(f"adapter-1:prod is version {request.digest}")


@pytest.mark.parametrize(
    ("reference", "kind"), [("adapter-1", "adapter"), ("adapter-1:v1", "tag"), ("adapter-1@{digest}", "version")]
)
def test_rm_removes_what_the_reference_names(hotslot: Run, served: Served, reference: str, kind: str) -> None:
    (digest,) = served.store.catalog.tenants[DEFAULT_TENANT].get("adapter-1").versions
    reference = reference.format(digest=digest)
    code, out, _ = hotslot("rm", reference, "--yes", "--force", "--json")
    assert code == 0
    assert json.loads(out)["removed"] == kind
    assert served.store.catalog.calls.deleted == [reference]


def test_what_rm_removed_can_be_undeleted_until_it_says(hotslot: Run) -> None:
    code, out, err = hotslot("rm", "adapter-1", "--yes")
    assert (code, out) == (0, "removed the adapter adapter-1\n")
    assert err == "`hotslot undelete adapter-1` brings it back until 2026-01-01 01:30 UTC\n"
    lines = hotslot("ls", "--deleted")[1].splitlines()
    assert lines[0].endswith("CAN BE UNDELETED UNTIL")
    assert [line.endswith("2026-01-01 01:30 UTC") for line in lines[2:]] == [False, True, False, False, False]
    assert hotslot("undelete", "adapter-1")[:2] == (0, "adapter-1 is back with 1 version and the tags latest, v1\n")
    assert "UNDELETED" not in hotslot("ls", "--deleted")[1]
    assert hotslot("undelete", "adapter-1")[0] == 5


def test_undelete_as_json_has_the_adapter(hotslot: Run) -> None:
    hotslot("rm", "adapter-1", "--yes")
    document = json.loads(hotslot("undelete", "adapter-1", "--json")[1])
    assert (document["adapter"]["name"], document["adapter"]["purge_time"]) == ("adapter-1", None)


def test_import_takes_a_folder_of_the_stores_machine(hotslot: Run, served: Served) -> None:
    assert hotslot("import", "dir:/srv/adapters/a", "pirate", "--base", "org/base")[0] == 0
    (request,) = served.store.catalog.calls.imports
    assert (request.directory.path, request.base_model) == ("/srv/adapters/a", "org/base")


def test_rm_asks_first_and_refuses_where_it_cannot(
    hotslot: Run, served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, _, err = hotslot("rm", "adapter-1")
    assert code == 2
    assert "say --yes" in err
    terminal = io.StringIO("n\n")
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stdin", terminal)
    assert hotslot("rm", "adapter-1")[0] == 130
    assert served.store.catalog.calls.deleted == []


def test_generate_streams_the_text_alone_to_stdout(hotslot: Run, served: Served) -> None:
    code, out, err = hotslot("generate", "-a", "pirate", "-a", "json=0.5", "--raw", "--max-tokens", "7", "Hi")
    assert (code, out, err) == (0, "Hello, sailor\n", "")
    (request,) = served.worker.inference.requests
    assert [(a.reference, a.weight) for a in request.adapters] == [("pirate", 1.0), ("json", 0.5)]
    assert (request.text, request.stop.max_tokens) == ("Hi", 7)


def test_generate_as_json_prints_an_event_a_line(hotslot: Run) -> None:
    _, out, _ = hotslot("generate", "--json", "-a", "pirate", "Hi")
    events = [json.loads(line) for line in out.splitlines()]
    assert [e["event"] for e in events] == ["started", "chunk", "chunk", "chunk", "finished"]
    assert events[0]["adapters"] == [{"reference": "pirate", "digest": DIGEST, "weight": 1.0}]
    assert events[-1]["usage"]["completion_tokens"] == 3
    assert events[-1]["timings"]["time_to_first_token_s"] == 0.012


def test_generate_with_chat_and_a_prompt_from_stdin(
    hotslot: Run, served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("from a pipe"))
    assert hotslot("generate", "--chat", "--system", "be brief", "-")[0] == 0
    (request,) = served.worker.inference.requests
    assert [(m.role, m.content) for m in request.chat.messages] == [("system", "be brief"), ("user", "from a pipe")]


def test_generate_gives_the_template_what_it_takes_beside_messages(
    hotslot: Run, served: Served, tmp_path: Path
) -> None:
    tools = tmp_path / "tools.json"
    tools.write_text('[{"type": "function", "function": {"name": "weather"}}]')
    options = ["--template-arg", "enable_thinking=false", "--template-arg", "style=short", "--prefill", "It is"]
    options += ["--tools", str(tools), "--allow-special-tokens", "--keep-special-tokens"]
    assert hotslot("generate", "--chat", *options, "how is it?")[0] == 0
    (request,) = served.worker.inference.requests
    assert json.loads(request.chat.template_arguments_json) == {"enable_thinking": False, "style": "short"}
    assert [json.loads(tool)["function"]["name"] for tool in request.chat.tools_json] == ["weather"]
    assert [(m.role, m.content) for m in request.chat.messages] == [("user", "how is it?"), ("assistant", "It is")]
    assert request.chat.continue_final_message
    assert request.chat.omit_generation_prompt
    assert request.chat.allow_special_tokens
    assert (request.HasField("skip_special_tokens"), request.skip_special_tokens) == (True, False)


def test_answers_of_commands_are_bounded_as_those_of_the_client(hotslot: Run, served: Served) -> None:
    for option in ([], ["-n", "0"], ["-n", "9"]):
        assert hotslot("generate", "--raw", *option, "Hi")[0] == 0
    bounds = [(r.stop.max_tokens, r.stop.default_max_tokens) for r in served.worker.inference.requests]
    assert bounds == [(0, DEFAULT_MAX_TOKENS), (0, 0), (9, DEFAULT_MAX_TOKENS)]


@pytest.mark.parametrize("option", ["--system", "--prefill", "--tools", "--template-arg"])
def test_what_only_a_chat_has_is_not_dropped_from_a_raw_prompt(hotslot: Run, option: str) -> None:
    code, out, err = hotslot("generate", "--raw", option, "x=1", "Hi")
    assert (code, out) == (2, "")
    assert f"{option}: needs the chat template" in err


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--template-arg", "x"], "--template-arg"),
        (["--template-arg", "=1"], "--template-arg"),
        (["--tools", "/nonexistent/tools.json"], "--tools: /nonexistent/tools.json: No such file"),
        (["--tools", "/proc/self/cmdline"], "it is not JSON"),
    ],
)
def test_what_is_no_option_for_the_template_is_told(
    hotslot: Run, served: Served, options: list[str], told: str
) -> None:
    code, _, err = hotslot("generate", "--chat", *options, "Hi")
    assert code == 2
    assert told in err


def test_standard_input_that_is_no_text_is_refused(
    hotslot: Run, served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    for command in (["generate", "--raw", "-"], ["chat"]):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"hi\xff"), encoding="utf-8"))
        code, _, err = hotslot(*command)
        assert (code, "standard input" in err, "0xff at 2" in err) == (2, True, True)


def test_chat_remembers_its_turns_and_changes_adapters(
    hotslot: Run, served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("one\n\n/adapters pirate=0.5\ntwo\n/reset\nthree\n/quit\nfour\n"))
    code, out, _ = hotslot("chat")
    assert (code, out) == (0, "Hello, sailor\n" * 3)
    first, second, third = served.worker.inference.requests
    assert [m.content for m in second.chat.messages] == ["one", "Hello, sailor", "two"]
    assert [a.weight for a in second.adapters] == [0.5]
    assert [m.content for m in third.chat.messages] == ["three"]
    assert not first.adapters


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (PromptTooLongError(900, 800), 2),
        (QueueFullError("the queue is full", subject="queue", retry_after_s=2.0), 6),
        (DrainingError("w-1"), 7),
        (RankTooLargeError([Violation("RANK_TOO_LARGE", "r", "512", "64", "rank 512, at most 64 fit")]), 4),
        (BaseModelMismatchError([Violation("BASE_MODEL_MISMATCH", "base", "a", "b", "made for a")]), 4),
    ],
)
def test_a_workers_error_is_one_line_and_an_exit_code(hotslot: Run, served: Served, error: Any, code: int) -> None:
    served.worker.inference.fail_first = [error] * 5
    found, out, err = hotslot("generate", "--raw", "Hi")
    assert (found, out) == (code, "")
    assert len(err.splitlines()) == 1
    assert err.startswith("hotslot: ")


def test_workers_placements_and_top_show_the_fleet(hotslot: Run, served: Served) -> None:
    load = placement_pb2.WorkerLoad(running_sequences=2, max_sequences=8, free_slots=7, num_slots=8, kv_usage=0.25)
    served.store.placement.start_worker(served.endpoints[1], digests=(DIGEST,), load=load)
    (placement,) = served.store.placement.placements
    placement.pinned, placement.adapter = True, "pirate"
    assert "2/8" in hotslot("workers")[1]
    assert json.loads(hotslot("workers", "--json")[1])["workers"][0]["load"]["kv_usage"] == 0.25
    assert hotslot("placements")[1].splitlines()[2].split() == ["pirate", "abababababab", "w-1", "slot", "yes"]
    assert json.loads(hotslot("placements", "--json")[1])["placements"][0]["adapter_digest"] == DIGEST
    code, out, _ = hotslot("top", "--count", "2", "--interval", "0.1", "--json")
    first, second = (json.loads(line) for line in out.splitlines())
    assert code == 0
    assert first["event"] == second["event"] == "snapshot"
    assert second["tokens_per_s"] == {"w-1": 0.0}
    code, out, _ = hotslot("top", "--count", "1")
    assert code == 0
    assert "1 workers  2 running" in out


def test_one_worker_is_inspected_and_told_what_to_load(hotslot: Run) -> None:
    assert "7 of 8 free" in hotslot("status")[1]
    assert "30 of 90 prompt tokens found" in hotslot("status")[1]
    assert json.loads(hotslot("status", "--json")[1])["adapters"]["adapters"][0]["tier"] == "slot"
    assert DIGEST in hotslot("load", "pirate")[1]
    assert json.loads(hotslot("load", "pirate", "--json")[1])["timings"]["activate_s"] == 0.0015
    assert json.loads(hotslot("pin", "pirate", "--json")[1])["adapter"]["pinned"] is True
    assert json.loads(hotslot("unload", "pirate", "--json")[1]) == {"digest": DIGEST}
    assert hotslot("unload", "other")[0] == 3


def test_a_worker_is_drained_and_taken_back(hotslot: Run) -> None:
    assert "is drained" in hotslot("drain")[1]
    assert "drained: `hotslot undrain` takes it back" in hotslot("status")[1]
    assert json.loads(hotslot("status", "--json")[1])["status"]["drained"] is True
    assert "takes requests" in hotslot("undrain")[1]
    assert json.loads(hotslot("status", "--json")[1])["status"]["drained"] is False
    assert json.loads(hotslot("drain", "--json", "--timeout", "5")[1]) == {"drained": True}
    assert json.loads(hotslot("undrain", "--json")[1]) == {"drained": False}


def test_status_and_doctor_tell_what_of_the_store_does_not_work(hotslot: Run, served: Served) -> None:
    assert "store's" not in hotslot("status")[1]
    served.store.catalog.parts = (
        StorePart("catalog", True),
        StorePart("disk", False, "3 bytes left"),
        StorePart("redis", False, "it did not answer within 2 s", required=False),
    )
    code, out, _ = hotslot("status")
    assert code == 0
    assert "store's disk" in out
    assert "does not work: 3 bytes left" in out
    assert json.loads(hotslot("status", "--json")[1])["store"]["ready"] is False
    code, out, _ = hotslot("doctor", "--json")
    levels = {check["check"]: (check["level"], check["found"]) for check in json.loads(out)["checks"]}
    assert code == 1
    assert levels["store disk"] == ("fail", "3 bytes left")
    assert levels["store redis"] == ("warn", "it did not answer within 2 s")
    assert "store catalog" not in levels
