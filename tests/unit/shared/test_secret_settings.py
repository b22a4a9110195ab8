"""Secrets in settings: refused in one line where they cannot be read, and never shown, whole or in part."""

import itertools
import traceback
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from redis.asyncio import ConnectionPool

from hotslot.cli.app import run
from hotslot.redis_url import CLUSTER_SCHEMES, NODE_SCHEMES, SENTINEL_SCHEMES, redis_stays_here
from hotslot.secret_urls import masked_url
from shared.coordination.connection import RedisOptions
from shared.settings import RedisUrl, SecretUrl, Settings, is_secret, load
from store_service.catalog.url import CatalogUrl
from store_service.settings import StoreSettings
from store_service.sources.hub.folder import HubOptions
from worker_service.compiled_code.archive import Archiver
from worker_service.settings import WorkerSettings

KINDS: list[tuple[type[Settings], tuple[str, ...]]] = [(StoreSettings, ()), (WorkerSettings, ("--model", "m"))]
HEAD, TAIL = "SECRETHEAD", "SECRETTAIL"
RESERVED = "/#?@%:"
TCP_SCHEMES = [scheme for scheme in (*NODE_SCHEMES, *CLUSTER_SCHEMES, *SENTINEL_SCHEMES) if scheme != "unix"]


def refused(kind: type[Settings], argv: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line with which a process ends."""
    with pytest.raises(SystemExit) as end:
        load(kind, prog="p", argv=argv)
    assert end.value.code == 2
    assert "SECRET" not in "".join(traceback.format_exception(end.value))
    printed = capsys.readouterr()
    assert printed.out == ""
    line, hint = printed.err.splitlines()
    assert hint == "p: --help lists all settings"
    return line


@pytest.mark.parametrize(("kind", "needed"), KINDS, ids=["store", "worker"])
@pytest.mark.parametrize("character", RESERVED)
def test_a_password_that_is_not_encoded_ends_the_start_in_a_line_without_a_piece_of_it(
    kind: type[Settings], needed: tuple[str, ...], character: str, capsys: pytest.CaptureFixture[str]
) -> None:
    line = refused(kind, [*needed, "--redis-url", f"redis://:{HEAD}{character}{TAIL}@127.0.0.1:6379/0"], capsys)
    assert line.startswith("p: --redis-url (HOTSLOT_REDIS_URL): percent-encode the password")
    assert "SECRET" not in line


@pytest.mark.parametrize("scheme", TCP_SCHEMES)
@pytest.mark.parametrize("character", RESERVED)
def test_no_piece_of_a_password_that_is_not_encoded_is_shown(scheme: str, character: str) -> None:
    for user, before in itertools.product(["", "hot"], [HEAD, "", "123"]):
        url = f"{scheme}://{user}:{before}{character}{TAIL}@127.0.0.1:6379/0"
        with pytest.raises(ValueError, match="percent-encode the password") as failure:
            RedisUrl.check(url)
        assert "SECRET" not in str(failure.value)
        assert "SECRET" not in masked_url(url)


@given(st.text(st.sampled_from([*RESERVED, "+", "=", "[", "]", "&", ";", "\\", '"', " ", "ü"]), min_size=1, max_size=6))
def test_any_password_is_shown_masked_and_taken_once_it_is_encoded(characters: str) -> None:
    password = f"{HEAD}{characters}{TAIL}"
    raw, encoded = f"redis://hot:{password}@host:6379/1", f"redis://hot:{quote(password, safe='')}@host:6379/1"
    RedisUrl.check(encoded)
    assert masked_url(encoded) == "redis://hot:***@host:6379/1"
    pool = ConnectionPool.from_url(encoded)
    assert pool.connection_kwargs["password"] == password
    for url in (raw, encoded):
        assert "SECRET" not in masked_url(url)
        assert "SECRET" not in repr(RedisUrl(url)) + str(RedisUrl(url)) + repr(RedisOptions(url))
    if set(characters) & set(RESERVED.replace("%", "")):
        with pytest.raises(ValueError, match="percent-encode the password") as failure:
            RedisUrl.check(raw)
        assert "SECRET" not in str(failure.value)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("redis+sentinel://:SECRETpw@a:1,b:2", "expected the name of the service"),
        ("redis+sentinel://:SECRETpw@a:1,b:2/mymaster/SECRET", "expected the name of the service"),
        ("rediss+sentinel://:SECRET/pw@a:1/mymaster", "percent-encode the password"),
        ("redis+sentinel://a:1,b:port/mymaster", "expected host:port, with a port from 1 to 65535"),
        ("redis+sentinel://a:1,b:0/mymaster", "port 0"),
        ("redis+sentinel://a:1,/mymaster", "expected host:port"),
        ("redis+sentinel://a:1/mymaster?sentinel_passwort=SECRET", "unknown parameter after ?"),
        ("redis://a:1/0?sentinel_password=SECRET", "unknown parameter after ?"),
        ("redis://a:1,b:2/0", "expected host:port"),
        ("sentinel://a:1", "unknown scheme 'sentinel'"),
        ("http://:SECRETpw@127.0.0.1:7699", "unknown scheme 'http'"),
        ("valkey://:SECRETpw@127.0.0.1:7699", "unknown scheme 'valkey'"),
        ("127.0.0.1:7699", "expected a URL, for example redis://host:6379/0"),
        (":SECRETpw@127.0.0.1:7699", "expected a URL"),
        ("", "expected a URL"),
        ("redis:/SECRET", "expected a URL"),
        ("redis://host:99999", "expected host:port, with a port from 1 to 65535"),
        ("redis://host:port", "expected host:port, with a port from 1 to 65535"),
        ("redis://host:0", "port 0"),
        ("redis://::1:6379", "expected host:port"),
        ("redis://host/SECRETname", "only the number of a database may follow"),
        ("redis://host:6379#SECRET", "percent-encode the password"),
        ("redis://host:6379/0?passwort=SECRET", "unknown parameter after ?"),
        ("redis://ho st:6379", "expected host:port"),
        ("unix://run/redis.sock", "expected the path of a socket"),
        ("unix://", "expected the path of a socket"),
        ("redis+cluster://host:6379/1", "a cluster has no numbered databases"),
        ("rediss+cluster://host?db=2", "a cluster has no numbered databases"),
    ],
)
@pytest.mark.parametrize(("kind", "needed"), KINDS, ids=["store", "worker"])
def test_a_url_that_is_none_of_redis_is_one_line(
    kind: type[Settings], needed: tuple[str, ...], url: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    line = refused(kind, [*needed, "--redis-url", url], capsys)
    assert said in line
    assert "SECRET" not in line


@pytest.mark.parametrize(
    "url",
    [
        "redis://localhost",
        "redis://host:6379/0",
        "redis://:pass@[::1]:6379/0",
        "redis://[fd00::1]:6379",
        "rediss://user:pa%2Fss@host/1?ssl_cert_reqs=none",
        "redis://host:6379/0?password=SECRETquery&db=1",
        "redis+cluster://a:6379",
        "rediss+cluster://:pass@a:6379",
        "redis+sentinel://a,b:26379/mymaster",
        "rediss+sentinel://u:pass@[::1]:26379,b/my.master-1/2?sentinel_password=SECRETquery&sentinel_username=s",
        "unix:///run/redis.sock?db=1",
        "unix://user:pass@/run/redis.sock",
        "redis:///0",
    ],
)
def test_urls_of_redis_are_taken_and_their_secrets_hidden(url: str) -> None:
    settings = StoreSettings(redis_url=RedisUrl(url))
    assert settings.redis_url is not None
    assert settings.redis_url.value == url
    for shown in (repr(settings), str(settings.shown()), settings.model_dump_json()):
        assert "SECRET" not in shown
        assert "pass@" not in shown


@pytest.mark.parametrize(("kind", "needed"), KINDS, ids=["store", "worker"])
def test_every_setting_that_sounds_like_a_secret_is_one(kind: type[Settings], needed: tuple[str, ...]) -> None:
    sounds = ("password", "secret", "token", "credential", "_url", "key")
    harmless = {"hub_token_tenants", "kv_tokens", "block_tokens", "max_sequence_tokens", "quota_tokens_per_minute"}
    # The path of a secret's file is none.
    harmless |= {name for name, field in kind.model_fields.items() if field.annotation == Path | None}
    sounding = {name for name in kind.model_fields if any(sound in name for sound in sounds)} - harmless
    assert sounding >= {"redis_url"}
    assert [name for name in sorted(sounding) if not is_secret(kind.model_fields[name])] == []


@pytest.mark.parametrize(("kind", "needed"), KINDS, ids=["store", "worker"])
def test_no_secret_setting_is_shown_by_its_settings(kind: type[Settings], needed: tuple[str, ...]) -> None:
    values: dict[str, Any] = {"model": "m"} if needed else {}
    for name, field in kind.model_fields.items():
        if is_secret(field):
            is_url = "_url" in name
            scheme = "postgresql+psycopg" if name == "catalog_url" else "redis"
            values[name] = f"{scheme}://u:SECRETSECRETSECRET@host/0" if is_url else "SECRETSECRETSECRET"
    if "hub_token" in values:
        values["hub_token_tenants"] = ("acme",)
    settings = kind(**values)
    assert len(values) >= 2
    for shown in (repr(settings), str(settings), str(settings.shown()), settings.model_dump_json(), f"{settings!r}"):
        assert "SECRET" not in shown


def test_no_options_object_shows_the_secret_that_it_carries(tmp_path: Path) -> None:
    for options in (
        HubOptions(token="SECRET"),
        RedisOptions("redis://:SECRET@host"),
        Archiver(tmp_path, 1, b"SECRET"),
    ):
        assert "SECRET" not in repr(options) + str(options)


def test_an_error_of_settings_made_by_hand_holds_no_input() -> None:
    with pytest.raises(ValidationError) as failure:
        StoreSettings(redis_url="redis://:SECRET/x@host", num_io_threads=0)  # type: ignore[arg-type]
    assert "percent-encode" in str(failure.value)
    assert "SECRET" not in str(failure.value)


def test_a_url_in_a_wrong_place_is_masked(capsys: pytest.CaptureFixture[str]) -> None:
    for argv in (["--redis-urll", "redis://:SECRET@host"], ["--num-io-threads", "redis://:SECRET/x@host"]):
        assert "SECRET" not in refused(StoreSettings, argv, capsys)
    for name in ("--store", "--advertise", "--listen"):
        assert "SECRET" not in refused(WorkerSettings, ["--model", "m", name, "redis://u:SECRET@host:1"], capsys)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql+psycopg://u:pa/ss@h/db", "postgresql+psycopg://***"),
        (
            "postgresql://u:p@h/db?sslmode=require&sslpassword=x",
            "postgresql://u:***@h/db?sslmode=require&sslpassword=***",
        ),
        ("s3://bucket/prefix@1", "s3://bucket/prefix@1"),
        ("sqlite:////data/a@b.sqlite", "sqlite:////data/a@b.sqlite"),
        ("redis://:a@b?c@host", "redis://***"),
    ],
)
def test_other_urls_are_masked_as_carefully(url: str, shown: str) -> None:
    assert str(SecretUrl(url)) == shown


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("nonsense", "expected a URL"),
        ("postgres://u:SECRET@h/db", "unknown dialect 'postgres'"),
        ("oracel+x://u:SECRET@h/db", "unknown dialect 'oracel+x'"),
        ("mysql://u:SECRET@h/db", "no catalog can be in mysql://"),
        ("postgresql+asyncpg://u:SECRET@h/db", "no catalog can be in postgresql+asyncpg://"),
        ("postgresql+pg8000://u:SECRET@h/db", "the driver of postgresql+pg8000:// (pg8000) is not installed"),
        ("postgresql+psycopg://u:SECRET@h:port/db", "it cannot be read as a database's URL"),
        ("postgresql+nodriver://u:SECRET@h/db", "unknown dialect 'postgresql+nodriver'"),
    ],
)
def test_a_catalog_that_no_database_can_hold_is_refused_in_a_line(
    url: str, said: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    line = refused(StoreSettings, ["--catalog-url", url], capsys)
    assert said in line
    assert "SECRET" not in line
    monkeypatch.setenv("HOTSLOT_CATALOG_URL", url)
    assert said in refused(StoreSettings, [], capsys)


@pytest.mark.parametrize("url", ["sqlite:////data/c.sqlite3", "sqlite://", "postgresql+psycopg://u:p@h:5432/db"])
def test_databases_that_a_catalog_can_be_in_are_taken(url: str) -> None:
    assert str(StoreSettings(catalog_url=CatalogUrl(url)).catalog_url) == masked_url(url)


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("listen", "nonsense", "expected host:port"),
        ("listen", ":7500", "the host is missing"),
        ("listen", "::1:7660", "an IPv6 address needs brackets"),
        ("listen", "dns:///host:1", "nothing to listen on"),
        ("store", "host:0", "port 0"),
        ("store", "host:99999", "expected a port"),
        ("store", "http://store:7400", "without http://"),
        ("advertise", "fd00::1:7650", "an IPv6 address needs brackets"),
        ("advertise", "[::1]:0", "port 0"),
        ("advertise", "nonsense", "expected host:port"),
        ("advertise", "host:99999", "expected a port"),
        ("advertise", "0.0.0.0:7650", "wildcard"),
        ("advertise", "[::]:7650", "wildcard"),
        ("advertise", "[fe80::1%eth0]:7500", "zone"),
        ("advertise", "unix:/run/x.sock", "not for other machines"),
    ],
)
def test_a_wrong_endpoint_ends_the_start_in_one_line(
    name: str, text: str, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(f"HOTSLOT_{name.upper()}", text)
    line = refused(WorkerSettings, ["--model", "m"], capsys)
    assert line.startswith(f"p: --{name} (HOTSLOT_{name.upper()}): ")
    assert said in line
    assert line.endswith(f"found {text!r}")


def test_a_pods_address_is_advertised_in_either_kind_of_cluster() -> None:
    for address, told in (("10.1.2.3", "10.1.2.3:7500"), ("fd00::12", "[fd00::12]:7500")):
        assert WorkerSettings(model="m", advertise=f"[{address}]:7500").advertise == told


def test_a_worker_on_a_socket_must_say_where_others_reach_it() -> None:
    redis = RedisUrl("redis://host")
    with pytest.raises(ValidationError, match="advertise: must be set"):
        WorkerSettings(model="m", listen="unix:/run/worker.sock", redis_url=redis)
    WorkerSettings(model="m", listen="unix:/run/worker.sock")
    WorkerSettings(model="m", listen="unix:/run/worker.sock", redis_url=redis, advertise="host:1")


@pytest.mark.parametrize("url", ["redis://:SECRET/x@host:1", "redis+sentinel://:SECRET@host", "SECRET"])
def test_up_refuses_a_redis_url_before_it_starts_anything(
    url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["up", "--redis-url", url, "--data-dir", str(tmp_path / "data")]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    (line,) = printed.err.splitlines()
    assert line.startswith("hotslot: --redis-url (HOTSLOT_REDIS_URL): ")
    assert "SECRET" not in line
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    ("url", "stays"),
    [
        ("redis://localhost", True),
        ("redis://127.0.0.1:1/0", True),
        ("rediss://u:p%40@[::1]", True),
        ("unix:///run/redis.sock", True),
        ("redis+cluster://127.0.0.1:7000", True),
        ("redis://10.0.0.1:6379", False),
        ("rediss+cluster://redis:6379", False),
        ("redis+sentinel://127.0.0.1:1/mymaster", False),
    ],
)
def test_a_redis_on_this_machine_is_known_by_its_url(url: str, stays: bool) -> None:
    assert redis_stays_here(url) == stays
