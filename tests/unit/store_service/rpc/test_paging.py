"""Page tokens that nobody was given are refused, before a database sees what is in them."""

import base64
import json

import pytest

from hotslot.errors import InvalidPageTokenError
from shared.server.bounds import BOUNDS
from store_service.rpc.paging import Position, decode_token, encode_token

LISTING, FIRST = ("adapters", [["team", "x"]]), ("", 0)


def forged(document: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(document).encode()).decode()


@pytest.mark.parametrize("position", [("acme/bot", 7), ("", 0), ("ünïcode", 2**63 - 1)])
def test_a_position_is_found_again(position: Position) -> None:
    assert decode_token(encode_token(LISTING, position), LISTING, FIRST) == position
    assert decode_token("", LISTING, FIRST) == FIRST


@pytest.mark.parametrize(
    "position",
    [
        ["bot", 2**63],
        ["bot", -1],
        ["bot", True],
        ["bot", 1.0],
        ["bot", "7"],
        [7, 7],
        ["bot"],
        ["bot", 7, 7],
        ["\ud800", 7],
        ["a\0b", 7],
        None,
    ],
)
def test_a_forged_position_is_refused(position: object) -> None:
    mark, _ = json.loads(base64.urlsafe_b64decode(encode_token(LISTING, FIRST)))
    assert decode_token(forged([mark, ["bot", 7]]), LISTING, FIRST) == ("bot", 7)
    with pytest.raises(InvalidPageTokenError):
        decode_token(forged([mark, position]), LISTING, FIRST)


@pytest.mark.parametrize("token", ["x", "\ud800", "ä", forged({}), forged([1]), forged("[" * 50_000)])
def test_a_text_that_is_no_token_is_refused(token: str) -> None:
    with pytest.raises(InvalidPageTokenError):
        decode_token(token, LISTING, FIRST)


def test_a_token_is_as_short_as_its_position_whatever_the_filters_are() -> None:
    labels = [(f"{index:03}" + "ü" * 125, "ä" * 512) for index in range(64)]
    listing = ("adapters", labels, "base" * 1000, "prefix", True)
    token = encode_token(listing, ("x" * 255, 2**63 - 1))
    assert len(token) < 512 < BOUNDS["hotslot.store.v1.ListAdaptersRequest.page_token"].max_bytes
    assert decode_token(token, listing, FIRST) == ("x" * 255, 2**63 - 1)
    with pytest.raises(InvalidPageTokenError):
        decode_token(token, (*listing[:4], False), FIRST)


def test_a_token_of_another_listing_is_refused() -> None:
    with pytest.raises(InvalidPageTokenError):
        decode_token(encode_token(("adapters", []), ("bot", 7)), LISTING, FIRST)
