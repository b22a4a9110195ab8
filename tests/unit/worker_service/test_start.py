"""A worker's start: a load that fails ends it."""

import asyncio

import pytest

from tests.support.echo_model import echo_model
from worker_service.app import run
from worker_service.assembly import ServableModel
from worker_service.model.shared_code import SharedCode
from worker_service.settings import WorkerSettings


@pytest.mark.parametrize("failure", [StopIteration(), RuntimeError("broken")])
async def test_a_load_that_fails_ends_the_start(failure: Exception) -> None:
    def load(_: SharedCode | None) -> ServableModel:
        raise failure

    settings = WorkerSettings(model="any", listen="127.0.0.1:0")
    with pytest.raises(RuntimeError):
        await asyncio.wait_for(run(settings, lambda: echo_model().spec, load), timeout=60)
