"""Python client of hotslot, for asyncio and without, and the `hotslot` command.

    from hotslot import BlockingHotslotClient

    with BlockingHotslotClient() as hotslot:
        answer = hotslot.complete("Hello", adapters="pirate")
        print(answer.text, answer.started.adapters[0].digest)

Errors are the classes of `hotslot.errors`, of which those that callers mostly catch are here too; all are
`HotslotError`. docs/client.md is the client's page. `hotslot.contract` holds the types that calls take and return.

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
from hotslot.errors import (
    AdapterNotFoundError,
    HotslotError,
    InvalidAdapterError,
    InvalidReferenceError,
    InvalidRequestError,
    NotFoundError,
    RequestDeadlineError,
    StoreUnavailableError,
    TagNotFoundError,
    UnavailableError,
    VersionNotFoundError,
)
from hotslot.formats.weight_files import RawTensor
from hotslot.rpc.channel import ChannelOptions

__all__ = [
    "AdapterNotFoundError",
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
    "HotslotError",
    "InvalidAdapterError",
    "InvalidReferenceError",
    "InvalidRequestError",
    "Logprobs",
    "NotFoundError",
    "PlacementClient",
    "PublishedVersion",
    "RawTensor",
    "RequestDeadlineError",
    "RetryPolicy",
    "Sampling",
    "Started",
    "Stop",
    "StoreClient",
    "StoreUnavailableError",
    "TagNotFoundError",
    "TextPart",
    "ToolCall",
    "UnavailableError",
    "VersionNotFoundError",
    "WorkerClient",
]
