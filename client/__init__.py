"""Python client of hotslot, for asyncio and without, and the `hotslot` command.

    from client import AdapterSelection, BlockingHotslotClient, GenerationRequest

    with BlockingHotslotClient() as hotslot:
        answer = hotslot.complete(GenerationRequest("Hello", (AdapterSelection("pirate"),)))
        print(answer.text, answer.started.adapters[0].digest)

Errors are the classes of `shared.errors`. `client.types` holds what calls take and return.
"""

from client.blobs import RetryPolicy
from client.blocking import (
    BlockingHotslotClient,
    BlockingPlacementClient,
    BlockingStoreClient,
    BlockingWorkerClient,
)
from client.hotslot import HotslotClient
from client.placement import PlacementClient
from client.store import StoreClient
from client.types.generation import (
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
from client.worker import WorkerClient
from shared.rpc.channel import ChannelOptions

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
