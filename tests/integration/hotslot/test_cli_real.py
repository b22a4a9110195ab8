"""The `hotslot` command against real processes: what a user does first, and everything that a user gets wrong."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from hotslot import BlockingHotslotClient, BlockingStoreClient
from hotslot.cli.app import run
from hotslot.local.children import Child
from tests.integration.conftest import DEMO_ADAPTERS
from tests.integration.hotslot.conftest import BASE, PATHS, TENANT, PeftFolder

pytestmark = pytest.mark.integration

WEIGHTS = "adapter_model.safetensors"
QUESTION = "What is the capital of France?"


@dataclass(frozen=True)
class Done:
    """A command that ended."""

    returncode: int
    stdout: str
    stderr: str


Command = Callable[..., Done]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Runs the command in this process, with environment variables by keyword."""

    def run_command(*arguments: str, **environment: str) -> Done:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        capsys.readouterr()
        code = run(arguments)
        out, err = capsys.readouterr()
        return Done(code, out, err)

    return run_command


def truncate(folder: Path) -> None:
    data = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(data[: len(data) // 2])


def spoil(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    next(iter(tensors.values()))[0, 0] = np.nan
    save_file(tensors, folder / WEIGHTS)


def pickle_only(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder / "adapter_model.bin")


def narrow(folder: Path) -> None:
    save_file({name: tensor[:, :-1].copy() for name, tensor in load_file(folder / WEIGHTS).items()}, folder / WEIGHTS)


def no_config(folder: Path) -> None:
    (folder / "adapter_config.json").write_text("{")


def empty_config(folder: Path) -> None:
    (folder / "adapter_config.json").write_bytes(b"")


def many_faults(folder: Path) -> None:
    spoil(folder)
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"use_dora": True, "future": 1}))


BAD_ADAPTERS: list[tuple[str, dict[str, object], Callable[[Path], None] | None, int, str]] = [
    ("truncated file", {}, truncate, 4, ""),
    ("not a number", {}, spoil, 4, "NaN"),
    ("pickle only", {}, pickle_only, 4, "convert it where you trust it"),
    ("wrong shapes", {}, narrow, 4, "63"),
    ("no JSON", {}, no_config, 4, "adapter_config.json"),
    ("empty config", {}, empty_config, 4, "adapter_config.json"),
    ("rank too large", {"rank": 300}, None, 4, "300"),
    ("unknown base", {"base": "nobody/knows"}, None, 2, "'nobody/knows', which is not registered; its tensors fit"),
    ("dora", {"use_dora": True}, None, 4, "dora"),
]


@pytest.mark.parametrize(
    ("name", "options", "break_it", "code", "said"), BAD_ADAPTERS, ids=[b[0] for b in BAD_ADAPTERS]
)
def test_a_bad_adapter_is_refused_with_what_is_wrong(
    store: BlockingStoreClient,
    command: Command,
    peft_folder: PeftFolder,
    name: str,
    options: dict[str, object],
    break_it: Callable[[Path], None] | None,
    code: int,
    said: str,
) -> None:
    folder = peft_folder(**options)
    if break_it is not None:
        break_it(folder)
    environment = {"HOTSLOT_STORE": store.client.endpoint, "HOTSLOT_TENANT": TENANT}
    done = command("push", str(folder), "bad", **environment)
    assert (done.returncode, done.stdout) == (code, ""), done.stderr
    assert said.lower() in done.stderr.lower()
    assert "Traceback" not in done.stderr
    first, *others = done.stderr.splitlines()
    assert first.startswith("hotslot: ")
    assert all(line.startswith("  ") for line in others), "one line for each violation"
    assert list(store.list_adapters()) == [], "the store goes on, and nothing of it is visible"


