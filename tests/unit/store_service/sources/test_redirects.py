"""A hub's redirects are followed to the endpoint and to hosts that are allowed, however a target is written."""

import httpx2
import pytest

from store_service.sources.hub.redirects import allowed_target

ENDPOINT = httpx2.URL("https://hub.example")
FROM = httpx2.URL("https://hub.example/org/name/resolve/main/file")
HOSTS = ("cdn.example", "hf.co")


@pytest.mark.parametrize(
    ("location", "target"),
    [
        ("/elsewhere", "https://hub.example/elsewhere"),
        ("https://hub.example/x", "https://hub.example/x"),
        ("https://cdn.example/x?sig=1", "https://cdn.example/x?sig=1"),
        ("https://cdn-lfs.hf.co/x", "https://cdn-lfs.hf.co/x"),
        ("https://CDN.example/x", "https://cdn.example/x"),
        ("//cdn.example/x", "https://cdn.example/x"),
        ("https://cdn.example:443/x", "https://cdn.example/x"),
    ],
)
def test_allowed_targets_are_followed(location: str, target: str) -> None:
    found = allowed_target(FROM, location, ENDPOINT, HOSTS)
    assert found is not None
    assert str(found) == target


@pytest.mark.parametrize(
    "location",
    [
        "http://cdn.example/x", "ftp://cdn.example/x", "file:///etc/passwd", "gopher://cdn.example/",
        "https://evil.example/", "https://evilcdn.example/", "https://cdn.example.evil.example/",
        "https://cdn.example./", "https://hub.example./", "https://.cdn.example.evil/", "http://hub.example/x",
        "https://hub.example:8443/x", "https://cdn.example:22/x", "https://cdn.example@evil.example/",
        "https://user:secret@cdn.example/", "https://user@hub.example/", "https://cdn.example\\@evil.example/",
        "https://evil.example#cdn.example", "https://evil.example/.cdn.example", "https://127.0.0.1/",
        "https://2130706433/", "https://0x7f.1/", "https://0177.0.0.1/", "https://[::1]/",
        "https://[::ffff:127.0.0.1]/", "https://169.254.169.254/latest/meta-data", "https://ｃdn.example/",
        "https://cdn。evil/", "https://ⓒdn.example/", "https://сdn.example/", "https://xn--dn-nmc.example/",
        "https://cdn.example%2eevil.example/", "https://cdn.example\x00.evil/",
        "https://[::1", "https://cdn.example:99999/",
    ],
)  # fmt: skip
def test_no_other_target_is_followed(location: str) -> None:
    assert allowed_target(FROM, location, ENDPOINT, HOSTS) is None


@pytest.mark.parametrize("location", ["", "https://", "https:///x", "\\\\evil\\x", "?x=https://evil.example"])
def test_what_names_no_host_stays_at_the_endpoint(location: str) -> None:
    found = allowed_target(FROM, location, ENDPOINT, HOSTS)
    assert found is not None
    assert (found.scheme, found.host, found.port) == ("https", "hub.example", None)
