"""The services that a store has with Redis alone: PlacementService, and KEDA's scaler by the same fleets."""

from hotslot.pb.externalscaler import externalscaler_pb2, externalscaler_pb2_grpc
from hotslot.pb.hotslot.placement.v1 import placement_pb2, placement_pb2_grpc
from shared.metrics.exposition import Readings
from shared.server.grpc_server import Service, service
from store_service.catalog.base_models import BaseModels
from store_service.catalog.catalog import Catalog
from store_service.execution.call_queue import CallQueue
from store_service.placement.catalog_resolver import CatalogResolver
from store_service.placement.fleets import FleetCache
from store_service.placement.scaling import RegisteredBases, Scaling
from store_service.placement.unserved import UnservedPicks
from store_service.rpc.external_scaler_servicer import ExternalScalerServicer
from store_service.rpc.placement_servicer import PlacementServicer


def placement_services(
    fleets: FleetCache, catalog: Catalog, base_models: BaseModels, lookups: CallQueue
) -> tuple[list[Service], Readings]:
    """The services, and the numbers of their picks: those that find no worker are what the scaler goes by."""
    unserved = UnservedPicks()
    placement = PlacementServicer(fleets, CatalogResolver(catalog, lookups), unserved)
    scaler = ExternalScalerServicer(Scaling(fleets, unserved, RegisteredBases(base_models, lookups).digests_named))
    add_placement = placement_pb2_grpc.add_PlacementServiceServicer_to_server
    add_scaler = externalscaler_pb2_grpc.add_ExternalScalerServicer_to_server
    services = [
        service(placement_pb2, "PlacementService", add_placement, placement),
        service(externalscaler_pb2, "ExternalScaler", add_scaler, scaler),
    ]
    return services, placement.readings
