"""Programs as they are kept between processes: what lies at an address stands by its name, and is found again by it.

A tensor that lasts is kept by its name, shape, stride, element type and place among aligned ones, with an offset in it;
a kernel by the digest of its library. Binding puts this process's addresses in their place, and refuses all where
anything is not as it was.
"""

import ctypes
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from hotslot.content_files import digest_of_file
from worker_service.model.cpu.recorder import (
    ALIGNMENT_BYTES,
    ATTEND,
    FIRST_INPUT,
    KERNEL,
    LINEARS,
    MAX_KERNEL_ARGUMENTS,
    SCRATCH,
    VALUE,
    extent_bytes,
)
from worker_service.model.programs import Key, Program, ProgramInput, Programs

SYMBOL = "kernel"
"""Name of the function in a compiled kernel's library."""
_KINDS = (KERNEL, LINEARS, ATTEND)


class ProgramsNotKeptError(Exception):
    """Programs that cannot be kept, or kept ones that do not fit; its message says why."""


class _Symbol(ctypes.Structure):
    """`Dl_info` of dladdr(3)."""

    _fields_ = (("file", ctypes.c_char_p), ("at", ctypes.c_void_p), ("name", ctypes.c_char_p), ("of", ctypes.c_void_p))


@dataclass
class Libraries:
    """Libraries of kernels in one folder, by their place in it, with their digests."""

    folder: Path
    digests: dict[str, str] = field(default_factory=dict)
    _addresses: dict[str, int] = field(default_factory=dict)

    def name_at(self, address: int) -> str:
        """Place of the library whose kernel begins at an address; raises ProgramsNotKeptError."""
        found = _Symbol()
        is_known = ctypes.CDLL(None).dladdr(ctypes.c_void_p(address), ctypes.byref(found))
        if not is_known or found.of != address or found.name != SYMBOL.encode():
            raise ProgramsNotKeptError("a kernel is not the function of a library")
        path = Path(found.file.decode())
        if not path.is_relative_to(self.folder):
            raise ProgramsNotKeptError(f"{path.name} is not in the cache directory")
        name = path.relative_to(self.folder).as_posix()
        if name not in self.digests:
            self.digests[name] = _digest_of(path)
        return name

    def is_there(self, name: str) -> bool:
        """Tell whether a library's bytes are as they were."""
        try:
            return ".." not in Path(name).parts and _digest_of(self.folder / name) == self.digests[name]
        except OSError:
            return False

    def address_of(self, name: str) -> int:
        """Address of a library's kernel, once its bytes are found to be as they were; raises ProgramsNotKeptError."""
        if name not in self._addresses:
            path = self.folder / name
            try:
                if name not in self.digests or not self.is_there(name):
                    raise ProgramsNotKeptError(f"{name} is not the library that it was")
                address = ctypes.cast(getattr(ctypes.CDLL(str(path)), SYMBOL), ctypes.c_void_p).value
            except (OSError, KeyError, AttributeError) as exc:
                raise ProgramsNotKeptError(f"{name} cannot be loaded: {exc}") from exc
            assert address is not None
            self._addresses[name] = address
        return self._addresses[name]


def kept(programs: Programs, libraries: Libraries) -> dict[str, Any]:
    """Form of programs in which they outlive the process, for JSON; raises ProgramsNotKeptError."""
    places = _Places(programs.lasting)
    made = [_kept(key, program, places, libraries) for key, program in programs.programs.items()]
    return {"tensors": {name: _description(programs.lasting[name]) for name in places.used}, "programs": made}


def bound(found: Mapping[str, Any], programs: Programs, libraries: Libraries) -> dict[Key, Program]:
    """Programs with this process's addresses, from what `kept` made.

    Raises ProgramsNotKeptError where anything is otherwise than it was, or not well-formed.
    """
    try:
        for name, description in found["tensors"].items():
            if name not in programs.lasting or _description(programs.lasting[name]) != description:
                raise ProgramsNotKeptError(f"{name} is not as it was")
        return dict(_bound(each, found["tensors"], programs, libraries) for each in found["programs"])
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, RuntimeError) as exc:
        raise ProgramsNotKeptError(f"a program is not well-formed: {exc!r}") from exc


