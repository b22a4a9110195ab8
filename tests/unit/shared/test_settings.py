"""Settings: flags over environment over defaults, and wrong values that explain themselves."""

import pytest
from pydantic import Field, ValidationError

from hotslot.secret_urls import masked_url
from shared.settings import SecretUrl, Settings, TextList, load
from store_service.settings import StoreSettings


class Example(Settings):
    """Serves examples."""

    num_slots: int = Field(default=8, ge=1)
    """Slots in every target module."""
    redis_url: SecretUrl = SecretUrl("redis://:hunter2@localhost:6379/0")
    """Where workers find each other."""
    verbose: bool = False
    """Say more."""
    roots: TextList = ()
    """Folders that may be read."""


class Required(Settings):
    """Needs something."""

    data_dir: str
    """Where blobs live."""


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    for name in list(os.environ):
        if name.upper().startswith("HOTSLOT_"):
            monkeypatch.delenv(name)


def read(*argv: str) -> Example:
    return load(Example, prog="example", argv=argv)


def test_defaults_hold_when_nothing_is_given() -> None:
    assert read() == Example()


def test_the_environment_sets_and_a_flag_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOTSLOT_NUM_SLOTS", "3")
    monkeypatch.setenv("HOTSLOT_SOMETHING_ELSE", "ignored")
    assert read().num_slots == 3
    assert read("--num-slots", "5", "--verbose").num_slots == 5
    assert read("--verbose").verbose
    assert not read("--no-verbose").verbose


def test_lists_are_repeated_or_separated_by_commas(monkeypatch: pytest.MonkeyPatch) -> None:
    assert read("--roots", "/a", "--roots", "/b").roots == ("/a", "/b")
    assert read("--roots", "/a,/b").roots == ("/a", "/b")
    monkeypatch.setenv("HOTSLOT_ROOTS", "/c,/d")
    assert read().roots == ("/c", "/d")


def test_constructing_by_hand_reads_no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOTSLOT_NUM_SLOTS", "3")
    assert Example().num_slots == 8
    with pytest.raises(ValidationError):
        Example(nun_slots=3)  # type: ignore[call-arg]


def test_settings_are_frozen() -> None:
    with pytest.raises(ValidationError):
        read().num_slots = 9


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--num-slots", "0"], "example: --num-slots (HOTSLOT_NUM_SLOTS): Input should be greater than or equal to 1"),
        (["--num-slots", "many"], "found 'many'"),
        (["--unknown", "1"], "unrecognized arguments: --unknown 1"),
        (["--redis-url", "hunter2"], "expected a URL"),
    ],
)
def test_a_wrong_value_is_one_clear_line_and_exit_code_2(
    argv: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        read(*argv)
    assert end.value.code == 2
    printed = capsys.readouterr().err
    assert said in printed
    assert len(printed.splitlines()) == 2
    assert "Traceback" not in printed
    assert "hunter2" not in printed


def test_a_missing_setting_names_its_flag_and_variable(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        load(Required, prog="p", argv=[])
    assert end.value.code == 2
    assert "--data-dir (HOTSLOT_DATA_DIR): must be set" in capsys.readouterr().err


def test_a_wrong_variable_in_the_environment_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOTSLOT_VERBOSE", "perhaps")
    with pytest.raises(SystemExit):
        read()
    assert "--verbose (HOTSLOT_VERBOSE)" in capsys.readouterr().err


def test_help_shows_every_docstring_and_no_secret(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        read("--help")
    assert end.value.code == 0
    printed = capsys.readouterr().out
    for text in ("Serves examples.", "--num-slots", "Slots in every target module.", "Where workers find each other."):
        assert text in printed
    assert "hunter2" not in printed


def test_secrets_are_never_shown() -> None:
    settings = Example()
    for text in (repr(settings), str(settings), str(settings.shown()), settings.model_dump_json()):
        assert "hunter2" not in text
        assert "redis://:***@localhost:6379/0" in text
    assert settings.redis_url.value == "redis://:hunter2@localhost:6379/0"


@pytest.mark.parametrize(
    ("url", "masked"),
    [
        ("redis://host:6379/0", "redis://host:6379/0"),
        ("rediss://user:p%40ss@host/1", "rediss://user:***@host/1"),
        ("redis://h/0?password=x&db=1", "redis://h/0?password=***&db=1"),
        ("postgresql://a:b:c@h/db", "postgresql://a:***@h/db"),
    ],
)
def test_a_masked_url_keeps_all_but_the_secret(url: str, masked: str) -> None:
    assert masked_url(url) == masked


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--hub-private-networks=10.0.0.1/8"], "--hub-private-networks"),
        (["--hub-private-networks=intranet"], "--hub-private-networks"),
        (["--hub-token=hf_secret"], "hub_token_tenants"),
    ],
)
def test_the_hubs_settings_are_checked_at_the_start(
    capsys: pytest.CaptureFixture[str], flags: list[str], named: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        load(StoreSettings, prog="store", argv=flags)
    assert ended.value.code == 2
    told = capsys.readouterr().err
    assert named in told
    assert "hf_secret" not in told


def test_the_hubs_token_is_for_nobody_until_tenants_are_named() -> None:
    assert load(StoreSettings, prog="store", argv=[]).hub_token_tenants == ()
    flags = ["--hub-token=hf_secret", "--hub-token-tenants=acme"]
    assert load(StoreSettings, prog="store", argv=flags).hub_token_tenants == ("acme",)