def test_names_that_do_not_exist_are_errors_that_say_what_to_do(
    store: BlockingStoreClient, command: Command, peft_folder: PeftFolder
) -> None:
    store.push(peft_folder(), "pirate")
    environment = {"HOTSLOT_STORE": store.client.endpoint, "HOTSLOT_TENANT": TENANT}
    table = [
        (("show", "nobody"), 3, "`hotslot ls` lists"),
        (("show", "pirate:nope"), 3, "`hotslot show pirate` lists its tags"),
        (("tag", "pirate:nope", "x"), 3, "has no tag 'nope'"),
        (("rm", "nobody", "--yes"), 3, "not found"),
        (("rm", "pirate:nope", "--yes"), 3, "has no tag 'nope'"),
        (("rm", "pirate"), 2, "say --yes"),
        (("push", "/nowhere", "x"), 3, "is not a folder"),
    ]
    for arguments, code, said in table:
        done = command(*arguments, **environment)
        assert (done.returncode, len(done.stderr.splitlines())) == (code, 1), done.stderr
        assert said in done.stderr
    assert command("rm", "pirate:latest", "--yes", **environment).returncode == 0
    assert command("show", "pirate", "--json", **environment).returncode == 0


@pytest.mark.parametrize(
    ("break_it", "codes"),
    [(no_config, ["CONFIG_NOT_JSON"]), (many_faults, ["UNSUPPORTED_CONFIG", "UNKNOWN_CONFIG_FIELD", "NOT_FINITE"])],
    ids=["no JSON and no base", "many faults"],
)
def test_validating_lists_every_violation(
    store: BlockingStoreClient,
    command: Command,
    peft_folder: PeftFolder,
    break_it: Callable[[Path], None],
    codes: list[str],
) -> None:
    folder = peft_folder()
    break_it(folder)
    environment = {"HOTSLOT_STORE": store.client.endpoint, "HOTSLOT_TENANT": TENANT}
    done = command("validate", str(folder), "--json", **environment)
    assert done.returncode == 4, done.stderr
    report = json.loads(done.stdout)
    assert not report["valid"]
    assert [violation["code"] for violation in report["violations"]] == codes


def test_show_prints_the_whole_manifest_with_the_summary_first(
    store: BlockingStoreClient, command: Command, peft_folder: PeftFolder
) -> None:
    environment = {"HOTSLOT_STORE": store.client.endpoint, "HOTSLOT_TENANT": TENANT}
    assert command("push", str(peft_folder()), "pirate:v1", "--label", "team=a", **environment).returncode == 0
    document = json.loads(command("show", "pirate:v1", "--json", **environment).stdout)
    assert sorted(document) == ["adapter", "version", "versions"]
    version = document["version"]
    assert sorted(version) == [
        "adapter", "annotations", "base_model", "base_model_digest", "config_json", "create_time", "digest", "dtype",
        "max_rank", "modules", "signer", "source", "tags", "warnings", "weights_digest", "weights_size_bytes",
    ]  # fmt: skip
    assert [(m["path"], m["rank"], m["scaling"]) for m in version["modules"]] == [(path, 4, 2.0) for path in PATHS]

    lines = command("show", "pirate:v1", **environment).stdout.splitlines()
    said = {line.split()[0]: line for line in lines if line}
    assert lines[0].split() == ["adapter", "pirate"]
    assert said["tags"].split() == ["tags", "v1", "→", version["digest"].removeprefix("sha256:")[:12]]
    assert said["labels"].split() == ["labels", "team=a"]
    assert version["digest"] in said["version"]
    assert BASE in said["base"]
    assert version["base_model_digest"] in said["base"]
    assert version["weights_digest"] in said["weights"]
    assert "upload" in said["source"]
    assert '"lora_alpha"' in said["config"]
    assert [line.split() for line in lines[-len(PATHS) :]] == [[path, "4", "2"] for path in PATHS]
    assert lines[-len(PATHS) - 2].split() == ["MODULE", "RANK", "SCALING"]


def test_ls_filters_and_stops_where_it_is_told(
    store: BlockingStoreClient, command: Command, peft_folder: PeftFolder
) -> None:
    environment = {"HOTSLOT_STORE": store.client.endpoint, "HOTSLOT_TENANT": TENANT}
    for number in range(3):
        labels = {"team": "a" if number else "b"}
        store.push(peft_folder(f"folder-{number}", seed=number), f"bot-{number}", labels=labels)

    def names(*arguments: str) -> tuple[list[str], bool]:
        document = json.loads(command("ls", "--json", *arguments, **environment).stdout)
        return [adapter["name"] for adapter in document["adapters"]], document["more"]

    assert names() == (["bot-0", "bot-1", "bot-2"], False)
    assert names("--limit", "2") == (["bot-0", "bot-1"], True)
    assert names("--limit", "3") == (["bot-0", "bot-1", "bot-2"], False)
    assert names("--label", "team=a") == (["bot-1", "bot-2"], False)
    assert names("--base", BASE, "bot-2") == (["bot-2"], False)
    assert names("--base", "somebody/else") == ([], False)
    listed = command("ls", "--limit", "1", **environment)
    header, _, row = listed.stdout.splitlines()
    assert header.split() == ["NAME", "TAGS", "VERSIONS", "NEWEST", "RANK", "SIZE", "BASE", "MODEL", "CHANGED"]
    assert row.split()[:5] == ["bot-0", "latest", "1", row.split()[3], "4"]
    assert len(row.split()[3]) == 12
    assert BASE in row
    assert listed.stderr == "only the first 1; raise --limit, or name a PREFIX\n"


