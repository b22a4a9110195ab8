"""Tensors move into huge pages with their values, their identity and what is tied to them."""

import torch
from torch import nn

from worker_service.model.huge_pages import ALIGNMENT_BYTES, into_huge_pages


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
