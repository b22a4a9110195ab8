"""Stores over one PostgreSQL and one S3 server, each with a folder of its own, for tests."""

import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest

from store_service.content.objects import ObjectBlobs
from tests.support.postgres import PostgresServer, postgres_server
from tests.support.seaweed import SeaweedServer, seaweed
from tests.support.store import StoreClient, open_store

BUCKET = "several"
AT_ONCE: dict[str, Any] = {"collect_every_s": 0.1, "unreferenced_grace_s": 0.0, "blob_lease_s": 0.0}
"""Settings of a store that removes what it may."""


@dataclass
class SharedServices:
    """The servers, both running."""

    postgres: PostgresServer
    s3: SeaweedServer

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

    def local_blobs(self, name: str) -> list[Path]:
        """Files of the blobs that a store has on its disk."""
        return [path for path in (self.folder / name / "blobs").rglob("*") if path.is_file()]


@dataclass
class AlternatingClient(StoreClient):
    """One tenant's stubs of several stores: each call goes to the next."""

    channels: Iterator[grpc.aio.Channel] = field(default_factory=lambda: iter(()))

    @property
    def adapters(self) -> Any:
        self.channel = next(self.channels)
        return StoreClient(self.channel).adapters

    @property
    def blobs(self) -> Any:
        self.channel = next(self.channels)
        return StoreClient(self.channel).blobs

    def of(self, tenant: str) -> StoreClient:
        return AlternatingClient(self.channel, tenant, self.endpoint, self.channels)


@contextmanager
def shared_services() -> Iterator[SharedServices]:
    """Both servers, running; this process and its children find the S3 server by their environment."""
    with ExitStack() as stack:
        postgres = stack.enter_context(postgres_server())
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="s3-", ignore_cleanup_errors=True)))
        s3 = stack.enter_context(seaweed(folder))
        s3.bucket(BUCKET)
        environment = stack.enter_context(pytest.MonkeyPatch.context())
        for name, value in s3.variables().items():
            environment.setenv(name, value)
        yield SharedServices(postgres, s3)
