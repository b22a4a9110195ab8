"""The standard health service, which also tells the server's release and clock."""

from typing import Any

from grpc_health.v1 import health, health_pb2

from hotslot.rpc.server_facts import facts_now


class FactualHealthServicer(health.aio.HealthServicer):
    """Health as every client knows it; the facts are trailing metadata, which others pass over."""

    async def Check(self, request: health_pb2.HealthCheckRequest, context: Any) -> health_pb2.HealthCheckResponse:
        """Answer a check."""
        context.set_trailing_metadata(facts_now().to_metadata())
        return await super().Check(request, context)
