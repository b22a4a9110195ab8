"""Following resources: listed once, then watched from there, listed anew when the API has forgotten too much."""

import asyncio
from collections.abc import Callable
from contextlib import aclosing
from typing import Any

import structlog

from controller_service.kubernetes_api import KubernetesApi, ResourceGoneError, VersionGoneError
from hotslot.backoff import Backoff
from hotslot.errors import UnavailableError

log = structlog.get_logger(__name__)

BACKOFF = Backoff(0.5, 30.0)
OnResourceChange = Callable[[str], None]


class FollowedResources:
    """The resources as the API last told them. Belongs to one event loop."""

    def __init__(self, api: KubernetesApi, on_change: OnResourceChange, backoff: Backoff = BACKOFF) -> None:
        """`on_change` hears the name of each resource that may have changed, also of one that has gone."""
        self._api = api
        self._on_change = on_change
        self._backoff = backoff
        self._resources: dict[str, dict[str, Any]] = {}
        self._version = ""
        self.listed = asyncio.Event()
        """Set once all resources were listed."""

    def get(self, name: str) -> dict[str, Any] | None:
        """A resource as last told; None when it is not there."""
        return self._resources.get(name)

    def names(self) -> list[str]:
        """Names of all resources."""
        return sorted(self._resources)

    def learn(self, resource: dict[str, Any]) -> None:
        """Take a resource as a write returned it, so that the next look does not see the one before.

        The watch may have told of a later write before the answer to this one came.
        """
        name = resource["metadata"]["name"]
        known = self._resources.get(name)
        if known is not None and not _is_before(resource, known):
            self._resources[name] = resource

    async def follow(self) -> None:
        """Follow for ever; what fails is tried again."""
        failures = 0
        while True:
            try:
                if not self._version:
                    await self._list()
                failures = 0
                await self._watch()
                continue
            except VersionGoneError as exc:
                log.info("watch_forgotten", why=str(exc))
                self._version = ""
                if not failures:
                    failures = 1
                    continue
            except (UnavailableError, ResourceGoneError) as exc:
                # A kind that is not defined is 404, and comes to be.
                log.warning("watch_broken", why=str(exc))
            await asyncio.sleep(self._backoff.pause_s(failures))
            failures += 1

    async def _list(self) -> None:
        found, version = await self._api.list_all()
        resources = {each["metadata"]["name"]: each for each in found}
        changed = [name for name, each in resources.items() if self._resources.get(name) != each]
        gone = self._resources.keys() - resources.keys()
        self._resources, self._version = resources, version
        self.listed.set()
        for name in (*changed, *gone):
            self._on_change(name)

    async def _watch(self) -> None:
        async with aclosing(self._api.watch(self._version)) as events:
            async for kind, resource in events:
                self._version = resource["metadata"]["resourceVersion"]
                if kind == "BOOKMARK":
                    continue
                name = resource["metadata"]["name"]
                if kind == "DELETED":
                    self._resources.pop(name, None)
                else:
                    self._resources[name] = resource
                self._on_change(name)


def _is_before(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """True where a resource is an earlier one by its version, a number that grows with each write."""
    versions = [each["metadata"]["resourceVersion"] for each in (one, other)]
    return all(version.isdecimal() for version in versions) and int(versions[0]) < int(versions[1])
