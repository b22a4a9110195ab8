"""KEDA's ExternalScaler: decode, one call, encode."""

import math
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

from hotslot.pb.externalscaler import externalscaler_pb2 as pb
from hotslot.pb.externalscaler import externalscaler_pb2_grpc
from store_service.placement.scaling import Scaling


class ExternalScalerServicer(externalscaler_pb2_grpc.ExternalScalerServicer):
    """Answers from Redis. Names are KEDA's."""

    def __init__(self, scaling: Scaling) -> None:
        self._scaling = scaling

    async def IsActive(self, request: pb.ScaledObjectRef, context: Any) -> pb.IsActiveResponse:
        """Answer if the pool should have a worker."""
        return pb.IsActiveResponse(result=await self._scaling.is_wanted(request.scalerMetadata, context))

    async def StreamIsActive(self, request: pb.ScaledObjectRef, context: Any) -> AsyncIterator[pb.IsActiveResponse]:
        """The same, and each change of it."""
        async with aclosing(self._scaling.watch(request.scalerMetadata, context)) as answers:
            async for wanted in answers:
                yield pb.IsActiveResponse(result=wanted)

    async def GetMetricSpec(self, request: pb.ScaledObjectRef, context: Any) -> pb.GetMetricSpecResponse:
        """Measures with their targets."""
        targets = self._scaling.targets(request.scalerMetadata)
        return pb.GetMetricSpecResponse(
            metricSpecs=[
                pb.MetricSpec(metricName=measure, targetSize=math.ceil(target), targetSizeFloat=target)
                for measure, target in targets.items()
            ]
        )

    async def GetMetrics(self, request: pb.GetMetricsRequest, context: Any) -> pb.GetMetricsResponse:
        """The measure that was asked for."""
        value = await self._scaling.measured(request.scaledObjectRef.scalerMetadata, request.metricName)
        return pb.GetMetricsResponse(
            metricValues=[
                pb.MetricValue(metricName=request.metricName, metricValue=math.ceil(value), metricValueFloat=value)
            ]
        )
