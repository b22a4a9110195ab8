"""Resources as the API last told them, by whichever way it told them."""

import asyncio
from collections.abc import AsyncGenerator
from typing import Any, cast

import pytest

from controller_service.following import FollowedResources
from controller_service.kubernetes_api import KubernetesApi
from tests.support.waiting import until


def resource(version: str, rank: int = 1) -> dict[str, Any]:
    return {"metadata": {"name": "bot", "resourceVersion": version}, "spec": {"rank": rank}}


class _Told:
    """What an API says: a list, then events."""

    def __init__(self, *events: dict[str, Any]) -> None:
        self.events = events

    async def list_all(self) -> tuple[list[dict[str, Any]], str]:
        return [resource("5")], "5"

    async def watch(self, version: str) -> AsyncGenerator[tuple[str, dict[str, Any]], None]:
        for each in self.events:
            yield "MODIFIED", each
        await asyncio.Event().wait()


async def followed(*events: dict[str, Any]) -> FollowedResources:
    heard: list[str] = []
    found = FollowedResources(cast(KubernetesApi, _Told(*events)), heard.append)
    following = asyncio.create_task(found.follow())
    await until(lambda: len(heard) == 1 + len(events))
    following.cancel()
    await asyncio.wait([following])
    return found


@pytest.mark.parametrize(("told", "answered", "kept"), [("7", "6", "7"), ("9", "10", "10"), ("7", "7", "7")])
async def test_an_answer_that_comes_after_a_later_event_changes_nothing(told: str, answered: str, kept: str) -> None:
    found = await followed(resource(told, rank=2))
    found.learn(resource(answered, rank=2))
    assert found.get("bot") == resource(kept, rank=2)


async def test_versions_that_are_no_numbers_are_taken_in_the_order_in_which_they_come() -> None:
    found = await followed(resource("b"))
    found.learn(resource("a"))
    assert found.get("bot") == resource("a")


async def test_what_has_gone_is_not_learned_again() -> None:
    found = await followed()
    found.learn({"metadata": {"name": "other", "resourceVersion": "6"}})
    assert found.names() == ["bot"]
