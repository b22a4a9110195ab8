"""The table of bounds is complete, and what is beyond a bound is refused before it is decoded."""

import random
import resource
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hotslot.errors import InvalidRequestError
from hotslot.pb.hotslot.store.v1 import adapter_store_pb2 as pb
from hotslot.pb.hotslot.worker.v1 import inference_pb2
from shared.server.bounds import BOUNDS, GROUPS, MAX_STRAYS
from shared.server.bounds_page import as_markdown
from shared.server.wire_definitions import MAX_UNPACKED
from shared.server.wire_scan import Refused, RequestDecoder, check_bounds, decoder_of
from tests.support.request_messages import Place, class_of, methods, places, services, varint

PLACES = places()
REPEATED = [place for place in PLACES if place.field.is_repeated]
TEXTS = [place for place in PLACES if place.field.type in (place.field.TYPE_STRING, place.field.TYPE_BYTES)]


def max_entries_of(place: Place) -> int:
    """Of entries that stand one by one."""
    most, is_number = BOUNDS[place.field.full_name].max_entries, place.field.type == place.field.TYPE_INT32
    return min(most, MAX_UNPACKED) if is_number else most


def decode(place: Place, data: bytes) -> Any:
    return RequestDecoder(place.method.input_type, class_of(place.method.input_type).FromString)(data)


def refusal(place: Place, data: bytes) -> tuple[str, str]:
    """The field and the problem that a request is refused with."""
    answer = decode(place, data)
    assert isinstance(answer, Refused), f"{len(data)} bytes of {place} were decoded"
    assert isinstance(answer.error, InvalidRequestError)
    assert len(answer.error.message) < 500
    (problem,) = answer.error.fields
    return problem.field, problem.description


def test_every_repeated_text_or_bytes_field_of_a_request_has_a_bound() -> None:
    assert len(methods()) > 40
    missing = sorted({place.field.full_name for place in PLACES} - BOUNDS.keys())
    assert not missing, "give these a row in shared/server/bounds.py"


def test_a_bound_names_a_field_that_exists_and_one_group_only() -> None:
    assert sorted(BOUNDS.keys() - {place.field.full_name for place in PLACES}) == []
    assert sum(len(group.fields) for group in GROUPS) == len(BOUNDS)


def test_a_bound_says_what_its_field_needs() -> None:
    for place in PLACES:
        bound, field = BOUNDS[place.field.full_name], place.field
        assert (bound.max_entries > 1) == field.is_repeated, field.full_name
        assert (bound.max_bytes > 0) == (field.type in (field.TYPE_STRING, field.TYPE_BYTES)), field.full_name


def test_the_page_about_bounds_is_current() -> None:
    page = Path(__file__).parents[4] / "docs" / "bounds.md"
    assert page.read_text() == as_markdown(), "run python -m shared.server.bounds_page > docs/bounds.md"


def test_a_server_does_not_start_with_a_field_without_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    for service in services():
        check_bounds(service.full_name)
    monkeypatch.delitem(BOUNDS, "hotslot.store.v1.UploadedFile.path")
    with pytest.raises(LookupError, match=r"UploadedFile\.path has no bound"):
        check_bounds("hotslot.store.v1.AdapterStoreService")


@pytest.mark.parametrize("place", REPEATED, ids=str)
def test_as_many_entries_as_the_bound_are_taken_and_one_more_is_refused(place: Place) -> None:
    most = max_entries_of(place)
    assert not isinstance(decode(place, place.empty_entries(most)), Refused)
    field, problem = refusal(place, place.empty_entries(most + 1))
    assert field == place.path
    assert problem == f"found at least {most + 1:,} entries, at most {most:,} are taken"


@pytest.mark.parametrize("place", REPEATED, ids=str)
def test_two_million_empty_entries_cost_neither_memory_nor_time(place: Place) -> None:
    data = place.empty_entries(2 * 2**20)
    before_kib, began_s = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    field, _ = refusal(place, data)
    assert field == place.path
    # 5 ms and nothing on a machine without other work; decoding them takes a second and 60 to 300 MiB.
    assert time.process_time() - began_s < 0.2
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kib < 4 * 1024


@pytest.mark.parametrize("place", TEXTS, ids=str)
def test_a_text_as_long_as_its_bound_is_taken_and_one_byte_more_is_refused(place: Place) -> None:
    most = BOUNDS[place.field.full_name].max_bytes
    assert not isinstance(decode(place, place.of_length(most)), Refused)
    assert refusal(place, place.of_length(most + 1)) == (
        place.path,
        f"found {most + 1:,} bytes, at most {most:,} are taken",
    )


