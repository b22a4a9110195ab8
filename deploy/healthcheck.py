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
    with grpc.insecure_channel(address) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)  # the stubs do not know its methods
        try:
            answer = stub.Check(health_pb2.HealthCheckRequest(service=arguments.service), timeout=TIMEOUT_S)
        except grpc.RpcError as exc:
            print(f"{address}: no answer: {exc}", file=sys.stderr)
            return 1
    status = health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)
    print(f"{address}: {arguments.service} is {status}")
    return 0 if answer.status == health_pb2.HealthCheckResponse.SERVING else 1


if __name__ == "__main__":
    sys.exit(main())
