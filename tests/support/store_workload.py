"""A client that does everything a store can do to one name and to uploads, and knows what must have come of it."""

import os
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from hotslot.errors import EtagMismatchError, VersionInUseError
from hotslot.ids import digest_of
from hotslot.pb.hotslot.store.v1 import adapter_store_pb2 as pb
from hotslot.pb.hotslot.store.v1 import blob_pb2
from store_service.admission.admit import admit
from store_service.admission.settings import AdmissionLimits
from tests.support.checkpoints import Draft, adapter, base_spec
from tests.support.fake_hub import FakeHub
from tests.support.store import StoreClient, bring, hub_request
from tests.support.store_model import Content, NameState, Shown

KINDS = (
    "upload_part",
    "upload_whole",
    "create_version",
    "import_directory",
    "import_hub",
    "set_tag",
    "delete_tag",
    "delete_version",
    "delete_adapter",
    "undelete_adapter",
)
TAGS = ("latest", "stable")
NO_ETAG = "r0"
WRONG_SHARE = 0.2
"""Of the calls that could be refused, how many ask for it."""


@dataclass(frozen=True)
class Sample:
    """One checkpoint, wherever it can be imported from, and what admission makes of it."""

    draft: Draft
    folder: Path
    repo_id: str
    digest: str
    weights_digest: str


def make_samples(imports: Path, hub: FakeHub, num_samples: int) -> list[Sample]:
    samples = []
    for seed in range(num_samples):
        draft = adapter(seed=seed, rank=32)
        folder, repo_id = imports / f"sample-{seed}", f"acme/sample-{seed}"
        checkpoint = draft.write(folder)
        hub.repositories[repo_id] = draft.files()
        manifest = admit(checkpoint, base_spec(), AdmissionLimits()).require()
        samples.append(Sample(draft, folder, repo_id, manifest.digest, manifest.weights_digest))
    return samples


@dataclass
class Upload:
    """A file on its way, made up for this."""

    data: bytes = field(default_factory=lambda: os.urandom(400_000))
    acknowledged: int = 0
    offset: int = 0
    """Bytes to go on from."""
    sent: int = 0
    may_be_complete: bool = False

    @property
    def digest(self) -> str:
        return digest_of(self.data)


