"""Command lines as people type them: further names, options in front, forms of lists, suggestions, wrong uses."""

import json
import typing
from collections.abc import Iterator
from enum import Enum

import pytest
import typer

from hotslot.cli.app import app, run
from hotslot.cli.command_line import (
    ALIASES,
    DESTRUCTIVE_COMMANDS,
    DESTRUCTIVE_OPTIONS,
    WORDS_OF_OTHERS,
    suggestions,
    wants_json,
)
from hotslot.cli.digests import completed
from hotslot.errors import InvalidRequestError

ROOT = typer.main.get_command(app)
TAKES_AWAY = ("Remove", "Forget", "Let an adapter be evicted", "Let a worker take no", "End ", "Have a worker answer")


def commands(group: object = ROOT, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], object]]:
    for name, command in getattr(group, "commands", {}).items():
        yield (*path, name), command
        yield from commands(command, (*path, name))


def said(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    capsys.readouterr()
    return run(arguments), *capsys.readouterr()


def typos(word: str) -> set[str]:
    """The word with a letter left out, doubled, or swapped with the next one."""
    letters = range(2, len(word))
    swapped = {word[: i - 1] + word[i] + word[i - 1] + word[i + 1 :] for i in letters}
    return {word[:i] + word[i + 1 :] for i in letters} | {word[:i] + word[i] + word[i:] for i in letters} | swapped


def test_every_command_that_takes_away_is_known_to_be_one() -> None:
    found = {path[-1] for path, command in commands() if str(getattr(command, "help", "")).startswith(TAKES_AWAY)}
    assert found >= {"rm", "unload", "unpin", "drain", "down", "disable"}
    assert found <= DESTRUCTIVE_COMMANDS
    assert {alias for alias, name in ALIASES.items() if name in DESTRUCTIVE_COMMANDS} <= DESTRUCTIVE_COMMANDS


@pytest.mark.parametrize("word", sorted(DESTRUCTIVE_COMMANDS))
def test_no_typo_of_such_a_command_is_answered_with_it(word: str, capsys: pytest.CaptureFixture[str]) -> None:
    for typo in typos(word) | {word + "x"}:
        if ROOT.get_command(None, typo) is None:  # type: ignore[attr-defined]
            code, _, err = said([typo], capsys)
            assert code == 2
            suggested = {part.strip("'") for part in err.partition("did you mean ")[2].split("?")[0].split(" or ")}
            assert not suggested & DESTRUCTIVE_COMMANDS, err


@pytest.mark.parametrize("option", sorted(DESTRUCTIVE_OPTIONS))
def test_no_typo_of_such_an_option_is_answered_with_it(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    for path, command in commands():
        names = {name for parameter in getattr(command, "params", ()) for name in parameter.opts}
        if option in names:
            for typo in typos(option) - names - {"--"}:
                code, _, err = said([*path, typo], capsys)
                assert code == 2
                assert option not in err.split("; `")[0].replace(typo, ""), err


def typed_parameters() -> Iterator[tuple[tuple[str, ...], str]]:
    """Every option of every command whose value is a number or one of a few words, each with its longest name."""
    for path, command in commands():
        for parameter in getattr(command, "params", ()):
            kind = parameter.type_descriptor.annotation
            kind = (typing.get_args(kind) or (kind,))[0]
            has_value = parameter.param_type_name == "option" and not parameter.is_flag
            if has_value and isinstance(kind, type) and issubclass(kind, int | float | Enum):
                yield path, max(parameter.opts, key=len)


@pytest.mark.parametrize(("path", "option"), sorted(typed_parameters()), ids=str)
def test_a_value_that_an_option_cannot_have_is_quoted(
    path: tuple[str, ...], option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = said([*path, option, "h o t"], capsys)
    assert code == 2
    assert option in err
    assert "'h o t'" in err
    assert len(err.splitlines()) == 1


def test_the_options_with_such_values_are_many() -> None:
    found = {option for _, option in typed_parameters()}
    assert {"--temperature", "--stop-token", "--num-choices", "--output", "--timeout", "--seed"} <= found


def test_a_harmless_typo_is_answered_with_the_name() -> None:
    assert suggestions("pussh", ["push", "rm"]) == ["push"]


@pytest.mark.parametrize("word", sorted(WORDS_OF_OTHERS))
def test_a_word_of_another_tool_is_answered_with_ours(word: str, capsys: pytest.CaptureFixture[str]) -> None:
    ours = WORDS_OF_OTHERS[word].split()
    assert tuple(ours) in {path for path, _ in commands()}
    assert not DESTRUCTIVE_COMMANDS & set(ours)
    code, _, err = said([word, "a"], capsys)
    assert code == 2
    assert f"here it is `hotslot {WORDS_OF_OTHERS[word]}`" in err


@pytest.mark.parametrize("alias", sorted(ALIASES))
def test_a_further_name_is_the_same_command_and_is_no_commands_own(alias: str) -> None:
    assert ROOT.get_command(None, alias) is ROOT.get_command(None, ALIASES[alias])  # type: ignore[attr-defined]
    assert ROOT.get_command(None, alias) is not None  # type: ignore[attr-defined]
    assert alias not in {path[-1] for path, _ in commands()}


@pytest.mark.parametrize(
    "arguments",
    [
        ["--store", "127.0.0.1:1", "--json", "ls"],
        ["--store=127.0.0.1:1", "-o", "json", "list"],
        ["-o", "json", "ls", "--store", "127.0.0.1:1"],
        ["ls", "-ojson", "--store", "127.0.0.1:1"],
        ["--tenant", "push", "--json", "--store", "127.0.0.1:1", "ls"],
        ["--json", "--store", "127.0.0.1:1", "base", "ls"],
        ["policy", "--json", "--store", "127.0.0.1:1", "list"],
        ["--json", "--store", "127.0.0.1:1", "show", "a"],
        ["show", "a", "--output=json", "--store", "127.0.0.1:1"],
    ],
)
def test_options_stand_before_the_command_or_behind_it(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = said(arguments, capsys)
    assert (code, out) == (7, "")
    assert json.loads(err)["error"]["reason"] == "STORE_UNAVAILABLE"


WRONG = [
    (["lss"], 2, "No such command 'lss'; did you mean 'ls'?"),
    (["images"], 2, "No such command 'images'; here it is `hotslot ls`; `hotslot --help`"),
    (["get", "pods", "-o", "json"], 2, "No such command 'get'; here it is `hotslot ls`"),
    (["rmi", "a"], 2, "No such command 'rmi'; `hotslot --help`"),
    (["policy", "get"], 2, "No such command 'get'; "),
    (["--nope"], 2, "No such option: --nope"),
    (["--nope", "ls"], 2, "No such option: --nope"),
    (["ls", "--limit", "-1"], 2, "'--limit'"),
    (["ls", "-o", "yaml"], 2, "Invalid value for '--output' / '-o': 'yaml' is not one of"),
    (["rm", "a", "-o", "name"], 2, "expected json; name and wide are for lists"),
    (["rm", "a", "-o"], 2, "found '', expected json"),
    (["rm"], 2, "Missing argument"),
    (["show"], 2, "Missing argument"),
    (["show", "A B"], 2, "invalid reference 'A B'"),
    (["show", "a@sha256:zz"], 2, "invalid reference"),
    (["show", "a@12"], 2, "invalid reference"),
    (["tag", "a", ".x"], 2, "invalid reference '.x'"),
    (["tag", "a"], 2, "Missing argument 'TAG'"),
    (["history", ""], 2, "invalid reference ''"),
    (["cp", "a", "B"], 2, "invalid reference 'B'"),
    (["cp", "a"], 2, "Missing argument 'NEWREF'"),
    (["load"], 2, "Missing argument"),
    (["pin", "a@"], 2, "invalid reference 'a@'"),
    (["unload", "a", "--timeout", "soon"], 2, "--timeout"),
    (["default", "a", "--base-only"], 2, "--base-only: leaves no adapters"),
    (["default", "a=much"], 2, "found weight 'much'"),
    (["drain", "nowhere:"], 2, "WORKER: found 'nowhere:'"),
    (["workers", "--store", "nowhere"], 2, "--store (HOTSLOT_STORE)"),
    (["policy"], 2, ""),
    (["logs", "nope", "--data-dir", "/nowhere"], 2, "no log of 'nope': there is none in /nowhere/logs"),
    (["logs", "--tail", "-1"], 2, "--tail"),
    (["down", "--timeout", "x"], 2, "--timeout"),
    (["policy", "lss"], 2, "did you mean 'ls'?; `hotslot policy --help`"),
    (["base", "rm"], 2, "Missing argument"),
    (["top", "--sort", "age"], 2, "'age' is not one of"),
    (["top", "--limit", "-1"], 2, "--limit"),
    (["top", "--count", "-1"], 2, "--count"),
    (["status", "--sort", "up"], 2, "'up' is not one of"),
    (["status", "x"], 2, "unexpected extra argument"),
    (["doctor", "--store", "nowhere"], 2, "--store (HOTSLOT_STORE): found 'nowhere'"),
    (["doctor", "--gateway"], 2, "--gateway"),
    (["ls", "--context", "nope"], 2, "no context 'nope': there is none"),
    (["context"], 2, ""),
    (["context", "use"], 2, "name a context, or say --none"),
    (["context", "use", "a", "--none"], 2, "name a context, or say --none"),
    (["context", "use", "nope"], 2, "no context 'nope'"),
    (["context", "show", "nope"], 2, "no context 'nope'"),
    (["context", "set", "a", "--worker", "x"], 2, "worker: found 'x', expected host:port"),
    (["context", "set", "a", "--tenant", "A B"], 2, "found 'A B', expected 1 to 64"),
    (["context", "set", "a b"], 2, "NAME: found 'a b'"),
    (["context", "rm"], 2, "Missing argument"),
    (["context", "rm", "nope"], 2, "no context 'nope'"),
    (["contxt", "ls"], 2, "did you mean 'context'?"),
    (["up", "--store-port", "7500"], 2, "port 7500 is given twice, by --store-port and --worker-port"),
    (["up", "--workers", "0"], 2, "--workers"),
    (["up", "--model", "/nowhere"], 2, "no such folder: /nowhere"),
    (["up", "--redis-url", "http://x"], 2, "unknown scheme 'http'"),
    (["pull", "a"], 2, "Missing argument 'DIR'"),
    (["generate", "-f", "/nowhere", "hi"], 2, "--file: stands beside a prompt"),
    (["generate", "-a", "a=x", "hi"], 2, "found weight 'x'"),
    (["run"], 2, "Missing argument"),
    (["completion", "bash", "zsh"], 2, "unexpected extra argument"),
    (["help", "nope"], 2, "No such command 'nope'"),
    (["completion", "cmd"], 2, "'cmd' is not one of"),
    (["completion"], 2, "Missing argument 'SHELL'"),
    (["undelete", "a:b"], 2, "invalid reference 'a:b'"),
    (["import", "ftp://x", "a"], 2, "expected hf:ORG/NAME"),
    (["import", "s3://x", "a"], 2, "expected s3://BUCKET/FOLDER"),
    (["push", "/nowhere", "a", "--store", "127.0.0.1:1"], 3, "is not a folder"),
]


@pytest.mark.parametrize("as_json", [False, True])
@pytest.mark.parametrize(("arguments", "code", "part"), WRONG, ids=[" ".join(row[0]) for row in WRONG])
def test_a_wrong_use_is_one_line_with_its_exit_code(
    arguments: list[str], code: int, part: str, as_json: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    found, out, err = said(["--json", *arguments] if as_json else arguments, capsys)
    assert found == code, err
    assert "Traceback" not in out + err
    if not part:
        return  # Its help was shown.
    assert out == ""
    (line,) = err.splitlines()
    message = json.loads(line)["error"]["message"] if as_json else line
    assert part in message or (as_json and arguments[0] in ("--nope", "help", "completion", "logs")), (
        "these have no --json"
    )


def test_json_is_asked_for_by_any_of_its_names_before_the_end_of_options() -> None:
    for words in (["--json"], ["-o", "json"], ["-ojson"], ["--output=json"], ["-o=json"], ["x", "--output", "json"]):
        assert wants_json(words), words
    for words in ([], ["-o", "name"], ["json"], ["--", "--json"]):
        assert not wants_json(words), words


def test_the_beginning_of_a_digest_stands_for_one_alone() -> None:
    digests = ["sha256:" + text + "0" * 60 for text in ("aaaa", "aaab", "bbbb")]
    assert completed("x@bbbb", "bbbb", digests) == completed("x@bbbb", "sha256:bb", digests) == digests[2]
    assert completed("x@cccc", "cccc", digests) is None
    with pytest.raises(InvalidRequestError, match=f"{digests[0]}, {digests[1]}; give more digits"):
        completed("x@aaa", "aaa", digests)


def test_help_and_completion_are_commands_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert said(["help", "base", "rm"], capsys) == said(["base", "rm", "--help"], capsys)
    for shell, part in (("bash", "_HOTSLOT_COMPLETE=complete_bash"), ("zsh", "#compdef hotslot"), ("fish", "complete")):
        code, out, err = said(["completion", shell], capsys)
        assert (code, err) == (0, "")
        assert part in out
    assert said(["--version"], capsys) == said(["version"], capsys)
    assert said(["version"], capsys)[1].startswith("hotslot 0")
