"""The hub's token shows nowhere: not in logs, errors or progress, whatever goes wrong."""

from collections.abc import Callable
from pathlib import Path

import grpc

from tests.support.fake_hub import FakeHub, fake_hub
from tests.support.store import hub_request
from tests.support.store_process import StoreForks

TOKEN = "hf_very-secret"
WEIGHTS = "adapter_model.safetensors"


async def test_the_token_is_in_no_log_error_or_progress(tmp_path: Path, hub: FakeHub, forks: StoreForks) -> None:
    hub.private_token = TOKEN
    settings = {
        "hub_token": TOKEN,
        "hub_token_tenants": "default",
        "log_level": "debug",
        "hub_attempts": 1,
        "import_refusal_ttl_s": 0,
    }
    with fake_hub() as elsewhere:
        faults: list[Callable[[], object]] = [
            lambda: None,
            lambda: hub.fail_with.update(api=[500]),
            lambda: hub.fail_with.update({WEIGHTS: [500]}),
            lambda: hub.fail_with.update({WEIGHTS: [403]}),
            lambda: hub.truncate.append(100),
            lambda: hub.answer_with.update(api=b"<html>"),
            hub.answer_with.clear,
            lambda: hub.replace.update({WEIGHTS: b"x"}),
            lambda: setattr(hub, "redirect_to", elsewhere.endpoint + "{path}"),
            lambda: setattr(hub, "redirect_api_to", elsewhere.endpoint + "{path}"),
            lambda: setattr(hub, "private_token", "another"),
        ]
        seen, num_failed = [], 0
        async with (
            forks.store(tmp_path, hub_endpoint=hub.endpoint, **settings) as store,
            store.client() as client,
        ):
            await client.register()
            for number, inflict in enumerate(faults):
                inflict()
                call = client.adapters.ImportAdapter(hub_request(f"bot-{number}"), metadata=client.metadata)
                try:
                    seen += [str(message) async for message in call]
                except grpc.aio.AioRpcError as exc:
                    seen += [repr(exc), repr(exc.trailing_metadata())]
                    num_failed += 1
        assert hub.tokens.count(f"Bearer {TOKEN}") > len(faults)
        assert not elsewhere.requests
    logged = store.log_path.read_text(encoding="utf-8")
    assert "import_failed" in logged
    assert num_failed == len(faults) - 2
    assert TOKEN not in "".join([*seen, logged])
