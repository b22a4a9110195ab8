"""Files that come with a call: weights in memory while there is room, and all others on the disk."""

import errno
import hashlib
import io
from pathlib import Path

import numpy as np
import pytest

from hotslot.content_files import digest_of_file
from hotslot.errors import DigestMismatchError, InvalidRequestError
from hotslot.ids import Digest, digest_of_hex
from shared.recycled_memory import RecycledMemory
from store_service.content.arrivals import Arrival, ArrivalFolder, ArrivingFile

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
FILES = {CONFIG: b"config", WEIGHTS: bytes(range(100))}
DATA = b"".join(FILES.values())


def digest_of(data: bytes) -> Digest:
    return digest_of_hex(hashlib.sha256(data).hexdigest())


def begin(folder: ArrivalFolder, files: dict[str, bytes] = FILES) -> Arrival:
    return folder.begin([ArrivingFile(name, len(data)) for name, data in files.items()])


def received(arrival: Arrival, data: bytes = DATA, at_once: int = 7) -> dict[str, bytes]:
    """Contents of all files, taken in small pieces."""
    for position in range(0, len(data), at_once):
        arrival.write(memoryview(data)[position : position + at_once])
    checkpoint = arrival.finish(digest_of(DATA))
    found = {name: path.read_bytes() for name, path in checkpoint.files.items()}
    return found | ({checkpoint.held.name: bytes(checkpoint.held.data)} if checkpoint.held is not None else {})


@pytest.mark.parametrize(("held_bytes", "num_on_disk"), [(100, 1), (99, 2), (0, 2)])
def test_weights_are_on_the_disk_only_where_memory_has_no_room(
    tmp_path: Path, held_bytes: int, num_on_disk: int
) -> None:
    arrival = begin(ArrivalFolder(tmp_path, max_bytes=1000, held_bytes=held_bytes))
    assert received(arrival) == FILES
    assert len(list(tmp_path.glob("arrivals/*/*"))) == num_on_disk
    arrival.discard()
    assert not list((tmp_path / "arrivals").iterdir())


def test_room_in_memory_is_that_of_all_callers_and_comes_back_once(tmp_path: Path) -> None:
    folder = ArrivalFolder(tmp_path, max_bytes=1000, held_bytes=150)
    first, second = begin(folder), begin(folder)
    first.write(DATA[:-1])
    second.write(DATA[:-1])
    assert len(list(tmp_path.glob("arrivals/*/*"))) == 3, "both configs, and the weights of the second"
    for _ in range(2):
        first.discard()
    second.discard()
    third, fourth = begin(folder), begin(folder)
    assert received(third) == received(fourth) == FILES
    assert len(list(tmp_path.glob("arrivals/*/*"))) == 3


@pytest.mark.parametrize("held_bytes", [0, 1000])
@pytest.mark.parametrize("flipped", [0, len(FILES[CONFIG]), len(DATA) - 1])
def test_a_flipped_bit_is_found(tmp_path: Path, held_bytes: int, flipped: int) -> None:
    data = bytearray(DATA)
    data[flipped] ^= 1
    arrival = begin(ArrivalFolder(tmp_path, max_bytes=1000, held_bytes=held_bytes))
    with pytest.raises(DigestMismatchError):
        received(arrival, bytes(data))


def test_other_files_than_weights_have_a_path_whatever_their_size(tmp_path: Path) -> None:
    files = {"adapter_model.sig": b"s" * 50, "adapter_model-00001-of-00001.safetensors": b"w" * 50}
    arrival = begin(ArrivalFolder(tmp_path, max_bytes=1000), files)
    arrival.write(b"".join(files.values()))
    checkpoint = arrival.finish(digest_of(b"".join(files.values())))
    assert checkpoint.held is None
    assert {name: digest_of_file(io.BytesIO(path.read_bytes())) for name, path in checkpoint.files.items()} == {
        name: digest_of(data) for name, data in files.items()
    }


def test_room_comes_back_with_the_memory_though_a_traceback_keeps_the_checkpoint(tmp_path: Path) -> None:
    """Else refused publications would take the bound's memory again and again until garbage is collected."""
    folder = ArrivalFolder(tmp_path, max_bytes=1000, held_bytes=100)

    def are_weights_held() -> bool:
        arrival = begin(folder)
        arrival.write(DATA)
        is_held = arrival.finish(digest_of(DATA)).held is not None
        arrival.discard()
        return is_held

    arrival = begin(folder)
    arrival.write(DATA)
    checkpoint = arrival.finish(digest_of(DATA))
    assert checkpoint.held is not None
    with checkpoint.held.open() as reader:
        view = reader.elements(0, 10, np.uint8)
    arrival.discard()
    assert not are_weights_held(), "a view of the memory is left"
    assert bytes(view) == FILES[WEIGHTS][:10]
    del view
    assert are_weights_held(), "neither checkpoint nor reader keeps the memory"


def test_what_is_refused_for_too_many_bytes_keeps_no_memory(tmp_path: Path) -> None:
    folder = ArrivalFolder(tmp_path, max_bytes=1000, held_bytes=100)
    for _ in range(2):
        arrival = begin(folder)
        with pytest.raises(InvalidRequestError) as refused:
            arrival.write(DATA + b"more")
        assert len(list(tmp_path.glob("arrivals/*/*"))) == 1, refused
        arrival.discard()


@pytest.mark.parametrize("error", [OSError(errno.ENOMEM, "no memory"), MemoryError()])
def test_weights_go_to_the_disk_where_the_system_has_no_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    folder = ArrivalFolder(tmp_path, max_bytes=1000, held_bytes=100)

    def fails(*_: object) -> memoryview:
        raise error

    for num_on_disk in (2, 1):
        with monkeypatch.context() as patched:
            if num_on_disk == 2:
                patched.setattr(RecycledMemory, "take", fails)
            arrival = begin(folder)
            assert received(arrival) == FILES
        assert len(list(tmp_path.glob("arrivals/*/*"))) == num_on_disk, "room is not lost"
        arrival.discard()
