"""URLs of sources: each means one place, carries no credentials, and says what is wrong with another."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hotslot.errors import InvalidRequestError
from hotslot.ids import digest_of
from hotslot.source_urls import ArchiveUrl, ObjectFolderUrl, parse_source_url
from hotslot.sources import HubName, parse_source

DIGEST = digest_of(b"archive")
HEX = DIGEST.removeprefix("sha256:")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("s3://models/acme/bot/", ObjectFolderUrl("s3", "models", "acme/bot")),
        ("s3://models", ObjectFolderUrl("s3", "models", "")),
        ("gs://models.example.com/a b=1", ObjectFolderUrl("gs", "models.example.com", "a b=1")),
        ("az://container/ä", ObjectFolderUrl("az", "container", "ä")),
        (f"https://Example.com:443/a/bot.tar#sha256:{HEX}", ArchiveUrl("example.com", "/a/bot.tar", DIGEST)),
        (f"https://example.com:8443/bot.tgz#sha256={HEX}", ArchiveUrl("example.com:8443", "/bot.tgz", DIGEST)),
        (f"https://[2001:db8::1]/bot.tar.gz#sha256:{HEX}", ArchiveUrl("[2001:db8::1]", "/bot.tar.gz", DIGEST)),
    ],
)
def test_a_url_is_read_and_written_alike(text: str, expected: ObjectFolderUrl | ArchiveUrl) -> None:
    assert parse_source_url(text) == expected
    assert parse_source_url(str(expected)) == expected
    assert parse_source(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "ftp://host/bot.tar", "file:///etc", "s3:/models", "s3://", "s3://M/a", "s3://a..b/c", "s3://models/a/../b",
        "s3://models/a//b", "s3://models/./b", "s3://models/a%2e", "s3://models/a?versionId=1", "s3://models/a#b",
        "s3://key:secret@models/a", "s3://models/a\\b", "s3://models/a\nb", "s3://" + "m" * 2100,
        "https://user:secret@host/bot.tar", "https://host/bot.tar?token=secret", "http://host/bot.tar",
        "https://host/a/../bot.tar", "https://host/%2e%2e/bot.tar", "https://host/a%2Fbot.tar", "https://host//bot.tar",
        "https://host/a%5cbot.tar", "https://host/%252e%252e/bot.tar", "https://host/bot.zip", "https:///bot.tar",
        "https://ho st/bot.tar", "https://host:x/bot.tar", "https://host/bot.tar#part", "https://host\\@other/bot.tar",
    ],
)  # fmt: skip
def test_what_means_no_place_or_carries_credentials_is_refused_without_showing_them(text: str) -> None:
    with pytest.raises(InvalidRequestError) as raised:
        parse_source_url(text, DIGEST if text.startswith("https") else "")
    assert "secret" not in raised.value.message


def test_an_archive_needs_one_digest_and_objects_none() -> None:
    assert parse_source_url("https://host/bot.tar", DIGEST) == ArchiveUrl("host", "/bot.tar", DIGEST)
    other = digest_of(b"other")
    for text, digest in (
        ("https://host/bot.tar", ""),
        (f"https://host/bot.tar#{DIGEST}", other),
        ("https://host/bot.tar", "sha256:0"),
        ("s3://models/bot", DIGEST),
    ):
        with pytest.raises(InvalidRequestError):
            parse_source_url(text, digest)


def test_pages_of_the_hub_stay_pages_of_the_hub() -> None:
    assert parse_source("https://huggingface.co/org/name") == HubName("org/name")
    with pytest.raises(InvalidRequestError, match="https://"):
        parse_source("hf:org/name", DIGEST)


@given(st.text(max_size=30))
def test_a_folder_that_is_accepted_has_no_way_out(text: str) -> None:
    try:
        found = parse_source_url(f"s3://models/{text}")
    except InvalidRequestError:
        return
    assert isinstance(found, ObjectFolderUrl)
    assert not {".", ".."} & set(found.folder.split("/"))
    assert parse_source_url(str(found)) == found
