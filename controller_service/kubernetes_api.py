"""The Kubernetes API as far as the controller needs it: one kind of resources in one namespace."""

import json
import ssl
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import httpx2

from hotslot.errors import FieldViolation, InvalidRequestError, UnavailableError
from hotslot.rpc.tls_files import FileStamps

PAGE_SIZE = 500
TIMEOUT_S = 30.0
WATCH_S = 240.0
"""Time after which the API is asked to end a watch, so that a connection that died unnoticed is found."""
GONE = 410
MERGE_PATCH = "application/merge-patch+json"


class VersionGoneError(Exception):
    """The API does not know the changes since a resource version any more: list anew."""


class ResourceGoneError(Exception):
    """The resource is not there any more, or was changed since it was read; a further event says how."""


class KubernetesApi:
    """One kind of resources in one namespace. Belongs to one event loop; close it.

    Every method raises UnavailableError when the API cannot be reached or does not answer as it should.
    """

    def __init__(self, url: str, resources: str, token_file: Path, ca_file: Path | None = None) -> None:
        """`resources` is the path below the API's address. Raises InvalidRequestError for files that cannot be used."""
        self._path = resources
        self._token_file = token_file
        self._ca_file = ca_file
        self._url = url.rstrip("/")
        self._stamps = FileStamps((ca_file,))
        self._client = self._opened()
        self._token()

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    async def list_all(self) -> tuple[list[dict[str, Any]], str]:
        """All resources, and the version from which a watch goes on."""
        found: list[dict[str, Any]] = []
        next_page = ""
        while True:
            answer = await self._json("GET", "", params={"limit": PAGE_SIZE, "continue": next_page})
            found += answer["items"]
            next_page = answer["metadata"].get("continue", "")
            if not next_page:
                return found, answer["metadata"]["resourceVersion"]

    async def watch(self, version: str) -> AsyncGenerator[tuple[str, dict[str, Any]], None]:
        """Changes since a version, as type and resource, bookmarks included; ends when the API ends the watch.

        Raises VersionGoneError.
        """
        params = {
            "watch": "true",
            "resourceVersion": version,
            "allowWatchBookmarks": "true",
            "timeoutSeconds": str(int(WATCH_S)),
        }
        timeout = httpx2.Timeout(TIMEOUT_S, read=WATCH_S + TIMEOUT_S)
        try:
            async with (await self._fresh()).stream(
                "GET", self._path, params=params, headers=self._headers(), timeout=timeout
            ) as response:
                if not response.is_success:
                    await response.aread()
                    raise _failure(response)
                async for line in response.aiter_lines():
                    if not line:
                        continue
                    event = json.loads(line)
                    if event["type"] == "ERROR":
                        raise _told(event["object"])
                    yield event["type"], event["object"]
        except (httpx2.HTTPError, json.JSONDecodeError, KeyError) as exc:
            raise UnavailableError(f"the watch of {self._path} broke: {str(exc) or type(exc).__name__}") from exc

    async def patch_status(self, name: str, status: dict[str, Any]) -> dict[str, Any]:
        """Write a resource's status; raises ResourceGoneError."""
        return await self._patch(f"/{name}/status", {"status": status})

    async def patch_finalizers(self, name: str, finalizers: list[str], version: str) -> dict[str, Any]:
        """Write a resource's finalizers if it is at this version still; raises ResourceGoneError."""
        return await self._patch(f"/{name}", {"metadata": {"finalizers": finalizers, "resourceVersion": version}})

    async def _patch(self, below: str, patch: dict[str, Any]) -> dict[str, Any]:
        content = json.dumps(patch).encode()
        return await self._json("PATCH", below, content=content, headers={"Content-Type": MERGE_PATCH})

    async def _json(self, method: str, below: str, **options: Any) -> dict[str, Any]:
        headers = self._headers() | options.pop("headers", {})
        try:
            client = await self._fresh()
            response = await client.request(method, f"{self._path}{below}", headers=headers, **options)
            if not response.is_success:
                raise _failure(response)
            answer: dict[str, Any] = response.json()
        except (httpx2.HTTPError, json.JSONDecodeError) as exc:
            message = f"Kubernetes did not answer {method} {self._path}{below}: {str(exc) or type(exc).__name__}"
            raise UnavailableError(message) from exc
        return answer

    def _token(self) -> str:
        try:
            return self._token_file.read_text(encoding="utf-8").strip()
        except OSError as exc:
            problem = f"{self._token_file}: {exc.strerror or exc}; is this a pod whose account has a token?"
            raise InvalidRequestError([FieldViolation("HOTSLOT_KUBERNETES_TOKEN_FILE", problem)]) from exc

    def _headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self._token()}", "Accept": "application/json"}

    async def _fresh(self) -> httpx2.AsyncClient:
        """The client, by the authority as its file has it now."""
        if self._stamps.changed():
            self._stamps = FileStamps((self._ca_file,))
            before, self._client = self._client, self._opened()
            await before.aclose()
        return self._client

    def _opened(self) -> httpx2.AsyncClient:
        verify: ssl.SSLContext | bool = True
        if self._ca_file is not None and self._url.startswith("https://"):
            try:
                verify = ssl.create_default_context(cafile=str(self._ca_file))
            except (OSError, ssl.SSLError) as exc:
                problem = f"{self._ca_file}: {exc}"
                raise InvalidRequestError([FieldViolation("HOTSLOT_KUBERNETES_CA_FILE", problem)]) from exc
        # The cluster's own address is reached by no proxy.
        return httpx2.AsyncClient(base_url=self._url, verify=verify, timeout=TIMEOUT_S, trust_env=False)


def _failure(response: httpx2.Response) -> Exception:
    try:
        status = response.json()
    except json.JSONDecodeError:
        status = {}
    return _told({"code": response.status_code, "message": response.text[:500]} | status)


def _told(status: dict[str, Any]) -> Exception:
    """The exception for a Status of the API."""
    code, message = status.get("code", 0), status.get("message", "")
    if code == GONE:
        return VersionGoneError(message)
    if code in (404, 409):
        return ResourceGoneError(message)
    return UnavailableError(f"Kubernetes answered {code}: {message}")
