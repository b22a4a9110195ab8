"""Tensors move into huge pages with their values, their identity and what is tied to them."""

import mmap
import threading

import pytest
import torch
from torch import nn

from worker_service.model import huge_pages
from worker_service.model.huge_pages import ALIGNMENT_BYTES, PAGE_BYTES, into_huge_pages, zeros_into_huge_pages


def test_a_model_answers_the_same_from_huge_pages_and_ties_hold() -> None:
    torch.manual_seed(0)
    embedding, head = nn.Embedding(300, 64), nn.Linear(64, 300, bias=False)
    head.weight = embedding.weight
    model = nn.Sequential(embedding, nn.Linear(64, 129), nn.Linear(129, 64), head)
    ids = torch.arange(40)
    expected = model(ids)
    addresses = [parameter.data_ptr() for parameter in model.parameters()]
    into_huge_pages(model.parameters())
    assert torch.equal(model(ids), expected)
    assert head.weight is embedding.weight
    moved = [p for p, before in zip(model.parameters(), addresses, strict=True) if p.data_ptr() != before]
    assert [tuple(p.shape) for p in moved] == [(300, 64), (129, 64), (64, 129)], "small ones stay"
    assert all(p.data_ptr() % ALIGNMENT_BYTES == 0 for p in moved)
    with torch.no_grad():
        embedding.weight.zero_()
    assert not head.weight.any()


def test_views_and_strided_tensors_stay_where_they_are() -> None:
    whole = torch.randn(64, 256)
    view, strided = whole[:32], whole.T
    before = view.data_ptr()
    into_huge_pages([view, strided])
    assert view.data_ptr() == before
    assert strided.data_ptr() == before


def test_each_tensor_keeps_a_storage_of_its_own() -> None:
    """Compiled code copies what shares one with a tensor that it writes to."""
    tensors = [torch.randn(64, 128) for _ in range(3)]
    into_huge_pages(tensors)
    assert len({tensor.untyped_storage()._cdata for tensor in tensors}) == len(tensors)
    assert [tensor.untyped_storage().nbytes() for tensor in tensors] == [tensor.nbytes for tensor in tensors]


def test_zeros_are_zeros_wherever_they_end_up() -> None:
    """Memory that was never written to is what they are moved to; what cannot be moved is overwritten."""
    large = [torch.full((64, 129), 3.0, dtype=dtype) for dtype in (torch.bfloat16, torch.float32)]
    small, strided = torch.full((8,), 3.0), torch.full((64, 256), 3.0).T
    before = [tensor.data_ptr() for tensor in large]
    zeros_into_huge_pages([*large, small, strided])
    assert not any(tensor.any() for tensor in (*large, small, strided))
    assert all(tensor.data_ptr() != address for tensor, address in zip(large, before, strict=True))
    assert all(tensor.data_ptr() % ALIGNMENT_BYTES == 0 for tensor in large)
    large[0].fill_(2.0)
    assert not large[1].any()


def test_pages_of_zeros_are_left_for_later_where_that_is_wanted() -> None:
    mapped: list[mmap.mmap] = []
    zeros = torch.full((3 * PAGE_BYTES,), 3, dtype=torch.uint8)
    zeros_into_huge_pages([zeros], mapped.append)
    assert [len(memory) for memory in mapped] == [zeros.nbytes]
    zeros[5] = 7
    huge_pages.take_pages(mapped[0])
    for thread in threading.enumerate():
        if thread.name == "take pages":
            thread.join(60)
    assert zeros[5] == 7
    assert int(zeros.sum()) == 7


def test_pages_that_are_taken_meanwhile_keep_what_was_written() -> None:
    tensors = [torch.arange(3 * PAGE_BYTES // 8) + index for index in range(4)]
    expected = [tensor.clone() for tensor in tensors]
    into_huge_pages(tensors)
    zeros = [torch.ones(3 * PAGE_BYTES // 8, dtype=torch.int64) for _ in range(4)]
    zeros_into_huge_pages(zeros)
    for thread in threading.enumerate():
        if thread.name == "take pages":
            thread.join(60)
            assert not thread.is_alive()
    assert all(map(torch.equal, tensors, expected))
    assert not any(tensor.any() for tensor in zeros)


def test_pages_are_taken_for_few_tensors_that_have_not_left_their_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages for all of a model at once would take the memory of half a model more than it has."""
    taken_bytes: list[int] = []

    def note(memory: mmap.mmap) -> None:
        taken_bytes.append(len(memory))

    monkeypatch.setattr(huge_pages, "MOVED_BYTES", 3 * 65_536)
    monkeypatch.setattr(huge_pages, "_take_pages", note)
    tensors = [torch.full((count, 256), float(index)) for index, count in enumerate([64] * 7 + [256, 64])]
    expected = [tensor.clone() for tensor in tensors]
    into_huge_pages(tensors)
    for thread in threading.enumerate():
        if thread.name == "take pages":
            thread.join(60)
    assert sorted(taken_bytes) == [65_536, 65_536, 3 * 65_536, 3 * 65_536, 4 * 65_536]
    assert all(map(torch.equal, tensors, expected))
