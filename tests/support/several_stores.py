"""Stores over one PostgreSQL and one S3 server, each with a folder of its own, for tests."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from store_service.content.objects import ObjectBlobs
from tests.support.shared_services import BUCKET, PostgresService, S3Service, postgres_service, s3_service
from tests.support.store import StoreClient, open_store

AT_ONCE = {"collect_every_s": 0.1, "unreferenced_grace_s": 0.0, "blob_lease_s": 0.0}
"""Settings of a store that removes what it may."""


@dataclass
class SharedServices:
    """The servers, both running."""

    postgres: PostgresService
    s3: S3Service

    def place(self, folder: Path) -> "SharedPlace":
        """A catalog and a place for blobs that are empty."""
        url = self.postgres.new_database()
        return SharedPlace(folder, url, f"s3://{BUCKET}/{url.rpartition('/')[2]}", self)


@dataclass
class SharedPlace:
    """One catalog with its blobs, and folders for stores."""

    folder: Path
    catalog_url: str
    blob_url: str
    services: SharedServices

    def settings(self, **settings: Any) -> dict[str, Any]:
        return {"catalog_url": self.catalog_url, "blob_url": self.blob_url, **settings}

    @asynccontextmanager
    async def store(self, name: str, **settings: Any) -> AsyncIterator[StoreClient]:
        """A store of this process."""
        async with open_store(self.folder / name, **self.settings(**settings)) as client:
            yield client

    def objects(self) -> ObjectBlobs:
        return ObjectBlobs(self.blob_url)

    def names(self) -> list[str]:
        """Names of all objects that are blobs or uploads."""
        objects = self.objects()
        return sorted([*objects.list_small("blobs"), *objects.list_small("uploads")])


@contextmanager
def shared_services() -> Iterator[SharedServices]:
    """Both servers, running; this process and its children find the S3 server by their environment."""
    with postgres_service() as postgres, s3_service() as s3, pytest.MonkeyPatch.context() as environment:
        for name, value in s3.variables.items():
            environment.setenv(name, value)
        asyncio.run(_start(postgres, s3))
        yield SharedServices(postgres, s3)


async def _start(postgres: PostgresService, s3: S3Service) -> None:
    await asyncio.gather(postgres.start(), s3.start())
