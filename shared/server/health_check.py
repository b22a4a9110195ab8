"""The standard health service, which also tells the server's release and clock."""

import asyncio
from typing import Any

from grpc_health.v1 import health, health_pb2
from grpc_health.v1.health_pb2 import HealthCheckResponse as Status

from hotslot.rpc.server_facts import facts_now


class FactualHealthServicer(health.aio.HealthServicer):
    """Health as every client knows it; the facts are trailing metadata, which others pass over."""

    def __init__(self) -> None:
        super().__init__()
        self._statuses: dict[str, int] = {"": Status.SERVING}
        self._changed = asyncio.Event()

    async def Check(self, request: health_pb2.HealthCheckRequest, context: Any) -> Status:
        """Answer a check."""
        context.set_trailing_metadata(facts_now().to_metadata())
        return await super().Check(request, context)

    async def Watch(self, request: health_pb2.HealthCheckRequest, context: Any) -> None:
        """Tell a status and each that follows. The library's own holds up every change while one client reads none."""
        told = None
        while True:
            changed = self._changed
            status = self._statuses.get(request.service, Status.SERVICE_UNKNOWN)
            if status != told:
                await context.write(Status(status=status))
                told = status
            else:
                await changed.wait()

    async def set(self, service: str, status: int) -> None:
        """Change the status of a service, for those who watch it, too."""
        await super().set(service, status)
        self._statuses[service] = status
        self._changed.set()
        self._changed = asyncio.Event()
