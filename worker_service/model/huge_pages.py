"""Puts large tensors of the host side by side into huge pages.

Decoding on CPU reads all weights every step. In pages of 4 KiB that is tens of thousands of address translations, and
prefetching stops at every page's end; in huge pages one token is computed up to twice as fast.

A page is taken from the system when it is first written to, which is slow: some 300 MB/s on a virtual machine. So a
thread takes those of the end while the caller fills those of the beginning, and zeros are written by nobody. Those of
caches, of which a start needs few, are taken when the worker is ready.
"""

import ctypes
import mmap
import threading
from collections.abc import Callable, Iterable, Iterator

import torch

ALIGNMENT_BYTES = 64
"""Compiled code may assume that tensors begin at multiples of this."""
MIN_BYTES = 16 * 1024
"""Smaller tensors stay where they are."""
PAGE_BYTES = 2 << 20
MOVED_BYTES = 256 << 20
"""Tensors that are moved together: so much is taken before what is moved there has left its place."""
_POPULATE_WRITE = 23
"""MADV_POPULATE_WRITE of <linux/mman.h>, from Linux 5.14 on."""


def take_pages(memory: mmap.mmap) -> None:
    """Have a thread take all pages from the system; what they hold stays as it is."""
    threading.Thread(target=_take_pages, args=(memory,), name="take pages", daemon=True).start()


def into_huge_pages(tensors: Iterable[torch.Tensor]) -> None:
    """Move tensors, keeping their values and their identity; only those in host memory that are alone in theirs.

    Views of them that were made before keep the old memory. Without huge pages on this system nothing is lost.
    """
    for some in _by_size(tensor for tensor in tensors if _is_movable(tensor)):
        for tensor, moved in _places(some, take_pages):
            moved.copy_(tensor.detach())
            tensor.data = moved


def zeros_into_huge_pages(tensors: Iterable[torch.Tensor], on_mapped: Callable[[mmap.mmap], None] = take_pages) -> None:
    """Make tensors zeros, whatever they hold, and move those that can be moved, without reading or writing them.

    `on_mapped` is given the memory, of which no page is taken yet.
    """
    zeros = list(tensors)
    moved_ids = set()
    for tensor, moved in _places([tensor for tensor in zeros if _is_movable(tensor)], on_mapped):
        tensor.data = moved
        moved_ids.add(id(tensor))
    for tensor in zeros:
        if id(tensor) not in moved_ids:
            tensor.zero_()


def _by_size(tensors: Iterable[torch.Tensor]) -> Iterator[list[torch.Tensor]]:
    """Tensors in lists of some MOVED_BYTES, or of one that is larger."""
    some: list[torch.Tensor] = []
    for tensor in tensors:
        if some and sum(each.nbytes for each in some) + tensor.nbytes > MOVED_BYTES:
            yield some
            some = []
        some.append(tensor)
    yield some


def _places(
    tensors: Iterable[torch.Tensor], on_mapped: Callable[[mmap.mmap], None]
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Places side by side in new memory, all zeros, with the tensors that they are for; none without huge pages."""
    by_storage = {tensor.untyped_storage().data_ptr(): tensor for tensor in tensors}
    sizes_bytes = [-(-tensor.nbytes // ALIGNMENT_BYTES) * ALIGNMENT_BYTES for tensor in by_storage.values()]
    if not sizes_bytes or not hasattr(mmap, "MADV_HUGEPAGE"):
        return
    memory = mmap.mmap(-1, sum(sizes_bytes), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    try:
        memory.madvise(mmap.MADV_HUGEPAGE)
    except OSError:
        return  # a kernel without them
    on_mapped(memory)
    begin = 0
    for tensor, size_bytes in zip(by_storage.values(), sizes_bytes, strict=True):
        # Each its own storage: where two inputs share one and either is written to, the compiler copies both whole.
        yield (
            tensor,
            torch.frombuffer(memory, dtype=tensor.dtype, count=tensor.numel(), offset=begin).view(tensor.shape),
        )
        begin += size_bytes


def _take_pages(memory: mmap.mmap) -> None:
    """Have all pages taken from the system, the last ones first."""
    madvise = ctypes.CDLL(None).madvise  # unlike Python's, it lets other threads run
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    end = len(memory)
    while end > 0:
        begin = (address + end - 1) // PAGE_BYTES * PAGE_BYTES - address
        begin = max(begin, 0)
        if madvise(ctypes.c_void_p(address + begin), ctypes.c_size_t(end - begin), _POPULATE_WRITE) != 0:
            return  # an older kernel, or no memory: they are taken when they are written to
        end = begin


def _is_movable(tensor: torch.Tensor) -> bool:
    return (
        tensor.device.type == "cpu"
        and tensor.nbytes >= MIN_BYTES
        and tensor.is_contiguous()
        and tensor.untyped_storage().nbytes() == tensor.nbytes
    )
