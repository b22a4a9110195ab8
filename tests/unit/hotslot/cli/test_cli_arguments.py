"""What the `hotslot` command refuses before it calls anyone, and how errors and values are written."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils._validators import validate_repo_id
from hypothesis import example, given
from hypothesis import strategies as st

from hotslot import errors
from hotslot.cli.answers import served_line
from hotslot.cli.app import run
from hotslot.cli.catalog_commands import parse_labels
from hotslot.cli.failures import error_lines, exit_code
from hotslot.cli.options import parse_selection
from hotslot.cli.rendering import human_age, human_duration, human_size, short_digest
from hotslot.contract.generation import AdapterSelection, Finished, FinishReason, ServedAdapter, Started, Timings, Usage
from hotslot.rpc.status import STATUS_TABLE, new_error
from hotslot.sources import HubName, StoreFolder, parse_source

NOW = datetime(2026, 1, 2, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("pirate", AdapterSelection("pirate", 1.0)),
        ("acme/pirate:v1=0.5", AdapterSelection("acme/pirate:v1", 0.5)),
        ("pirate=-1e-1", AdapterSelection("pirate", -0.1)),
        (f"pirate@sha256:{'0' * 64}=2", AdapterSelection(f"pirate@sha256:{'0' * 64}", 2.0)),
    ],
)
def test_an_adapter_is_a_reference_with_an_optional_weight(text: str, expected: AdapterSelection) -> None:
    assert parse_selection(text) == expected


@pytest.mark.parametrize("text", ["", "=1", "pirate=", "pirate=x", "Pirate", "a=1=2"])
def test_anything_else_is_no_adapter(text: str) -> None:
    with pytest.raises(errors.InvalidRequestError):
        parse_selection(text)


def test_a_source_is_a_hub_repository_at_a_revision_or_a_folder_of_the_store() -> None:
    assert parse_source("hf:org/name") == HubName("org/name", "")
    assert parse_source("hf:org/name@v1.0") == HubName("org/name", "v1.0")
    assert parse_source("dir:/srv/a b@1") == StoreFolder("/srv/a b@1")
    for wrong in ("org/name", "hf:name", "hf:a/b/c", "hf:/x", "s3:org/name", "/srv/a"):
        with pytest.raises(errors.InvalidRequestError, match=r"hf:ORG/NAME.* or dir:/PATH"):
            parse_source(wrong)
    for wrong in ("dir:", "dir:adapters/a"):
        with pytest.raises(errors.InvalidRequestError, match="absolute path on the store's machine"):
            parse_source(wrong)


def test_all_wrong_labels_are_named() -> None:
    assert parse_labels(["a=b", "c="]) == {"a": "b", "c": ""}
    with pytest.raises(errors.InvalidRequestError) as raised:
        parse_labels(["a", "=b", "c=d"])
    assert len(raised.value.fields) == 2


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["push"], "Missing argument 'DIR'; `hotslot push --help` explains it"),
        (["lss"], "No such command 'lss'"),
        (["ls", "--nope"], "No such option: --nope"),
        (
            ["generate", "--max-tokens", "x", "Hi"],
            "Invalid value for '--max-tokens' / '-n'",
        ),
        (["ls", "--store", "nowhere"], "--store (HOTSLOT_STORE): found 'nowhere', expected host:port"),
        (["ls", "--tenant", "A B"], "hotslot-tenant"),
        (["generate", "-a", "Bad Ref", "Hi"], "invalid reference 'Bad Ref'"),
        (["rm", "a@b", "--yes"], "invalid reference"),
        (["undelete", "a:b"], "invalid reference"),
        (["import", "dir:/srv/a", "a", "--subfolder", "x"], "--subfolder: is for repositories"),
        (["generate", ""], "the prompt has no tokens"),
    ],
)
def test_wrong_arguments_are_one_line_and_exit_code_2(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert len(err.splitlines()) == 1
    assert err.startswith("hotslot: ")
    assert said in err


def test_a_store_that_is_not_there_says_what_to_do(capsys: pytest.CaptureFixture[str], unused_tcp_port: int) -> None:
    assert run(["ls", "--store", f"127.0.0.1:{unused_tcp_port}"]) == 7
    err = capsys.readouterr().err
    assert "`hotslot up` starts one; --store or HOTSLOT_STORE names another" in err
    assert len(err.splitlines()) == 1


def test_a_file_that_cannot_be_read_is_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (tmp_path / name).symlink_to(name)
    assert run(["push", str(tmp_path), "pirate"]) != 0
    err = capsys.readouterr().err
    assert "Traceback" not in err
    assert err.startswith("hotslot: ")


@pytest.mark.parametrize("row", STATUS_TABLE, ids=lambda row: row.reason)
def test_every_error_has_a_line_and_an_exit_code_that_is_not_0(row: object) -> None:
    error = new_error(row.error, "what\nfailed")  # type: ignore[attr-defined]
    assert 0 < exit_code(error) < 128
    assert len(error_lines(error)) == 1


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.InvalidReferenceError("x", "y"), 2),
        (errors.AdapterNotFoundError("x"), 3),
        (errors.UnsupportedAdapterError([]), 4),
        (errors.EtagMismatchError("x", "a", "b"), 5),
        (errors.SlotsFullError("full", subject="slots"), 6),
        (errors.NoWorkersError("none"), 7),
        (errors.RequestDeadlineError("late"), 7),
        (errors.DigestMismatchError("blob", "a", "b"), 8),
        (errors.NotImplementedYetError("X"), 1),
        (errors.InternalError("bug"), 1),
    ],
)
def test_exit_codes_are_the_documented_ones(error: errors.HotslotError, code: int) -> None:
    assert exit_code(error) == code


def test_values_are_written_for_people() -> None:
    assert [human_size(n) for n in (0, 999, 1000, 1_234_567, 99_900_000, 5 * 10**9)] == [
        "0 B", "999 B", "1.0 kB", "1.2 MB", "100 MB", "5.0 GB",
    ]  # fmt: skip
    ages = [timedelta(seconds=s) for s in (0, 59, 60, 7199, 86_400 * 3)]
    assert [human_age(NOW - age, NOW) for age in ages] == ["0 s", "59 s", "1 min", "1 h", "3 d"]
    assert human_age(None, NOW) == "-"
    assert [human_duration(s) for s in (0.0000005, 0.0123, 2.0)] == ["0 µs", "12 ms", "2.0 s"]
    assert short_digest("sha256:0123456789abcdef") == "0123456789ab"


def test_the_line_under_an_answer_says_who_gave_it() -> None:
    started = Started("r", "w-1", "", (ServedAdapter("pirate:v1", "sha256:" + "ab" * 32, 0.5),), 3)
    finished = Finished(0, FinishReason.STOP, "", None, Usage(3, 11, 0), Timings(0, 0.02, 0.1, 1.1))
    assert served_line(started, finished) == (
        "— pirate:v1@abababababab × 0.5 on w-1: 11 tokens (stop), first after 100 ms, adapter load 20 ms, 10 tokens/s"
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("hf:o.r-g/na.me_1-x", HubName("o.r-g/na.me_1-x")),
        (" hf:org/name/ ", HubName("org/name")),
        ("hf:org/name@refs/pr/1", HubName("org/name", "refs/pr/1")),
        ("hf:org/name#a/b/", HubName("org/name", "", "a/b")),
        ("hf:org/name@v1#a", HubName("org/name", "v1", "a")),
        ("hf://org/name", HubName("org/name")),
        ("hf://models/org/name@v1/a/b", HubName("org/name", "v1", "a/b")),
        ("hf://org/name@refs%2Fpr%2F1/a", HubName("org/name", "refs/pr/1", "a")),
        ("https://huggingface.co/org/name", HubName("org/name")),
        ("https://huggingface.co/org/name/", HubName("org/name")),
        ("https://hf.co/org/name/tree/main", HubName("org/name", "main")),
        ("https://huggingface.co/org/name/tree/refs%2Fpr%2F1/a/b?x=1#y", HubName("org/name", "refs/pr/1", "a/b")),
        ("https://huggingface.co/org/name/blob/v1/a/adapter_config.json", HubName("org/name", "v1", "a")),
        (
            "https://huggingface.co/org/name/resolve/v1/adapter_model.safetensors?download=true",
            HubName("org/name", "v1"),
        ),
    ],
)
def test_a_repository_is_known_by_every_form_of_its_name(text: str, expected: HubName) -> None:
    assert parse_source(text) == expected


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("hf:org/my name", "'my name' is no name"),
        ("hf:org/na..me", "'na..me' is no name"),
        ("hf:org/.name", "'.name' is no name"),
        ("hf:org/name.git", "'name.git' is no name"),
        ("hf:org/name@a b", "'a b' is no branch"),
        ("hf:org/name@..", "is no branch"),
        ("hf:org/name#../x", "is no folder"),
        ("hf:org/name#a b", "is no folder"),
        ("https://huggingface.co/datasets/org/name", "not one of datasets"),
        ("https://huggingface.co/org/name/discussions/1", "is no page"),
        ("https://example.com/org/name", "a page of huggingface.co"),
        ("https://huggingface.co/org", "hf:ORG/NAME"),
        ("hf://org", "hf:ORG/NAME"),
        ("hf:", "hf:ORG/NAME"),
    ],
)
def test_what_is_no_repository_is_refused_in_one_line(text: str, said: str) -> None:
    with pytest.raises(errors.InvalidRequestError) as raised:
        parse_source(text)
    (line,) = error_lines(raised.value)
    assert said in line


@given(st.text("aZ9_-. /", min_size=1, max_size=7), st.text("aZ9_-.", min_size=1, max_size=7))
@example("_a", "_b_")
@example("a", "b--c")
def test_names_of_repositories_are_those_that_the_hubs_own_library_takes(owner: str, name: str) -> None:
    repo_id = f"{owner}/{name}"
    try:
        validate_repo_id(repo_id)
        is_valid = not owner.endswith((".", "-"))  # The hub has no such owner, though its library would ask.
    except HFValidationError:
        is_valid = False
    try:
        found = parse_source(f"hf:{repo_id}") == HubName(repo_id)
    except errors.InvalidRequestError:
        found = False
    assert found == is_valid
