"""The gateway's part of the audit log, before an echo worker: paths, callers, outcomes, and no prompt."""

import json
from pathlib import Path
from typing import Any

import pytest

from gateway_service.audited import ACTS
from gateway_service.routes import routes_of
from tests.support.gateway import served

pytestmark = pytest.mark.integration

LOOKS = {
    "/v1/models",
    "/v1/models/{model:path}",
    "/health",
    "/health/live",
    "/version",
    "/openapi.json",
    "/docs",
    "/metrics",
    "/ui",
    "/ui/files/{name}",
    "/ui/state",
}


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


async def test_every_path_looks_uses_or_changes_and_the_log_has_no_prompt(tmp_path: Path) -> None:
    log = tmp_path / "audit.log"
    async with served(tmp_path, audit="all", audit_file=log) as it:
        assert {route.path for route in routes_of(it.gateway.gateway)} == LOOKS | set(ACTS)
        http = await it.http()
        headers = {"x-request-id": "req-7", "authorization": "Bearer canary-token", "hotslot-tenant": "default"}
        chat = {"model": "bot", "messages": [{"role": "user", "content": "canary-prompt"}], "max_tokens": 2}
        assert (await http.post("/v1/chat/completions", json=chat, headers=headers)).status_code == 200
        missing = {**chat, "model": "no-such"}
        assert (await http.post("/v1/chat/completions", json=missing)).status_code == 404
        load = {"lora_name": "bot", "lora_path": "bot"}
        assert (await http.post("/v1/load_lora_adapter", json=load)).status_code == 200
        # The line of a change is there before its caller hears of it.
        assert lines_of(log)[-1]["object"] == {"model": "bot", "source": "bot"}
        assert (await http.post("/tokenize", json={"model": "bot", "prompt": "canary-text"})).status_code == 200
        await http.get("/v1/models")
        assert "canary" not in log.read_text()
        found = [(line["rpc"], line["code"], line["reason"]) for line in lines_of(log)]
        assert found == [
            ("POST /v1/chat/completions", "200", ""),
            ("POST /v1/chat/completions", "404", "ADAPTER_NOT_FOUND"),
            ("POST /v1/load_lora_adapter", "200", ""),
            ("POST /tokenize", "200", ""),
        ]
        first = lines_of(log)[0]
        assert first["object"] == {"model": "bot", "digests": [it.digests["bot"]]}
        assert (first["request_id"], first["tenant"], first["service"]) == ("req-7", "default", "gateway")
        assert first["peer"].startswith("127.0.0.1:")