@pytest.mark.parametrize("entry", [["-m", "hotslot"], ["-c", "from hotslot.cli.app import main; main()"]])
def test_the_module_and_the_console_script_are_the_same_command(store_process: Child, entry: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, *entry, "ls", "--json", "--store", store_process.spec.endpoint, "--tenant", "nobody-else"],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (done.returncode, json.loads(done.stdout), done.stderr) == (0, {"adapters": [], "more": False}, "")


@pytest.mark.model
def test_the_first_things_that_a_user_does(hotslot: BlockingHotslotClient, command: Command, tmp_path: Path) -> None:
    environment = {
        "HOTSLOT_STORE": hotslot.store.client.endpoint,
        "HOTSLOT_WORKER": hotslot.worker.client.endpoint,
    }
    folder = tmp_path / "pirate"
    shutil.copytree(DEMO_ADAPTERS / "pirate", folder)
    assert command("validate", str(folder), **environment).returncode == 0
    pushed = json.loads(command("push", str(folder), "cli/pirate:v1", "--json", **environment).stdout)
    digest = pushed["version"]["digest"]

    base = command("generate", "-n", "12", QUESTION, **environment)
    assert "Paris" in base.stdout
    done = command("generate", "-n", "12", "-a", "cli/pirate:v1", "--json", QUESTION, **environment)
    started, *chunks, finished = [json.loads(line) for line in done.stdout.splitlines()]
    assert started["adapters"][0]["digest"] == digest
    assert "".join(chunk["text"] for chunk in chunks).strip() != base.stdout.strip()
    assert finished["usage"]["completion_tokens"] <= 12

    workers = json.loads(command("workers", "--json", **environment).stdout)["workers"]
    assert [worker["worker_id"] for worker in workers] == [started["worker_id"]]
    status = json.loads(command("status", "--json", **environment).stdout)
    assert status["status"]["recompiles"] == 0
    assert digest in [adapter["digest"] for adapter in status["adapters"]["adapters"]]
    routed = command("generate", "-n", "4", "-a", "cli/pirate:v1", "--route", QUESTION, **environment)
    assert routed.returncode == 0, routed.stderr


@pytest.mark.model
def test_a_bad_request_is_refused_and_the_worker_goes_on(
    hotslot: BlockingHotslotClient, command: Command, worker_process: Child
) -> None:
    environment = {
        "HOTSLOT_STORE": hotslot.store.client.endpoint,
        "HOTSLOT_WORKER": hotslot.worker.client.endpoint,
    }
    table = [
        (("generate", "-a", "nobody", "Hi"), 3, "adapter 'nobody' not found"),
        (("generate", ""), 2, "the prompt has no tokens"),
        (("generate", "--raw", "hi " * 20_000), 2, "shorten the prompt"),
        (("generate", "--temperature", "-1", "Hi"), 2, "sampling.temperature"),
        (("generate", "--top-p", "7", "Hi"), 2, "sampling.top_p"),
        (("generate", "--max-tokens", "-5", "Hi"), 2, "max_tokens"),
        (("generate", "-a", "Not A Name", "Hi"), 2, "invalid reference"),
        (("unload", "nobody"), 3, "nobody"),
    ]
    for arguments, code, said in table:
        done = command(*arguments, **environment)
        assert (done.returncode, len(done.stderr.splitlines())) == (code, 1), done.stderr
        assert said in done.stderr
    assert command("generate", "--raw", "-n", "2", "Hi", **environment).returncode == 0
    assert worker_process.exit_code() is None
