"""Access to sources: rows are for their tenants, below their prefixes, and nothing of the environment joins in."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hotslot.errors import InvalidRequestError, SourceForbiddenError, SourceUnavailableError, StoreUnavailableError
from hotslot.ids import TenantId, digest_of
from hotslot.source_urls import ArchiveUrl, ObjectFolderUrl, parse_source_url
from store_service.sources.access import SourceAccess, SourceGrant
from store_service.sources.remote.signing import ObjectAddresses

SECRET = "very-secret"
KEYS = {"access_key_id": "key", "secret_access_key": SECRET}
ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "environments",
    "AWS_SECRET_ACCESS_KEY": "environments",
    "AWS_SESSION_TOKEN": "environments",
    "AWS_ENDPOINT": "http://environments:1",
    "AWS_ENDPOINT_URL": "http://environments:1",
    "AWS_ENDPOINT_URL_S3": "http://environments:1",
    "AWS_SKIP_SIGNATURE": "true",
    "AWS_VIRTUAL_HOSTED_STYLE_REQUEST": "true",
    "AWS_S3_EXPRESS": "true",
    "AWS_REGION": "environments",
    "AZURE_STORAGE_TOKEN": "environments",
    "AZURE_STORAGE_SAS_TOKEN": "environments=1",
    "AZURE_STORAGE_ACCOUNT_NAME": "environments",
    "AZURE_STORAGE_ACCOUNT_KEY": "environments",
    "AZURE_STORAGE_ENDPOINT": "http://environments:1",
    "AZURE_SKIP_SIGNATURE": "true",
}


def row(prefix: str, *tenants: str, **more: Any) -> dict[str, Any]:
    credentials = {"s3": KEYS} if prefix.startswith("s3://") else {}
    return {"prefix": prefix, "tenants": tenants, **credentials, **more}


@contextmanager
def access_of(folder: Path, *rows: dict[str, Any]) -> Iterator[SourceAccess]:
    path = folder / "access.json"
    path.write_text(json.dumps({"sources": rows}))
    yield SourceAccess(path)


WORDS = st.lists(st.sampled_from(["a", "ab", "b"]), max_size=3)
TENANTS = st.sampled_from(["acme", "other", "third"])


@given(st.lists(st.tuples(WORDS, TENANTS), max_size=4), WORDS, TENANTS)
def test_a_grant_is_the_tenants_longest_prefix(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[list[str], str]], words: list[str], tenant: str
) -> None:
    url = parse_source_url("/".join(["s3://models", *words]))
    own = [prefix for prefix, owner in rows if owner == tenant and words[: len(prefix)] == prefix]
    written = (row("/".join(["s3://models", *prefix]), owner) for prefix, owner in rows)
    with access_of(tmp_path_factory.mktemp("access"), *written) as access:
        if not own:
            with pytest.raises(SourceForbiddenError):
                access.grant(TenantId(tenant), url)
            return
        grant = access.grant(TenantId(tenant), url)
    assert tenant in grant.tenants
    assert grant.parts() == ("s3", "models", *max(own, key=len))


def test_hosts_and_schemes_are_told_apart(tmp_path: Path) -> None:
    archive = digest_of(b"x")
    with access_of(tmp_path, row("https://models.example.com/a", "*"), row("s3://models", "*")) as access:
        assert access.grant(TenantId("any"), ArchiveUrl("models.example.com", "/a/bot.tar", archive)).tenants == ("*",)
        for url in (
            ArchiveUrl("models.example.com:8443", "/a/bot.tar", archive),
            ArchiveUrl("models.example.com.evil.example", "/a/bot.tar", archive),
            ArchiveUrl("models.example.com", "/b/bot.tar", archive),
            ObjectFolderUrl("gs", "models", ""),
        ):
            with pytest.raises(SourceForbiddenError):
                access.grant(TenantId("any"), url)
    with pytest.raises(SourceForbiddenError):
        SourceAccess(None).grant(TenantId("any"), ObjectFolderUrl("s3", "models", ""))


@pytest.mark.parametrize(
    "wrong",
    [
        {"sources": [row("s3://models")]},
        {"sources": [row("s3://models", "acme", gcs={"service_account_file": SECRET})]},
        {"sources": [{"prefix": "s3://models", "tenants": ["acme"]}]},
        {"sources": [row("s3://models/..", "acme")]},
        {"sources": [row("https://host?token=very-secret", "acme")]},
        {"sources": [row("https://host", "acme", web={"token": SECRET})]},
        {"sources": [row("s3://models", "acme", s3={**KEYS, "endpoint": f"https://{SECRET}@host"})]},
        {"sources": [row("s3://models", "acme", s3={"access_key_id": "key", "secret_access_key": [SECRET]})]},
        {"sources": [row("s3://models", "no tenant")]},
        {"source": []},
        [],
    ],
)
def test_a_file_that_is_wrong_stops_a_start_and_shows_no_secret(tmp_path: Path, wrong: object) -> None:
    path = tmp_path / "access.json"
    path.write_text(json.dumps(wrong))
    with pytest.raises(InvalidRequestError) as raised:
        SourceAccess(path).open()
    assert SECRET not in raised.value.message
    with pytest.raises(StoreUnavailableError):
        SourceAccess(path).grant(TenantId("acme"), ObjectFolderUrl("s3", "models", ""))


def test_nothing_of_the_environment_signs_or_leads_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    azure = {"account_name": "account", "account_key": "c2VjcmV0"}
    for prefix, credentials, begins, has in (
        (
            "s3://models",
            {"s3": KEYS},
            "https://s3.us-east-1.amazonaws.com/models/bot/a%20b?",
            "X-Amz-Credential=key%2F",
        ),
        ("az://models", {"azure": azure}, "https://account.blob.core.windows.net/models/bot/a%20b?", "sig="),
    ):
        grant = SourceGrant.model_validate({"prefix": prefix, "tenants": ["*"], **credentials})
        url = parse_source_url(f"{prefix}/bot")
        assert isinstance(url, ObjectFolderUrl)
        with monkeypatch.context() as patched:
            for name, value in ENVIRONMENT.items():
                patched.setenv(name, value)
            signed, headers = ObjectAddresses(url, grant).of("a b")("HEAD")
        assert signed.startswith(begins)
        assert has in signed
        assert "environments" not in signed
        assert not headers


def test_an_address_that_leads_elsewhere_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    grant = SourceGrant.model_validate({"prefix": "s3://models", "tenants": ["*"], "s3": KEYS})
    addresses = ObjectAddresses(ObjectFolderUrl("s3", "models", "bot"), grant)
    monkeypatch.setattr(addresses, "_sign", lambda method, key: f"http://elsewhere/models/{key}?signature={SECRET}")
    with pytest.raises(SourceUnavailableError) as raised:
        addresses.of("a")("GET")
    assert SECRET not in raised.value.message
