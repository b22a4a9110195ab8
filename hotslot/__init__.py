"""Python client of hotslot, for asyncio and without, and the `hotslot` command.

    from hotslot import AdapterSelection, BlockingHotslotClient, GenerationRequest

    with BlockingHotslotClient() as hotslot:
        answer = hotslot.complete(GenerationRequest("Hello", (AdapterSelection("pirate"),)))
        print(answer.text, answer.started.adapters[0].digest)

Errors are the classes of `hotslot.errors`. `hotslot.contract` holds what calls take and return.

Decisions: docs/decisions/hotslot.md and docs/decisions/packaging.md
"""

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
    "RetryPolicy",
    "Sampling",
    "Started",
    "Stop",
    "StoreClient",
    "TextPart",
    "ToolCall",
    "WorkerClient",
]
