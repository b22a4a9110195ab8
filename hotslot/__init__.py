"""Python client of hotslot, for asyncio and without, and the `hotslot` command.

    from hotslot import BlockingHotslotClient

    with BlockingHotslotClient() as hotslot:
        answer = hotslot.complete("Hello", adapters="pirate")
        print(answer.text, answer.started.adapters[0].digest)

Errors are the classes of `hotslot.errors`, which draws their tree; all are `HotslotError`, and all are here too.
docs/client.md is the client's page. `hotslot.contract` holds the types that calls take and return.

Decisions: docs/decisions/hotslot.md and docs/decisions/packaging.md
"""

import hotslot.rpc.fork_support  # noqa: F401  Has to be first: gRPC is imported by all that follows.
from hotslot import errors
from hotslot.clients.blobs import RetryPolicy
from hotslot.clients.blocking import (
    BlockingHotslotClient,
    BlockingPlacementClient,
    BlockingStoreClient,
    BlockingWorkerClient,
)
from hotslot.clients.hotslot import HotslotClient
from hotslot.clients.placement import PlacementClient
from hotslot.clients.store import StoreClient
from hotslot.clients.worker import WorkerClient
from hotslot.contract.catalog import PublishedVersion
from hotslot.contract.generation import (
    AdapterSelection,
    ChatMessage,
    ChatPrompt,
    Chunk,
    Completion,
    Finished,
    GenerationRequest,
    Logprobs,
    Sampling,
    Started,
    Stop,
    TextPart,
    ToolCall,
)
from hotslot.errors import *  # noqa: F403 (every error is here)
from hotslot.formats.weight_files import RawTensor
from hotslot.rpc.channel import ChannelOptions

__all__ = [
    "AdapterSelection",
    "BlockingHotslotClient",
    "BlockingPlacementClient",
    "BlockingStoreClient",
    "BlockingWorkerClient",
    "ChannelOptions",
    "ChatMessage",
    "ChatPrompt",
    "Chunk",
    "Completion",
    "Finished",
    "GenerationRequest",
    "HotslotClient",
    "Logprobs",
    "PlacementClient",
    "PublishedVersion",
    "RawTensor",
    "RetryPolicy",
    "Sampling",
    "Started",
    "Stop",
    "StoreClient",
    "TextPart",
    "ToolCall",
    "WorkerClient",
]
__all__ += errors.__all__