def test_entries_are_counted_in_the_whole_message() -> None:
    """Also where many messages hold some each, and where a message stands in pieces that are merged."""
    most = BOUNDS["hotslot.worker.v1.ChatPrompt.messages"].max_entries
    place = next(place for place in PLACES if place.path == "chat.messages")
    half = place.empty_entries(most // 2)
    assert not isinstance(decode(place, half * 2), Refused)
    assert refusal(place, half * 2 + place.empty_entries(1))[0] == "chat.messages"


@pytest.mark.parametrize("number", [0, 127, 128, 2**20, -1])
def test_packed_numbers_are_counted_however_long_they_are(number: int) -> None:
    most = BOUNDS["hotslot.worker.v1.StopConditions.stop_token_ids"].max_entries
    place = next(place for place in PLACES if place.path == "stop.stop_token_ids")

    def request(count: int) -> bytes:
        stop = inference_pb2.StopConditions(stop_token_ids=[number] * count)
        return inference_pb2.GenerateRequest(stop=stop).SerializeToString()

    assert list(decode(place, request(most)).stop.stop_token_ids) == [number] * most
    assert len(decode(place, request(most - 1) + request(1)).stop.stop_token_ids) == most
    assert refusal(place, request(most + 1))[0] == place.path
    assert refusal(place, request(most) + request(1))[0] == place.path
    assert refusal(place, request(most // 2) + place.empty_entries(most))[0] == place.path


def test_a_list_of_numbers_in_many_pieces_is_refused_even_if_they_are_empty() -> None:
    place = next(place for place in PLACES if place.path == "tokens.token_ids")
    began_s = time.process_time()
    field, problem = refusal(place, place.message(b"\x0a\x00" * 2**20))
    assert (field, problem[:9]) == ("tokens", "more than")
    assert time.process_time() - began_s < 0.2


@pytest.mark.parametrize("entry", [b"\x78\x01", b"\x7a\x00", b"\x79" + b"\0" * 8, b"\x7d" + b"\0" * 4, b"\x0a\x00"])
def test_fields_that_are_unknown_or_stand_too_often_are_bounded(entry: bytes) -> None:
    place = next(place for place in PLACES if str(place) == "GetAdapter.name")
    assert not isinstance(decode(place, entry * MAX_STRAYS), Refused)
    began_s = time.process_time()
    field, problem = refusal(place, entry * 2**20)
    assert (field, problem[:9]) == ("request", "more than")
    assert time.process_time() - began_s < 0.2


def test_fields_that_are_unknown_are_bounded_in_nested_messages_too() -> None:
    place = next(place for place in PLACES if str(place) == "CreateVersion.files.path")
    one_file = place.message(b"\x78\x01" * 30)
    assert not isinstance(decode(place, one_file * 30), Refused)
    long_file = place.message(b"\x78\x01" * 2_100)
    field, problem = refusal(place, long_file * 2)
    assert (field, problem[:9]) == ("files", "more than")


UNDECODABLE = {
    "a length beyond the end": b"\x0a\x10x",
    "half a surrogate pair": b"\x0a\x03\xed\xa0\x80",
    "not UTF-8": b"\x0a\x01\xff",
    "a number without an end": b"\x78" + b"\x80" * 2**20,
    "a tag without an end": b"\x80" * 2**20,
    "a group in a group and so on": b"\x7b" * 2**20,
    "the end of a group": b"\x7c",
    "field number 0": b"\x02\x00",
    "a wire type that does not exist": b"\x0f",
    "text": b"GET / HTTP/1.1\r\n\r\n",
    "a length of 2**63": b"\x0a" + b"\xff" * 8 + b"\x7f",
}


@pytest.mark.parametrize("data", UNDECODABLE.values(), ids=UNDECODABLE.keys())
@pytest.mark.parametrize("filler", [b"", b"\x0a\x80\x1e" + b"x" * 3840 + b"\x78\x01" * 200], ids=["short", "long"])
def test_what_cannot_be_decoded_is_refused_with_the_message_that_was_expected(data: bytes, filler: bytes) -> None:
    place = next(place for place in PLACES if str(place) == "GetAdapter.name")
    field, problem = refusal(place, filler + data)
    assert field == "request"
    assert "are no hotslot.store.v1.GetAdapterRequest" in problem


@given(st.binary(max_size=200), st.sampled_from(methods()), st.booleans())
def test_any_bytes_are_decoded_as_ever_or_refused(data: bytes, method: Any, is_long: bool) -> None:
    """The scan takes what protobuf takes, groups aside, and raises nothing else."""
    data = data + b"\x9a\x7d\x80\x20" + b"x" * 4096 if is_long else data
    kind = class_of(method.input_type)
    answer = RequestDecoder(method.input_type, kind.FromString)(data)
    if not isinstance(answer, Refused):
        assert answer == kind.FromString(data)


def test_requests_of_ordinary_size_are_decoded_as_ever() -> None:
    chances = random.Random(1)
    modules = [
        pb.BaseModule(path=f"model.layers.{index}.q_proj", in_features=chances.randrange(2**20), out_features=5)
        for index in range(20_000)
    ]
    request = pb.RegisterBaseModelRequest(base_model=pb.BaseModel(name="base", digest="d", modules=modules))
    decoder = decoder_of("/hotslot.store.v1.AdapterStoreService/RegisterBaseModel", type(request).FromString)
    assert decoder is not None
    assert decoder(request.SerializeToString()) == request


def test_a_handler_that_takes_bytes_is_given_them_within_the_bounds() -> None:
    decoder = decoder_of("/hotslot.store.v1.AdapterStoreService/GetAdapter", None)
    assert decoder is not None
    request = pb.GetAdapterRequest(name="x" * 4_000).SerializeToString()
    assert decoder(request) == request
    assert isinstance(decoder(request * 5_000), Refused)


def test_a_varint_stands_as_protobuf_writes_it() -> None:
    tokens = inference_pb2.TokenPrompt(token_ids=[300])
    assert tokens.SerializeToString() == b"\x0a" + varint(2) + varint(300)
