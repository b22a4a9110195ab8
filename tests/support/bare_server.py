"""A process that serves every RPC of ours and implements none, on the port that it is given.

What clients stream is read, and answered with nothing.
"""

import asyncio
import importlib
import sys
from collections.abc import AsyncIterator
from typing import Any

from shared.server.grpc_server import ServerOptions, Service, serve, stop_signal
from tests.support.request_messages import services


async def read_all(servicer: object, requests: AsyncIterator[Any], context: Any) -> None:
    async for _ in requests:
        pass


async def main() -> None:
    bare = []
    for service in services():
        module = importlib.import_module(service.file.name.replace("/", ".").replace(".proto", "_pb2_grpc"))
        add_to_server = getattr(module, f"add_{service.name}Servicer_to_server")
        readers = {method.name: read_all for method in service.methods if method.client_streaming}
        servicer = type("Bare", (getattr(module, f"{service.name}Servicer"),), readers)
        bare.append(Service(service.full_name, add_to_server, servicer()))
    async with serve(bare, ServerOptions(address=f"127.0.0.1:{sys.argv[1]}", grace_s=0.1), observers=[]):
        await stop_signal()


if __name__ == "__main__":
    asyncio.run(main())
