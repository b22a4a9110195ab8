"""Options of the server that a store is, with the limits of the streams that it serves at the same time."""

from hotslot.pb.externalscaler import externalscaler_pb2
from hotslot.pb.hotslot.fleet.v1 import fleet_pb2
from hotslot.pb.hotslot.placement.v1 import placement_pb2
from hotslot.pb.hotslot.store.v1 import adapter_store_pb2, blob_pb2, compiled_code_pb2
from shared.server.grpc_server import ServerOptions
from shared.server.stream_places import StreamLimit
from store_service.settings import StoreSettings

MAX_COMPILED_CODE_STREAMS = 8
"""Most streams of workers that fetch or send compiled code."""

_BLOBS = f"/{blob_pb2.DESCRIPTOR.services_by_name['BlobService'].full_name}"
_FLEET = f"/{fleet_pb2.DESCRIPTOR.services_by_name['FleetService'].full_name}"
_EARLIER_CODE = f"/{compiled_code_pb2.DESCRIPTOR.services_by_name['CompiledCodeService'].full_name}"
_CATALOG = f"/{adapter_store_pb2.DESCRIPTOR.services_by_name['AdapterStoreService'].full_name}"
_PLACEMENTS = f"/{placement_pb2.DESCRIPTOR.services_by_name['PlacementService'].full_name}"
_SCALER = f"/{externalscaler_pb2.DESCRIPTOR.services_by_name['ExternalScaler'].full_name}"


def stream_limits(settings: StoreSettings) -> tuple[StreamLimit, ...]:
    """The limits by method; each is shared between tenants."""
    return (
        StreamLimit("max_read_streams", settings.max_read_streams, (f"{_BLOBS}/ReadBlob",)),
        StreamLimit("max_uploads", settings.max_uploads, (f"{_BLOBS}/WriteBlob", f"{_CATALOG}/PublishVersion")),
        StreamLimit(
            "max_watches",
            settings.max_watches,
            (f"{_CATALOG}/WatchAdapters", f"{_PLACEMENTS}/WatchPlacements", f"{_SCALER}/StreamIsActive"),
        ),
        StreamLimit(
            "max_compiled_code_streams",
            MAX_COMPILED_CODE_STREAMS,
            tuple(f"{code}/{way}CompiledCode" for code in (_FLEET, _EARLIER_CODE) for way in ("Read", "Write")),
        ),
    )


def server_options(settings: StoreSettings) -> ServerOptions:
    """Options by the settings."""
    return ServerOptions(
        address=settings.listen,
        max_connection_age_s=settings.max_connection_age_s,
        drain_delay_s=settings.drain_delay_s,
        grace_s=settings.grace_s,
        stall_s=settings.stream_stall_s,
        stream_limits=stream_limits(settings),
        transport=settings.transport(),
    )
