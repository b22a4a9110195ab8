"""Looks at the parts of a store by what its settings and its data say that it needs."""

from shared.coordination.connection import RedisConnection
from store_service.content.objects import ObjectBlobs
from store_service.execution.offload import Offload
from store_service.health import Look, StoreHealth, check_catalog, check_disk
from store_service.opening import Data
from store_service.settings import StoreSettings


def store_health(settings: StoreSettings, data: Data, redis: RedisConnection | None, offload: Offload) -> StoreHealth:
    """The health of a store over its data; without Redis in the settings, none is looked at."""
    objects = data.blobs.objects
    looks = [
        Look("catalog", lambda: offload(check_catalog, data.engine)),
        Look("disk", lambda: offload(check_disk, settings.data_dir)),
    ]
    if objects is not None:
        looks.append(Look("object_storage", lambda: offload(check_objects, objects)))
    if redis is not None:
        looks.append(Look("redis", redis.ping, required=False))
    return StoreHealth(looks)


def check_objects(objects: ObjectBlobs) -> None:
    """Ask object storage whose blobs it has; blocks. Raises StoreUnavailableError."""
    objects.owner()
