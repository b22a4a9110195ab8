"""Answers to calls about base models: asked of the catalog and encoded on one thread, for specs may be large."""

from dataclasses import replace

from hotslot.codec import to_proto
from hotslot.formats.base_spec import check_spec
from hotslot.formats.safetensors_header import HeaderLimits, parse_header
from hotslot.ids import TenantId
from hotslot.pb.hotslot.store.v1 import adapter_store_pb2 as pb
from store_service.catalog.base_choice import BaseChoice
from store_service.catalog.base_models import BaseModels
from store_service.catalog.records import BaseModelRecord
from store_service.rpc.contract import base_model_of
from store_service.rpc.paging import decode_token, encode_token, fitting, page_size_of
from store_service.rpc.requests import base_spec_of

_LISTING = ("base_models",)


def register(
    models: BaseModels, request: pb.RegisterBaseModelRequest, tenant: TenantId
) -> pb.RegisterBaseModelResponse:
    """Raises as `BaseModels.register`, and InvalidRequestError."""
    record, created = models.register(base_spec_of(request.base_model), tenant, move=request.move)
    return pb.RegisterBaseModelResponse(base_model=_message(record), created=created)


def delete(models: BaseModels, request: pb.DeleteBaseModelRequest, tenant: TenantId) -> pb.DeleteBaseModelResponse:
    """Raises as `BaseModels.delete`."""
    return pb.DeleteBaseModelResponse(base_models=map(_message, models.delete(request.base_model, tenant)))


def page(models: BaseModels, request: pb.ListBaseModelsRequest) -> pb.ListBaseModelsResponse:
    """Raises InvalidRequestError and InvalidPageTokenError."""
    limit = page_size_of(request.page_size)
    # Tokens of a listing without a filter stay what they are to stores of earlier releases.
    listing = (*_LISTING, request.base_model) if request.base_model else _LISTING
    (after,) = decode_token(request.page_token, listing, (0,))
    found = models.list(limit=limit, after=int(after), name_or_digest=request.base_model)
    shown, more = fitting((_message(record) for _, record in found), limit)
    token = encode_token(listing, (found[len(shown) - 1][0],)) if more else ""
    return pb.ListBaseModelsResponse(base_models=shown, next_page_token=token)


def find(choice: BaseChoice, request: pb.FindBaseModelsRequest) -> pb.FindBaseModelsResponse:
    """Raises InvalidAdapterError for a header that cannot be read."""
    header = parse_header(request.weights_header, request.weights_size_bytes, "weights_header", HeaderLimits())
    match = choice.match(request.base_model, header)
    return to_proto(pb.FindBaseModelsResponse, match)


def alias(models: BaseModels, request: pb.AddBaseModelAliasRequest, tenant: TenantId) -> pb.AddBaseModelAliasResponse:
    """Raises as `BaseModels.get` and `register`."""
    spec = replace(models.get(request.base_model).spec, name=request.alias)
    check_spec(spec)
    record, created = models.register(spec, tenant)
    return pb.AddBaseModelAliasResponse(base_model=_message(record), created=created)


def _message(record: BaseModelRecord) -> pb.BaseModel:
    return to_proto(pb.BaseModel, base_model_of(record))
