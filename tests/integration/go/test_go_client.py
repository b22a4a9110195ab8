"""The example client in Go, made of the protos alone, against a store and a worker, and against a secured fleet."""

import subprocess
from pathlib import Path
from typing import Any

import pytest

from hotslot.clients.hotslot import HotslotClient
from hotslot.contract.generation import AdapterSelection, GenerationRequest
from hotslot.ids import Digest
from tests.integration.go.conftest import EXAMPLE, go_command
from tests.integration.identity.test_secured_fleet import SecuredFleet
from tests.integration.node.test_wrong_uses import lines_of
from tests.support.checkpoints import adapter
from tests.support.echo_model import echo_model, voice
from tests.support.echo_worker import run_worker
from tests.support.store import open_store

# Go compiles gRPC for a minute of two cores where its cache is empty.
pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(900)]
"""The first build compiles gRPC."""

SPEC = echo_model().spec


def told(lines: list[dict[str, object]]) -> tuple[dict[str, Any], list[dict[str, object]]]:
    """What each call said, and the errors."""
    refused = [line for line in lines if line["what"] == "refused"]
    return {str(line["what"]): line for line in lines if line["what"] != "refused"}, refused


def test_the_example_is_formatted_as_gofmt_does() -> None:
    go = go_command()
    root = subprocess.run([go, "env", "GOROOT"], check=True, capture_output=True, text=True, timeout=60).stdout.strip()
    for path in EXAMPLE.glob("*.go"):
        done = subprocess.run(
            [f"{root}/bin/gofmt", "-d", str(path)], check=True, capture_output=True, text=True, timeout=60
        )
        assert not done.stdout + done.stderr


async def test_the_example_for_go_writes_reads_what_it_wrote_and_is_refused_with_reasons(
    go_program: Path, tmp_path: Path
) -> None:
    for seed, name in enumerate(("bot", "other")):
        adapter(spec=SPEC, seed=seed).write(tmp_path / name)
    model = echo_model(step_s=0.01)  # an endless answer takes seconds
    async with (
        open_store(tmp_path / "store", import_roots=(str(tmp_path),)) as store,
        run_worker(model, store.endpoint) as running,
    ):
        await store.register(SPEC)
        flags = ["-push", str(tmp_path / "bot"), "-import", str(tmp_path / "other"), "-base-model", SPEC.digest]
        endpoints = [store.endpoint, f"127.0.0.1:{running.server.port}"]
        found, refused = told(await lines_of([str(go_program), *flags, *endpoints, "go/bot", "go/other"]))
        bot, other = [Digest((await store.resolve(name)).digest) for name in ("go/bot", "go/other")]
        running.assert_nothing_is_held()
    assert found["push"]["digest"] == bot
    assert (found["import"]["digest"], found["import"]["progress"]) == (other, True)
    assert 0 < found["push"]["revision"] < found["import"]["revision"]
    assert (found["stream"]["text"], found["stream"]["digest"]) == (voice(bot), bot)
    assert found["mix"]["text"] == "+".join(sorted((voice(bot, 0.5), voice(other, 0.25))))[:40]
    assert [(line["code"], line["reason"], line["fields"]) for line in refused] == [
        ("NotFound", "ADAPTER_NOT_FOUND", None),
        ("InvalidArgument", "INVALID_REQUEST", ["sampling.temperature"]),
        ("Unavailable", "CATALOG_BEHIND", None),
    ]
    assert found["deadline"]["code"] == "DeadlineExceeded"
    assert "left" in found
    assert (found["away"]["code"], found["away"]["waited"]) == ("Unavailable", True)


async def test_the_example_for_go_proves_who_it_is(go_program: Path, fleet: SecuredFleet, tmp_path: Path) -> None:
    adapter(spec=SPEC, seed=9).write(tmp_path / "bot")
    security = fleet.security("alice")
    flags = [
        "-ca", str(security.ca_file), "-cert", str(security.cert_file), "-key", str(security.key_file),
        "-token", fleet.roster.tokens["alice"], "-push", str(tmp_path / "bot"), "-base-model", SPEC.digest,
    ]  # fmt: skip
    command = [str(go_program), *flags, fleet.store, fleet.workers[0], "go-bot", "alice-bot"]
    found, _ = told(await lines_of(command))
    assert found["stream"]["digest"] == found["push"]["digest"]
    # In the tenant of its token, and in no other.
    async with HotslotClient(fleet.store, fleet.workers[1], options=fleet.options("alice")) as alice:
        answer = await alice.complete(GenerationRequest("hello", (AdapterSelection("go-bot"),)))
        assert answer.started.adapters[0].digest == found["push"]["digest"]
    without = [word for word in command if word not in ("-token", fleet.roster.tokens["alice"])]
    done = subprocess.run(without, capture_output=True, text=True, timeout=60, check=False)  # noqa: ASYNC221
    assert done.returncode == 1
    assert done.stderr.startswith("Unauthenticated UNAUTHENTICATED: ")
