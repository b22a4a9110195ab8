"""Asks the hotslot service of this container, over gRPC health checking, whether it serves; exits with 0 if so."""

import argparse
import os
import sys
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from hotslot.endpoints import local
from hotslot.errors import InvalidEndpointError
from hotslot.rpc.channel import ChannelOptions, open_blocking_channel
from hotslot.rpc.security import ChannelSecurity

TIMEOUT_S = 4.0


def main() -> int:
    """Check one name; "readiness" and "liveness" are the ones that every hotslot service answers for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("service", nargs="?", default="readiness")
    parser.add_argument("--address", help="host:port; by default HOTSLOT_HEALTH_LISTEN, else HOTSLOT_LISTEN")
    arguments = parser.parse_args()
    try:
        # A server that speaks TLS answers here without: HOTSLOT_HEALTH_LISTEN.
        address = arguments.address or str(
            local(os.environ.get("HOTSLOT_HEALTH_LISTEN") or os.environ["HOTSLOT_LISTEN"])
        )
        status = ask(address, arguments.service)
    except InvalidEndpointError as exc:
        parser.error(exc.message)
    print(f"{address}: {arguments.service}: {status}")
    return 0 if status == "SERVING" else 1


def ask(address: str, service: str, ca_file: Path | None = None) -> str:
    """The status of a service by its name in the health protocol, or why there is none."""
    security = ChannelSecurity(ca_file=ca_file)
    with open_blocking_channel(address, ChannelOptions(max_attempts=1, security=security)) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)  # the stubs do not know its methods
        try:
            answer = stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=TIMEOUT_S)
        except grpc.RpcError as exc:
            failure: Any = exc  # an RpcError that a call raises is also the call
            return f"no answer: {failure.code().name}: {failure.details()}"
    return health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)


if __name__ == "__main__":
    sys.exit(main())
