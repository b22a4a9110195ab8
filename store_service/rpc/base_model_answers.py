"""Answers to calls about base models: asked of the catalog and encoded on one thread, for specs may be large."""

from shared.ids import TenantId
from shared.pb.hotslot.store.v1 import adapter_store_pb2 as pb
from store_service.catalog.base_models import BaseModels
from store_service.rpc.converters import base_model_to_pb, base_spec_of
from store_service.rpc.paging import decode_token, encode_token, fitting, page_size_of

_LISTING = ("base_models",)


def register(
    models: BaseModels, request: pb.RegisterBaseModelRequest, tenant: TenantId
) -> pb.RegisterBaseModelResponse:
    """Raises as `BaseModels.register`, and InvalidRequestError."""
    record, created = models.register(base_spec_of(request.base_model), tenant, move=request.move)
    return pb.RegisterBaseModelResponse(base_model=base_model_to_pb(record), created=created)


def delete(models: BaseModels, request: pb.DeleteBaseModelRequest, tenant: TenantId) -> pb.DeleteBaseModelResponse:
    """Raises as `BaseModels.delete`."""
    return pb.DeleteBaseModelResponse(base_models=map(base_model_to_pb, models.delete(request.base_model, tenant)))


def page(models: BaseModels, request: pb.ListBaseModelsRequest) -> pb.ListBaseModelsResponse:
    """Raises InvalidRequestError and InvalidPageTokenError."""
    limit = page_size_of(request.page_size)
    (after,) = decode_token(request.page_token, _LISTING, (0,))
    found = models.list(limit=limit, after=int(after))
    shown, more = fitting((base_model_to_pb(record) for _, record in found), limit)
    token = encode_token(_LISTING, (found[len(shown) - 1][0],)) if more else ""
    return pb.ListBaseModelsResponse(base_models=shown, next_page_token=token)
