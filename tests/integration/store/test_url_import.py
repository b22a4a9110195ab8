"""Imports from object storage and web servers: a real S3 server, a real HTTPS server, and faults on the way."""

import asyncio
import gzip
import io
import json
import tarfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import obstore
import pytest

from hotslot import errors
from hotslot.ids import digest_of
from hotslot.local.authority import Authority
from hotslot.pb.hotslot.store.v1 import adapter_store_pb2 as pb
from tests.support.certificates import Party, party
from tests.support.checkpoints import adapter
from tests.support.file_server import FileServer, file_server
from tests.support.seaweed import S3Identity, SeaweedServer, seaweed
from tests.support.store import StoreClient, error_of, open_store
from tests.support.store_process import StoreForks

WEIGHTS = "adapter_model.safetensors"
ACME = S3Identity("acme", ("Read:models/acme/*",))
SECRET = "very-secret-key"


def request_for(url: str, digest: str = "", reference: str = "bot") -> pb.ImportAdapterRequest:
    return pb.ImportAdapterRequest(reference=reference, url=pb.UrlSource(url=url, digest=digest))


def tar_of(files: dict[str, bytes], folder: str = "bot/") -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(f"{folder}{name}")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return packed.getvalue()


class Access:
    """The store's file of access, which tests write anew."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.write()

    def write(self, *rows: dict[str, Any]) -> None:
        self.path.write_text(json.dumps({"sources": rows}))

    def s3(self, prefix: str, endpoint: str, identity: S3Identity = ACME, *tenants: str) -> dict[str, Any]:
        keys = {"access_key_id": identity.name, "secret_access_key": identity.secret, "endpoint": endpoint}
        return {"prefix": prefix, "tenants": tenants or ("default",), "s3": keys}


@pytest.fixture
def access(tmp_path: Path) -> Access:
    return Access(tmp_path / "access.json")


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SeaweedServer]:
    with seaweed(tmp_path_factory.mktemp("seaweed"), ACME) as server:
        bucket = server.bucket("models")
        for name, data in {**adapter().files(), "README.md": b"# hello", "adapter_model.bin": b"\x80"}.items():
            obstore.put(bucket, f"acme/bot/{name}", data)
            obstore.put(bucket, f"other/bot/{name}", data)
        yield server


@pytest.fixture
def files() -> Iterator[FileServer]:
    with file_server() as server:
        yield server


@pytest.fixture(scope="module")
def server_party(tmp_path_factory: pytest.TempPathFactory) -> Party:
    folder = tmp_path_factory.mktemp("certificates")
    return party(folder, "server", Authority(folder / "authority"))


@pytest.fixture
def web(server_party: Party) -> Iterator[FileServer]:
    with file_server(server_party) as server:
        yield server


@pytest.fixture
async def store(tmp_path: Path, access: Access, server_party: Party) -> AsyncIterator[StoreClient]:
    settings = {
        "source_access_file": access.path,
        "source_ca_file": server_party.bundle_file,
        "source_attempts": 3,
        "import_refusal_ttl_s": 0.0,
        "max_adapter_bytes": 1 << 20,
    }
    async with open_store(tmp_path / "data", **settings) as client:
        await client.register()
        yield client


async def test_a_folder_of_a_real_s3_server_becomes_the_version_that_a_push_gives(
    store: StoreClient, access: Access, storage: SeaweedServer
) -> None:
    access.write(access.s3("s3://models/acme/", storage.endpoint))
    version = await store.import_(request_for("s3://models/acme/bot/"))
    assert version.source.startswith("s3://models/acme/bot#etags:")
    assert version.digest == (await store.push(adapter(), "pushed")).digest
    again = await store.import_(request_for("s3://models/acme/bot", reference="again"))
    assert again.source == version.source
    bucket = storage.bucket("models", is_new=False)
    obstore.put(bucket, "acme/bot/" + WEIGHTS, adapter(seed=9).files()[WEIGHTS])
    changed = await store.import_(request_for("s3://models/acme/bot"))
    assert changed.source != version.source
    assert changed.digest != version.digest
    obstore.put(bucket, "acme/bot/" + WEIGHTS, adapter().files()[WEIGHTS])


async def test_a_tenant_uses_its_own_rows_alone_and_below_their_prefixes(
    store: StoreClient, access: Access, storage: SeaweedServer
) -> None:
    # The keys of the other's row could read everything.
    everything = access.s3("s3://models/", storage.endpoint, storage.identities[0], "operator")
    access.write(everything, access.s3("s3://models/acme", storage.endpoint))
    await store.import_(request_for("s3://models/acme/bot"))
    for url in ("s3://models/other/bot", "s3://models/acme2/bot", "s3://models", "s3://elsewhere/acme/bot"):
        error = await error_of(store.import_(request_for(url)))
        assert isinstance(error, errors.SourceForbiddenError), url
    for url in ("s3://models/acme/../other/bot", "s3://models/acme/%2e%2e/other/bot", "s3://models//acme/./bot"):
        assert isinstance(await error_of(store.import_(request_for(url))), errors.InvalidRequestError), url
    assert isinstance(
        await error_of(store.of("stranger").import_(request_for("s3://models/acme/bot"))), errors.SourceForbiddenError
    )


async def test_a_real_s3_server_that_refuses_or_lacks_it_is_told_apart(
    store: StoreClient, access: Access, storage: SeaweedServer
) -> None:
    stranger = S3Identity("stranger")
    access.write(access.s3("s3://models/acme", storage.endpoint), access.s3("s3://models/other", storage.endpoint))
    assert isinstance(await error_of(store.import_(request_for("s3://models/acme/none"))), errors.SourceNotFoundError)
    # Its keys are for another prefix of the bucket.
    assert isinstance(await error_of(store.import_(request_for("s3://models/other/bot"))), errors.SourceForbiddenError)
    access.write(access.s3("s3://models/acme", storage.endpoint, stranger))
    error = await error_of(store.import_(request_for("s3://models/acme/bot")))
    assert isinstance(error, errors.SourceForbiddenError)
    assert stranger.secret not in str(error)


def served(files: FileServer, folder: str = "/models/bot/", **more: bytes) -> None:
    files.files = {f"{folder}{name}": data for name, data in {**adapter().files(), **more}.items()}


def rows_of(access: Access, endpoint: str, key_file: Path) -> dict[str, dict[str, Any]]:
    """A row for each kind of object storage, with the same server for all."""
    return {
        "s3": access.s3("s3://models", endpoint, S3Identity("key")),
        "gs": {
            "prefix": "gs://models",
            "tenants": ["default"],
            "gcs": {"service_account_file": str(key_file), "endpoint": endpoint},
        },
        "az": {
            "prefix": "az://models",
            "tenants": ["default"],
            "azure": {"account_name": "account", "account_key": "c2VjcmV0", "endpoint": endpoint},
        },
    }


SIGNED = {"s3": "X-Amz-Signature=", "gs": "X-Goog-Signature=", "az": "sig="}


@pytest.mark.parametrize("scheme", SIGNED)
async def test_objects_of_every_kind_are_asked_for_with_signatures_and_read_as_they_were_seen(
    store: StoreClient, access: Access, files: FileServer, scheme: str, service_account: Path
) -> None:
    served(files)
    access.write(rows_of(access, files.endpoint, service_account)[scheme])
    version = await store.import_(request_for(f"{scheme}://models/bot"))
    assert version.digest == (await store.push(adapter(), "pushed")).digest
    assert all(SIGNED[scheme] in path for _, path, _ in files.seen)
    reads = [headers for method, _, headers in files.seen if method == "GET"]
    assert len(reads) == 2
    assert all("If-Match" in headers for headers in reads)


@pytest.fixture(scope="session")
def service_account(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import rsa

    key = rsa.generate_private_key(public_exponent=65537, key_size=2048).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    document = {
        "type": "service_account",
        "private_key": key.decode(),
        "private_key_id": "id",
        "client_email": "store@acme.example",
        "client_id": "1",
        "token_uri": "https://oauth2.example/token",
    }
    path = tmp_path_factory.mktemp("account") / "key.json"
    path.write_text(json.dumps(document))
    return path


@pytest.mark.parametrize("ignores_ranges", [False, True])
async def test_a_broken_transfer_goes_on_where_it_ended(
    store: StoreClient, access: Access, files: FileServer, ignores_ranges: bool
) -> None:
    served(files)
    access.write(access.s3("s3://models", files.endpoint))
    # More breaks than attempts: each brought something.
    files.truncate, files.ignores_ranges = ([10_000, 0, 200, 0, 300, 400], False)
    if ignores_ranges:
        files.truncate, files.ignores_ranges = [10_000, 0, 200, 300, 400], True
    version = await store.import_(request_for("s3://models/bot"))
    assert version.digest == (await store.push(adapter(), "pushed")).digest
    assert files.requests[f"GET /models/bot/{WEIGHTS}"] >= 4
    # All of it in one import: nothing was read twice into the same file.
    assert files.requests["GET /models/bot/adapter_config.json"] == 1


FAILURES: list[tuple[list[int], type[Exception] | None]] = [
    ([503, 429, 503], errors.SourceThrottledError),
    ([500, 502, 500], errors.SourceUnavailableError),
    ([403], errors.SourceForbiddenError),
    ([401], errors.SourceForbiddenError),
    ([301], errors.SourceForbiddenError),
    ([404], errors.SourceNotFoundError),
    ([412, 412], errors.SourceChangedError),
    ([500, 429], None),
]


async def test_failures_are_typed_and_show_nothing_of_the_answer(
    store: StoreClient, access: Access, files: FileServer
) -> None:
    served(files)
    access.write(access.s3("s3://models", files.endpoint, S3Identity(SECRET)))
    files.headers = {"Location": "http://127.0.0.1:1/", "Retry-After": "0"}
    for statuses, expected in FAILURES:
        files.fail_with[f"/models/bot/{WEIGHTS}"] = list(statuses)
        if expected is None:
            await store.import_(request_for("s3://models/bot"))
            continue
        error = await error_of(store.import_(request_for("s3://models/bot")))
        assert type(error) is expected, statuses
        assert "secret" not in str(error)
        assert "X-Amz" not in str(error)
        assert not files.fail_with[f"/models/bot/{WEIGHTS}"]


async def test_objects_that_change_while_they_are_read_are_read_again_or_refused(
    store: StoreClient, access: Access, files: FileServer
) -> None:
    served(files)
    access.write(access.s3("s3://models", files.endpoint))
    other = adapter(seed=7).files()[WEIGHTS]

    def change() -> None:
        files.files[f"/models/bot/{WEIGHTS}"] = other

    files.on_get["/models/bot/adapter_config.json"] = change
    version = await store.import_(request_for("s3://models/bot"))
    assert version.digest == (await store.push(adapter(seed=7), "pushed")).digest

    def change_for_ever(number: int = 0) -> None:
        files.files["/models/bot/adapter_config.json"] += b" "
        files.on_get[f"/models/bot/{WEIGHTS}"] = lambda: change_for_ever(number + 1)

    change_for_ever()
    error = await error_of(store.import_(request_for("s3://models/bot")))
    assert isinstance(error, errors.SourceChangedError)


async def test_importers_of_the_same_objects_share_one_transfer(
    store: StoreClient, access: Access, files: FileServer
) -> None:
    served(files)
    access.write(access.s3("s3://models", files.endpoint))
    requests = [request_for("s3://models/bot", reference=f"bot-{number % 5}") for number in range(20)]
    versions = await asyncio.gather(*(store.import_(request) for request in requests))
    assert len({version.digest for version in versions}) == 1
    assert files.requests[f"GET /models/bot/{WEIGHTS}"] == 1


async def test_weights_in_several_files_are_found_by_their_index(
    store: StoreClient, access: Access, files: FileServer
) -> None:
    served(files)
    weights = files.files.pop(f"/models/bot/{WEIGHTS}")
    files.files["/models/bot/adapter_model-00001-of-00001.safetensors"] = weights
    index = {"weight_map": {"a": "adapter_model-00001-of-00001.safetensors", "b": "../../other/secret"}}
    files.files[f"/models/bot/{WEIGHTS}.index.json"] = json.dumps(index).encode()
    access.write(access.s3("s3://models", files.endpoint))
    version = await store.import_(request_for("s3://models/bot"))
    assert version.digest == (await store.push(adapter(), "pushed")).digest
    assert not any("other" in path for _, path, _ in files.seen)


async def test_more_bytes_than_are_taken_are_refused_before_they_are_read(
    store: StoreClient, access: Access, files: FileServer, web: FileServer
) -> None:
    files.files = {f"/models/bot/{WEIGHTS}": bytes((1 << 20) + 1), "/models/bot/adapter_config.json": b"{}"}
    archive = tar_of({"tokenizer.json": bytes(2 << 20), **adapter().files()})
    web.files = {"/bot.tar.gz": gzip.compress(archive), "/bot.tar": archive}
    access.write(access.s3("s3://models", files.endpoint), {"prefix": web.endpoint + "/", "tenants": ["*"]})
    error = await error_of(store.import_(request_for("s3://models/bot")))
    assert isinstance(error, errors.QuotaExceededError)
    assert not files.requests[f"GET /models/bot/{WEIGHTS}"]
    for path, data in web.files.items():
        error = await error_of(store.import_(request_for(web.endpoint + path, digest_of(data))))
        assert isinstance(error, errors.QuotaExceededError), path


@pytest.mark.parametrize(("suffix", "folder"), [(".tar", ""), (".tar.gz", "./"), (".tgz", "deep/er/bot/")])
async def test_an_archive_of_a_real_https_server_becomes_the_version_that_a_push_gives(
    store: StoreClient, access: Access, web: FileServer, suffix: str, folder: str
) -> None:
    archive = tar_of({**adapter().files(), "README.md": b"# hello"}, folder)
    data = archive if suffix == ".tar" else gzip.compress(archive)
    web.files = {f"/models/bot{suffix}": data}
    access.write({"prefix": f"{web.endpoint}/models", "tenants": ["*"], "web": {"bearer_token": SECRET}})
    web.truncate = [100, 200]
    url = f"{web.endpoint}/models/bot{suffix}"
    version = await store.import_(request_for(url, digest_of(data)))
    assert version.source == f"{url}#{digest_of(data)}"
    assert version.digest == (await store.push(adapter(), "pushed")).digest
    assert {headers["Authorization"] for _, _, headers in web.seen} == {f"Bearer {SECRET}"}


async def test_an_archive_that_is_not_what_its_digest_says_is_refused(
    store: StoreClient, access: Access, web: FileServer
) -> None:
    data = tar_of(adapter().files())
    web.files = {"/bot.tar": data}
    access.write({"prefix": web.endpoint + "/", "tenants": ["*"]})
    url = f"{web.endpoint}/bot.tar"
    wrong = await error_of(store.import_(request_for(url, digest_of(b"other"))))
    assert isinstance(wrong, errors.DigestMismatchError)
    assert isinstance(await error_of(store.import_(request_for(url))), errors.InvalidRequestError)


def hostile_archives() -> dict[str, bytes]:
    huge_header = tarfile.TarInfo("pax")
    huge_header.type, huge_header.size = tarfile.XHDTYPE, 1 << 33
    bomb = tarfile.TarInfo("bot/adapter_config.json")
    bomb.size = 1 << 40
    link = tarfile.TarInfo("bot/" + WEIGHTS)
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    config = adapter().files()["adapter_config.json"]
    only_config = tar_of({"adapter_config.json": config})
    return {
        "no archive": b"x" * 5000,
        "nothing": b"",
        "two adapters": tar_of({f"{one}/{name}": data for one in "ab" for name, data in adapter().files().items()}),
        "twice": tar_of({**adapter().files(), "./adapter_config.json": b"{}"}),
        "a member of a terabyte": bomb.tobuf() + bytes(2048),
        "a header of gigabytes": huge_header.tobuf() + bytes(2048),
        "cut off": tar_of(adapter().files())[:3000],
        "a link": only_config.rstrip(b"\0") + bytes(-len(only_config.rstrip(b"\0")) % 512) + link.tobuf() + bytes(1024),
        "nothing of ours": tar_of({"a.txt": b"a"}),
    }


async def test_an_archive_made_to_harm_is_refused_and_leaves_nothing(
    store: StoreClient, access: Access, web: FileServer, tmp_path: Path
) -> None:
    access.write({"prefix": web.endpoint + "/", "tenants": ["*"]})
    refusals = (
        errors.SourceNotFoundError, errors.QuotaExceededError, errors.InvalidAdapterError, errors.SourceForbiddenError,
    )  # fmt: skip
    for kind, data in hostile_archives().items():
        web.files = {"/bot.tar": data, "/bot.tgz": gzip.compress(data)}
        for path, served_data in web.files.items():
            error = await error_of(store.import_(request_for(web.endpoint + path, digest_of(served_data))))
            assert isinstance(error, refusals), (kind, error)
    assert list((tmp_path / "data" / "imports").iterdir()) == []


async def test_names_of_this_machine_are_not_connected_to_unless_their_network_is_allowed(
    tmp_path: Path, access: Access, files: FileServer
) -> None:
    served(files)
    port = files.endpoint.rpartition(":")[2]
    access.write(
        access.s3("s3://models", f"http://localhost:{port}"), {"prefix": f"https://localhost:{port}/", "tenants": ["*"]}
    )
    async with open_store(tmp_path / "data", source_access_file=access.path) as store:
        for url, digest in (("s3://models/bot", ""), (f"https://localhost:{port}/bot.tar", digest_of(b"x"))):
            error = await error_of(store.import_(request_for(url, digest)))
            assert isinstance(error, errors.SourceForbiddenError), url
            assert "private address" in str(error)
    assert not files.seen
    settings = {"source_access_file": access.path, "source_private_networks": ["127.0.0.0/8", "::1/128"]}
    async with open_store(tmp_path / "other", **settings) as store:
        await store.register()
        await store.import_(request_for("s3://models/bot"))


async def test_credentials_are_in_no_log_error_or_progress(
    tmp_path: Path, files: FileServer, forks: StoreForks
) -> None:
    served(files)
    access = Access(tmp_path / "access.json")
    row = access.s3("s3://models", files.endpoint)
    row["s3"]["secret_access_key"] = SECRET
    row["s3"]["session_token"] = f"{SECRET}-token"
    access.write(row)
    path = f"/models/bot/{WEIGHTS}"
    seen: list[str] = []
    settings: dict[str, Any] = {"source_access_file": access.path, "log_level": "debug", "source_attempts": 1}
    async with (
        forks.store(tmp_path, import_refusal_ttl_s=0, **settings) as store,
        store.client() as client,
    ):
        await client.register()
        for number, statuses in enumerate(([], [500], [403], [503], [412, 412], [301])):
            files.fail_with[path] = list(statuses)
            request = request_for("s3://models/bot", reference=f"bot-{number}")
            try:
                seen += [str(message) for message in await client.stream("ImportAdapter", request)]
            except errors.HotslotError as exc:
                seen.append(repr(exc))
        access.path.write_text(access.path.read_text().replace("session_token", "session_tokens"))
        seen.append(repr(await error_of(client.import_(request_for("s3://models/bot")))))
    assert any(f"{SECRET}-token" in path for _, path, _ in files.seen)
    signatures = {path.rpartition("X-Amz-Signature=")[2] for _, path, _ in files.seen}
    told = "".join([*seen, store.log_path.read_text(encoding="utf-8")])
    assert "source_access_unreadable" in told
    assert "import_failed" in told
    assert SECRET not in told
    assert not [signature for signature in signatures if signature in told]
