"""Messages of publications: protobuf reads what was put together by hand, and no byte is copied twice."""

import tracemalloc

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from hotslot.clients import publishing
from hotslot.clients.publishing import ONE_MESSAGE_BYTES
from hotslot.clients.trained import MemoryFile
from hotslot.ids import digest_of
from hotslot.pb.hotslot.store.v1 import adapter_store_pb2 as pb
from hotslot.rpc.publication_messages import PublicationMessage, decode_publication

MIB = 2**20


FILES = st.builds(pb.StreamedFile, path=st.text(max_size=8), size_bytes=st.integers(0, 2**62))
FIELDS = st.builds(
    pb.PublishVersionRequest, data_digest=st.text(max_size=8), finish=st.booleans(), files=st.lists(FILES, max_size=3)
)


@given(st.lists(st.binary(max_size=300), max_size=5), FIELDS)
def test_protobuf_reads_the_message(pieces: list[bytes], fields: pb.PublishVersionRequest) -> None:
    found = pb.PublishVersionRequest.FromString(PublicationMessage([memoryview(p) for p in pieces], fields).encoded())
    assert found.data == b"".join(pieces)
    found.ClearField("data")
    assert found == fields


PARTS = st.one_of(
    FIELDS,
    st.builds(pb.PublishVersionRequest, data=st.binary(max_size=300)),
    st.builds(pb.PublishVersionRequest, version=st.builds(pb.CreateVersionRequest, reference=st.text(max_size=8))),
).map(pb.PublishVersionRequest.SerializeToString)
UNKNOWN = st.sampled_from(
    [
        b"\x78\x01",
        b"\x7a\x02ab",
        b"\x1a\x05a",
        b"\x1a\xff",
        b"\xff",
        b"\x1d\0\0\0\0",
        b"\x18\x07",
        b"\x1a\x81\x80\x80\x80\x00a",
        b"\x1a\x81\x80\x80\x80\x80\x00a",
    ]
)
"""A number and bytes under tags of no field, data that is cut off, other wire types under the tag of data, and lengths
with more digits than they need, and than they may have."""


@given(st.lists(st.one_of(PARTS, UNKNOWN), max_size=4))
def test_a_message_is_taken_apart_as_protobuf_does(parts: list[bytes]) -> None:
    message = b"".join(parts)
    try:
        expected = pb.PublishVersionRequest.FromString(message)
    except DecodeError:
        with pytest.raises(DecodeError):
            decode_publication(message)
        return
    found = decode_publication(message)
    assert found.data == expected.data
    for name in ("version", "files", "data_digest", "finish"):
        assert getattr(found.fields, name) == getattr(expected, name) == getattr(found, name)


def test_data_is_a_view_of_its_message() -> None:
    message = PublicationMessage([bytes(1000)], pb.PublishVersionRequest(finish=True)).encoded()
    assert decode_publication(message).data.obj is message


@pytest.mark.parametrize("chunk_bytes", [1, 7, 64, 4096])
@pytest.mark.parametrize("one_message_bytes", [0, 4096])
async def test_the_messages_bring_the_files_in_order(
    monkeypatch: pytest.MonkeyPatch, chunk_bytes: int, one_message_bytes: int
) -> None:
    monkeypatch.setattr(publishing, "CHUNK_BYTES", chunk_bytes)
    monkeypatch.setattr(publishing, "ONE_MESSAGE_BYTES", one_message_bytes)
    parts = [bytes([n]) * n for n in (3, 0, 64, 1, 65, 130)]
    files = (MemoryFile("config", (b"{}",)), MemoryFile("weights", parts))
    version = pb.CreateVersionRequest(reference="bot:train")
    sent = [
        pb.PublishVersionRequest.FromString(message.encoded()) async for message in publishing._messages(files, version)
    ]
    data = b"{}" + b"".join(parts)
    assert b"".join(message.data for message in sent) == data
    assert [message.finish for message in sent] == [*(False for _ in sent[1:]), True]
    assert sent[-1].data_digest == digest_of(data)
    assert sent[0].version == version
    assert [(file.path, file.size_bytes) for file in sent[0].files] == [("config", 2), ("weights", len(data) - 2)]
    assert max(len(message.data) for message in sent) <= max(chunk_bytes, one_message_bytes)


async def test_weights_are_copied_into_their_message_alone() -> None:
    data = memoryview(bytearray(ONE_MESSAGE_BYTES + 3 * MIB))
    files = (MemoryFile("weights", [data[at : at + 40_000] for at in range(0, len(data), 40_000)]),)
    tracemalloc.start()
    try:
        async for message in publishing._messages(files, pb.CreateVersionRequest(reference="bot")):
            assert len(message.encoded()) <= MIB + 64
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 1.5 * MIB
