"""Arguments of another type where clients are made and chats are sent."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hotslot import BlockingWorkerClient, ChatMessage, HotslotClient, PlacementClient, StoreClient, WorkerClient
from hotslot.errors import InvalidRequestError

NOWHERE = "127.0.0.1:1"


@pytest.mark.parametrize("endpoint", [None, 7500, b"127.0.0.1:7500", ("127.0.0.1", 7500), Path("worker"), object()])
def test_an_endpoint_that_is_no_text_is_refused_by_every_client(endpoint: Any) -> None:
    for kind in (StoreClient, PlacementClient, WorkerClient, BlockingWorkerClient):
        with pytest.raises(InvalidRequestError, match="endpoint"):
            kind(endpoint)
    with pytest.raises(InvalidRequestError, match="endpoint"):
        HotslotClient(endpoint, NOWHERE)
    if endpoint is not None:  # Without a worker it has none.
        with pytest.raises(InvalidRequestError, match="endpoint"):
            HotslotClient(NOWHERE, endpoint)


async def test_a_chat_is_not_sent_with_the_defaults_in_the_place_of_wrong_values() -> None:
    async with WorkerClient(NOWHERE) as client:
        wrong: list[dict[str, Any]] = [{"stop": ""}, {"stop": 0}, {"sampling": {}}, {"sampling": np.array([1, 2])}]
        for more in wrong:
            with pytest.raises(InvalidRequestError, match=next(iter(more))):
                await client.chat([ChatMessage("user", "hi")], **more)
