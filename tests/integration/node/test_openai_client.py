"""OpenAI's client for Node, unmodified, against a gateway."""

import asyncio
import json
from pathlib import Path

import pytest

from tests.integration.node.conftest import NodeProgram
from tests.support.echo_model import UNHURRIED_STEP_S, echo_model, voice
from tests.support.gateway import served
from tests.support.saying_model import saying_model
from tests.support.waiting import until

RUN_TIMEOUT_S = 120
BASE = "test/echo"


@pytest.mark.integration
async def test_openais_client_for_node_is_served(node_program: NodeProgram, tmp_path: Path) -> None:
    async with served(tmp_path, echo_model(step_s=0.002)) as stack:
        process = await asyncio.create_subprocess_exec(
            *node_program("openai_client.js"), stack.url, "bot", BASE, stdout=asyncio.subprocess.PIPE
        )
        output, _ = await asyncio.wait_for(process.communicate(), RUN_TIMEOUT_S)
        assert process.returncode == 0
        found = json.loads(output)
        digest = stack.digests["bot"]
        said = voice(digest)
        assert found["models"] == [BASE, "bot", "other"]
        assert [found["answer"], found["streamed"], *found["three"]] == [said] * 5
        assert found["fingerprint"] == f"{stack.model.spec.digest}+bot:latest@{digest}*1"
        assert found["adapters"] == f"bot:latest@{digest};weight=1"
        assert found["usage"]["completion_tokens"] == len(said) + 1
        assert found["stopped"] == "bas"
        assert found["logprobs"] == [-0.5] * 5
        assert found["unknown"] == {
            "kind": "NotFoundError",
            "status": 404,
            "code": "ADAPTER_NOT_FOUND",
            "param": "model",
        }
        assert found["wrong"] == {
            "kind": "BadRequestError",
            "status": 400,
            "code": "INVALID_REQUEST",
            "param": "temperature",
        }
        assert found["cancelled"]
        await until(lambda: stack.worker.parts.engine.open_sequences == 0)


@pytest.mark.integration
async def test_openais_client_for_node_calls_tools_retries_and_cancels(
    node_program: NodeProgram, tmp_path: Path
) -> None:
    said = 'I look. <tool_call>{"name": "weather", "arguments": {"city": "Malmö"}}</tool_call>'
    model = saying_model(said, max_running=1, max_waiting=0, step_s=UNHURRIED_STEP_S)
    async with served(tmp_path, model, gateway_tool_parser=("hermes",)) as stack:
        process = await asyncio.create_subprocess_exec(
            *node_program("openai_tools.js"), stack.url, BASE, stdout=asyncio.subprocess.PIPE
        )
        output, _ = await asyncio.wait_for(process.communicate(), RUN_TIMEOUT_S)
        assert process.returncode == 0
        found = json.loads(output)
        calls = ["tool_calls", [["weather", {"city": "Malmö"}]]]
        assert (found["whole"], found["streamed"]) == (calls, calls)
        assert found["full"] == ["RateLimitError", "QUEUE_FULL"]
        assert found["retried"] == "tool_calls"
        assert found["seen"] == 2, "an aborted stream tells no more"
        assert found["forced"] == ["BadRequestError", "tool_choice"]
        await until(lambda: stack.worker.parts.engine.open_sequences == 0)
