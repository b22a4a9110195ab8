"""A stand-in for the Kubernetes API over real HTTP: lists, watches and patches resources of one kind, by its rules.

Versions grow with every write. A watch goes on from a version that is remembered, and answers 410 for one that is not,
in the stream or as the status; bookmarks tell versions in between. The status is written by its own path alone, another
spec is another generation, finalizers keep what was deleted, and what does not fit the definition is refused.
"""

import asyncio
import copy
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import jsonschema
import uvicorn
import yaml
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

DEFINITION = Path(__file__).resolve().parents[2] / "deploy/kubernetes/components/adapters/definition.yaml"
BASE = "/apis/hotslot.dev/v1alpha1/namespaces/ml/adapters"
TOKEN = "token-of-the-account"
BOOKMARK_EVERY_S = 0.05
Resource = dict[str, Any]


class ApiServer:
    """The resources and everything that happened to them. Belongs to one event loop."""

    def __init__(self, token_file: Path) -> None:
        self.token_file = token_file
        token_file.write_text(TOKEN + "\n")
        (version,) = yaml.safe_load(DEFINITION.read_text(encoding="utf-8"))["spec"]["versions"]
        self._schema = version["schema"]["openAPIV3Schema"]
        self.resources: dict[str, Resource] = {}
        self._events: list[tuple[int, str, Resource]] = []
        self._version = 10
        self._forgotten = 0
        self._news = asyncio.Event()
        self.requests: list[str] = []
        """What was asked: list, watch, status NAME, finalizers NAME."""
        self.gone_in_stream = True
        self.failing = 0
        """Requests that are still to be answered with 503."""
        self.bookmarks = 0
        """Bookmarks that watches were told."""
        self.port = 0
        self._epoch = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    # What users do.

    def create(self, name: str, spec: dict[str, Any]) -> Resource:
        metadata = {"name": name, "namespace": "ml", "uid": f"uid-{self._version}", "generation": 1}
        resource = {"apiVersion": "hotslot.dev/v1alpha1", "kind": "Adapter", "metadata": metadata, "spec": spec}
        self._write("ADDED", resource)
        return resource

    def respec(self, name: str, **changes: Any) -> None:
        resource = copy.deepcopy(self.resources[name])
        resource["spec"] |= changes
        resource["metadata"]["generation"] += 1
        self._write("MODIFIED", resource)

    def delete(self, name: str) -> None:
        resource = copy.deepcopy(self.resources[name])
        if resource["metadata"].get("finalizers"):
            resource["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
            resource["metadata"]["generation"] += 1
            self._write("MODIFIED", resource)
        else:
            self._write("DELETED", resource)

    def status(self, name: str) -> dict[str, Any]:
        return self.resources.get(name, {}).get("status", {})  # type: ignore[no-any-return]

    def condition(self, name: str, kind: str) -> dict[str, Any]:
        return next((each for each in self.status(name).get("conditions", ()) if each["type"] == kind), {})

    # What happens to API servers.

    def write_elsewhere(self) -> None:
        """Other kinds of resources are written: the version grows, and only bookmarks tell."""
        self._version += 5

    def compact(self) -> None:
        """Forget what happened so far."""
        self._forgotten = self._version
        self._events.clear()

    def cut(self) -> None:
        """End all watches."""
        self._epoch += 1
        self._tell()

    def _tell(self) -> None:
        self._news.set()
        self._news = asyncio.Event()

    def _write(self, kind: str, resource: Resource) -> Resource:
        self._version += 1
        resource["metadata"]["resourceVersion"] = str(self._version)
        jsonschema.Draft202012Validator(self._schema).validate(resource)
        _refuse_strays(resource, self._schema, "")
        if kind == "DELETED":
            del self.resources[resource["metadata"]["name"]]
        else:
            self.resources[resource["metadata"]["name"]] = resource
        self._events.append((self._version, kind, copy.deepcopy(resource)))
        self._tell()
        return resource

    # What its clients ask.

    async def collection(self, request: Request) -> Response:
        if (refused := self._refused(request)) is not None:
            return refused
        if request.query_params.get("watch") == "true":
            return self._watch(request)
        self.requests.append("list")
        limit, start = int(request.query_params.get("limit", "500")), int(request.query_params.get("continue") or 0)
        names = sorted(self.resources)
        page = names[start : start + limit]
        metadata = {"resourceVersion": str(self._version)}
        if start + limit < len(names):
            metadata["continue"] = str(start + limit)
        return JSONResponse({"items": [self.resources[name] for name in page], "metadata": metadata})

    def _watch(self, request: Request) -> Response:
        self.requests.append("watch")
        position, ends_s = int(request.query_params["resourceVersion"]), float(request.query_params["timeoutSeconds"])
        if position < self._forgotten and not self.gone_in_stream:
            return _status(410, "too old resource version")
        return StreamingResponse(self._events_since(position, ends_s), media_type="application/json")

    async def _events_since(self, position: int, ends_s: float) -> AsyncIterator[str]:
        epoch, deadline_s = self._epoch, asyncio.get_running_loop().time() + ends_s
        while epoch == self._epoch and asyncio.get_running_loop().time() < deadline_s:
            if position < self._forgotten:
                yield _line("ERROR", {"kind": "Status", "code": 410, "message": "too old resource version"})
                return
            news = self._news
            for version, kind, resource in [event for event in self._events if event[0] > position]:
                position = version
                yield _line(kind, resource)
            try:
                async with asyncio.timeout(BOOKMARK_EVERY_S):
                    await news.wait()
            except TimeoutError:
                if position < self._forgotten or any(version > position for version, *_ in self._events):
                    continue  # it was written just as the time ran out
                position = max(position, self._version)
                self.bookmarks += 1
                yield _line("BOOKMARK", {"kind": "Adapter", "metadata": {"resourceVersion": str(position)}})

    async def one(self, request: Request) -> Response:
        if (refused := self._refused(request)) is not None:
            return refused
        name = request.path_params["name"]
        is_status = request.url.path.endswith("/status")
        self.requests.append(f"{'status' if is_status else 'finalizers'} {name}")
        known = self.resources.get(name)
        if known is None:
            return _status(404, f"{name} is not there")
        assert request.headers["content-type"] == "application/merge-patch+json"
        patch = json.loads(await request.body())
        version = patch.get("metadata", {}).pop("resourceVersion", None)
        if version is not None and version != known["metadata"]["resourceVersion"]:
            return _status(409, "the object has been modified")
        resource = copy.deepcopy(known)
        if is_status:
            resource["status"] = _merged(resource.get("status", {}), patch["status"])
        else:
            resource["metadata"] = _merged(resource["metadata"], patch["metadata"])
        if resource == known:
            return JSONResponse(known)
        gone = "deletionTimestamp" in resource["metadata"] and not resource["metadata"].get("finalizers")
        return JSONResponse(self._write("DELETED" if gone else "MODIFIED", resource))

    def _refused(self, request: Request) -> Response | None:
        if request.headers.get("authorization") != f"Bearer {TOKEN}":
            return _status(401, "Unauthorized")
        if self.failing:
            self.failing -= 1
            return _status(503, "etcd is away")
        return None


def _line(kind: str, resource: Resource) -> str:
    return json.dumps({"type": kind, "object": resource}) + "\n"


def _status(code: int, message: str) -> Response:
    return JSONResponse({"kind": "Status", "code": code, "message": message}, status_code=code)


def _merged(before: Any, patch: Any) -> Any:
    """RFC 7386."""
    if not isinstance(patch, dict):
        return patch
    after = dict(before) if isinstance(before, dict) else {}
    for name, value in patch.items():
        if value is None:
            after.pop(name, None)
        else:
            after[name] = _merged(after.get(name), value)
    return after


def _refuse_strays(value: Any, schema: dict[str, Any], where: str) -> None:
    """Fields that the definition does not have: the API would drop them without a word."""
    if isinstance(value, list):
        for each in value:
            _refuse_strays(each, schema.get("items", {}), where)
    elif isinstance(value, dict) and "properties" in schema:
        assert value.keys() <= schema["properties"].keys(), f"{where}: {value.keys() - schema['properties'].keys()}"
        for name, each in value.items():
            _refuse_strays(each, schema["properties"][name], f"{where}.{name}")


@asynccontextmanager
async def api_server(folder: Path) -> AsyncIterator[ApiServer]:
    """An API server on a free port."""
    server = ApiServer(folder / "token")
    routes = [
        Route(BASE, server.collection),
        Route(BASE + "/{name}/status", server.one, methods=["PATCH"]),
        Route(BASE + "/{name}", server.one, methods=["PATCH"]),
    ]
    config = uvicorn.Config(Starlette(routes=routes), port=0, log_config=None, timeout_graceful_shutdown=1)
    http = uvicorn.Server(config)
    http.capture_signals = _capture_nothing  # type: ignore[method-assign]
    serving = asyncio.create_task(http.serve())
    async with asyncio.timeout(120):
        while not http.started:  # noqa: ASYNC110 (uvicorn announces it by this alone)
            await asyncio.sleep(0.005)
    server.port = http.servers[0].sockets[0].getsockname()[1]
    try:
        yield server
    finally:
        server.cut()
        http.should_exit = True
        await serving


def _capture_nothing() -> Any:
    from contextlib import nullcontext

    return nullcontext()
