"""Asks the hotslot service of this container, over gRPC health checking, whether it serves; exits with 0 if so."""

import argparse
import os
import sys
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

TIMEOUT_S = 4.0


def main() -> int:
    """Check one name; "readiness" and "liveness" are the ones that every hotslot service answers for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("service", nargs="?", default="readiness")
    parser.add_argument("--address", help="host:port; by default the port of HOTSLOT_LISTEN on this machine")
    arguments = parser.parse_args()
    address = arguments.address or f"127.0.0.1:{os.environ['HOTSLOT_LISTEN'].rpartition(':')[2]}"
    status = ask(address, arguments.service)
    print(f"{address}: {arguments.service}: {status}")
    return 0 if status == "SERVING" else 1


def ask(address: str, service: str) -> str:
    """The status of a service by its name in the health protocol, or why there is none."""
    with grpc.insecure_channel(address) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)  # the stubs do not know its methods
        try:
            answer = stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=TIMEOUT_S)
        except grpc.RpcError as exc:
            failure: Any = exc  # an RpcError that a call raises is also the call
            return f"no answer: {failure.code().name}: {failure.details()}"
    return health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)


if __name__ == "__main__":
    sys.exit(main())