def _kept(key: Key, program: Program, places: "_Places", libraries: Libraries) -> dict[str, Any]:
    words = program.words.tolist()
    lasting = {at: places.of(words[at]) for at in program.lasting_at}
    code = {at: libraries.name_at(words[at]) for at in program.code_at}
    for at in (*lasting, *code):
        words[at] = 0
    if any(places.holds(word) for word in words):
        raise ProgramsNotKeptError("a value that is not known as an address looks like one")
    return {
        "key": key,
        "words": words,
        "lasting": [[at, *place] for at, place in lasting.items()],
        "code": [[at, name] for at, name in code.items()],
        "inputs": [[list(each.path), list(each.shape), list(each.stride)] for each in program.inputs],
        "output": list(program.output_shape),
        "others": None if program.others is None else len(program.others),
    }


def _bound(
    found: Mapping[str, Any], tensors: Mapping[str, Any], programs: Programs, libraries: Libraries
) -> tuple[Key, Program]:
    words: list[int] = list(found["words"])
    inputs = tuple(
        ProgramInput(tuple(path), torch.Size(shape), tuple(stride)) for path, shape, stride in found["inputs"]
    )
    output = torch.Size(found["output"])
    values = set(_checked(words, programs.scratch_bytes, len(inputs) + 1))
    for at, name, offset in found["lasting"]:
        tensor = programs.lasting[name]
        if at not in values or name not in tensors or not 0 <= offset < extent_bytes(tensor):
            raise ProgramsNotKeptError(f"an address in {name} does not fit")
        words[at] = tensor.data_ptr() + offset
    for at, name in found["code"]:
        if at not in values:
            raise ProgramsNotKeptError(f"the address of {name} does not fit")
        words[at] = libraries.address_of(name)
    num_tokens, with_adapters = found["key"]
    if type(num_tokens) is not int or type(with_adapters) is not bool:
        raise ProgramsNotKeptError("a program is of no kind of step")
    others = None if found["others"] is None else (None,) * found["others"]
    lasting_at, code_at = (tuple(each[0] for each in found[name]) for name in ("lasting", "code"))
    return (num_tokens, with_adapters), Program(torch.tensor(words), lasting_at, code_at, inputs, output, others)


def _checked(words: list[int], scratch_bytes: int, num_tensors: int) -> Iterator[int]:
    """Places of the words that are values, of a program that is read to its end as `program.h` reads it."""
    at = 1
    for _ in range(words[0]):
        kind, count = words[at], words[at + 1]
        if kind not in _KINDS or not 0 < count <= (len(words) - at - 2) // 2:
            raise ProgramsNotKeptError("a call is of no known kind, or longer than the program")
        if kind == KERNEL and count > MAX_KERNEL_ARGUMENTS + 1:
            raise ProgramsNotKeptError("a kernel has too many arguments")
        for place in range(at + 2, at + 2 + 2 * count, 2):
            base, value = words[place], words[place + 1]
            if base == VALUE:
                yield place + 1
            elif not (base == SCRATCH and 0 <= value < scratch_bytes) and not (
                FIRST_INPUT <= base < FIRST_INPUT + num_tensors and value >= 0
            ):
                raise ProgramsNotKeptError("a value has no base that there is")
        at += 2 + 2 * count
    if at != len(words):
        raise ProgramsNotKeptError("a program is longer than its calls")


class _Places:
    """Tensors by their addresses."""

    def __init__(self, tensors: Mapping[str, torch.Tensor]) -> None:
        self._ranges = [(each.data_ptr(), each.data_ptr() + extent_bytes(each), name) for name, each in tensors.items()]
        self._known: dict[int, tuple[str, int]] = {}
        self._begin = min(begin for begin, _, _ in self._ranges)
        self._end = max(end for _, end, _ in self._ranges)
        self.used: dict[str, None] = {}
        """Names of all that something was found in."""

    def of(self, address: int) -> tuple[str, int]:
        """Name of a tensor that has an address, and the offset in it."""
        if address not in self._known:
            found = self._find(address)
            if found is None:
                raise ProgramsNotKeptError("an address is in no tensor that lasts")
            self._known[address] = found
            self.used[found[0]] = None
        return self._known[address]

    def holds(self, value: int) -> bool:
        """Tell whether a number may be an address in one of the tensors."""
        return self._begin <= value < self._end and self._find(value) is not None

    def _find(self, address: int) -> tuple[str, int] | None:
        return next((((name, address - begin)) for begin, end, name in self._ranges if begin <= address < end), None)


def _description(tensor: torch.Tensor) -> list[Any]:
    """All that compiled code may have assumed of a tensor, as JSON has it."""
    place = tensor.data_ptr() % ALIGNMENT_BYTES
    return [str(tensor.dtype), list(tensor.shape), list(tensor.stride()), place]


def _digest_of(path: Path) -> str:
    with path.open("rb") as file:
        return digest_of_file(file)
