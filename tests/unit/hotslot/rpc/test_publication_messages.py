"""Messages of publications: protobuf reads what was put together by hand, and no byte is copied twice."""

import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hotslot.clients import publishing
from hotslot.clients.publishing import ONE_MESSAGE_BYTES
from hotslot.clients.trained import MemoryFile
from hotslot.ids import digest_of
from hotslot.pb.hotslot.store.v1 import adapter_store_pb2 as pb
from hotslot.rpc.publication_messages import PublicationMessage

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