@dataclass
class Workload:
    """One client's calls; only it touches its name and its uploads."""

    name: str
    samples: list[Sample]
    rng: random.Random
    began: Callable[[str], None]
    """Told of each call before it is made."""
    state: NameState = field(default_factory=NameState)
    after: NameState | None = None
    """What the call that is under way makes of the state."""
    under_way: str = ""
    upload: Upload = field(default_factory=Upload)
    uploaded: list[str] = field(default_factory=list)
    durations_s: dict[str, float] = field(default_factory=dict)
    num_calls: int = 0
    is_alone: bool = True
    """It calls one store: another one may have less of an upload than the one that was asked, but never less than was
    acknowledged."""

    @contextmanager
    def _doing(self, kind: str, after: NameState | None = None) -> Iterator[None]:
        """Between asking and being answered; an exception leaves it open what came of it."""
        started_s = time.monotonic()
        self.under_way, self.after = kind, after
        self.began(kind)
        yield
        if after is not None:
            self.state = after
        self.under_way, self.after = "", None
        self.num_calls += 1
        self.durations_s[kind] = time.monotonic() - started_s

    async def step(self, client: StoreClient) -> None:
        """One call that makes sense now, with what it needs before."""
        sample, tag = self.rng.choice(self.samples), self.rng.choice(TAGS)
        reference = f"{self.name}:{tag}"
        published = self.state.published(tag, sample.digest)
        match self.rng.choice(self._possible()):
            case "upload_part":
                await self._upload(client, self.rng.randint(self.upload.offset, len(self.upload.data)))
            case "upload_whole":
                await self._upload(client, len(self.upload.data))
            case "create_version":
                files = [await bring(client, *file) for file in sample.draft.files().items()]
                with self._doing("create_version", published):
                    await client.call("CreateVersion", pb.CreateVersionRequest(reference=reference, files=files))
            case "import_directory":
                source = pb.DirectorySource(path=str(sample.folder))
                with self._doing("import_directory", published):
                    await client.import_(pb.ImportAdapterRequest(reference=reference, directory=source))
            case "import_hub":
                with self._doing("import_hub", published):
                    await client.import_(hub_request(reference, repo_id=sample.repo_id))
            case "delete_adapter":
                with self._doing("delete_adapter", self.state.without_live()):
                    await client.call("DeleteAdapter", pb.DeleteAdapterRequest(name=self.name))
            case "undelete_adapter":
                with self._doing("undelete_adapter", self.state.undeleted()):
                    await client.call("UndeleteAdapter", pb.UndeleteAdapterRequest(name=self.name))
            case "set_tag":
                await self._set_tag(client, self._live, tag)
            case "delete_tag":
                await self._delete_tag(client, self._live)
            case "delete_version":
                await self._delete_version(client, self._live)

    @property
    def _live(self) -> Content:
        assert self.state.live is not None
        return self.state.live

    def _possible(self) -> list[str]:
        live = self.state.live
        possible = ["upload_part", "upload_whole", "create_version", "import_directory", "import_hub"]
        if live is not None:
            possible += ["delete_adapter"]
            possible += ["set_tag", "set_tag", "delete_version"] if live.versions else []
            possible += ["delete_tag"] if live.tags else []
        elif self.state.deleted:
            possible += ["undelete_adapter"] * 4
        return possible

    async def _etags(self, client: StoreClient) -> dict[str, str]:
        found = await client.call("GetAdapter", pb.GetAdapterRequest(name=self.name))
        return {tag.name: tag.etag for tag in found.adapter.tags}

    async def _set_tag(self, client: StoreClient, live: Content, tag: str) -> None:
        digest, etags = self.rng.choice(sorted(live.versions)), await self._etags(client)
        request = pb.SetTagRequest(adapter=self.name, tag=tag, digest=digest, etag=etags.get(tag, ""))
        if tag in etags and self.rng.random() < WRONG_SHARE:
            request.etag = NO_ETAG
            with pytest.raises(EtagMismatchError):
                await client.call("SetTag", request)
            return
        with self._doing("set_tag", self.state.changed(live.with_tag(tag, digest))):
            await client.call("SetTag", request)

    async def _delete_tag(self, client: StoreClient, live: Content) -> None:
        (tag, _), etags = self.rng.choice(sorted(live.tags)), await self._etags(client)
        with self._doing("delete_tag", self.state.changed(live.without_tag(tag))):
            request = pb.DeleteTagRequest(adapter=self.name, tag=tag, etag=etags[tag])
            await client.call("DeleteTag", request)

    async def _delete_version(self, client: StoreClient, live: Content) -> None:
        digest = self.rng.choice(sorted(live.versions))
        request = pb.DeleteVersionRequest(adapter=self.name, digest=digest)
        if digest in {pointed_at for _, pointed_at in live.tags}:
            if self.rng.random() < WRONG_SHARE:
                with pytest.raises(VersionInUseError):
                    await client.call("DeleteVersion", request)
                return
            request.force = True
        with self._doing("delete_version", self.state.changed(live.without_version(digest))):
            await client.call("DeleteVersion", request)

    async def _upload(self, client: StoreClient, end: int) -> None:
        upload, is_whole = self.upload, end == len(self.upload.data)
        upload.sent, upload.may_be_complete = max(upload.sent, end), is_whole
        with self._doing("upload_whole" if is_whole else "upload_part"):
            response = await client.write(upload.data, offset=upload.offset, end=end, finish=is_whole)
        assert response.committed_size == end
        assert response.complete == is_whole
        upload.acknowledged = upload.offset = end
        if is_whole:
            self.next_upload()

    async def settle(self, client: StoreClient, shown: Shown) -> None:
        """After a restart: see that what was under way came wholly or not at all, and go on from there."""
        possible = [self.state] if self.after is None else [self.state, self.after]
        matching = [state for state in possible if state.shown() == shown]
        assert matching, f"{self.name} shows {shown}, expected one of {[state.shown() for state in possible]}"
        self.state = matching[-1]
        self.under_way, self.after = "", None
        missing = await client.call("FindMissingBlobs", blob_pb2.FindMissingBlobsRequest(digests=self.uploaded))
        assert not missing.missing_digests
        upload = self.upload
        status = await client.call("GetWriteStatus", blob_pb2.GetWriteStatusRequest(digest=upload.digest))
        assert upload.acknowledged <= status.committed_size <= upload.sent
        assert upload.may_be_complete or not status.complete
        upload.offset = status.committed_size
        if self.is_alone:
            upload.acknowledged = upload.offset
        if status.complete:
            self.next_upload()

    def next_upload(self) -> None:
        self.uploaded.append(self.upload.digest)
        self.upload = Upload()
