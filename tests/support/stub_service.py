"""A process that says over gRPC that it is healthy, and can be drained: what `hotslot up` starts in its own tests.

Reads HOTSLOT_LISTEN and the variables of its certificate. HOTSLOT_STUB_EXIT makes it end at once with that code;
HOTSLOT_STUB_STUBBORN makes it ignore SIGTERM.
"""

import asyncio
import os
import signal
import sys

from shared.server.grpc_server import ServerOptions, serve, stop_signal
from shared.settings import load
from shared.transport_settings import ServerTransport
from tests.support.fake_worker import FakeWorker


async def main() -> None:
    transport = load(ServerTransport, prog="stub", argv=[]).transport()
    options = ServerOptions(address=os.environ["HOTSLOT_LISTEN"], grace_s=0.1, transport=transport)
    async with serve(FakeWorker().services(), options) as server:
        await server.set_ready(True)
        if os.environ.get("HOTSLOT_STUB_STUBBORN"):
            asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, print, "I am not going")
            await asyncio.Event().wait()
        await stop_signal()


if __name__ == "__main__":
    if "HOTSLOT_STUB_EXIT" in os.environ:
        sys.stderr.write("the stub ends as it was told\n")
        sys.exit(int(os.environ["HOTSLOT_STUB_EXIT"]))
    asyncio.run(main())
