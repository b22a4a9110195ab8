"""Metrics of the gateway: its HTTP requests and, as a sidecar, what its worker tells."""

import ssl
from collections.abc import Iterator, Mapping

import httpx2
import structlog
from starlette.types import Scope

from hotslot.rpc.security import NO_SECURITY, ChannelSecurity
from hotslot.rpc.tls_files import TlsFiles
from shared.metrics.endpoint import PATH
from shared.metrics.exposition import beside
from shared.metrics.numbers import OTHER, Measured, Spreads, Tally

log = structlog.get_logger(__name__)

WORKER_TIMEOUT_S = 2.0
METHODS = frozenset({"GET", "POST", "HEAD", "OPTIONS"})
NO_ROUTE = "none"
"""In the place of a path that is not served."""


class HttpNumbers:
    """Numbers of HTTP requests. Belongs to one event loop."""

    def __init__(self) -> None:
        self._requests = Tally("hotslot_http_requests_total")
        self._durations = Spreads("hotslot_http_request_seconds")
        self._routes: Mapping[object, str] = {}
        self.num_running = 0

    def know(self, routes: Mapping[object, str]) -> None:
        """Take the paths of the routes, by their endpoints."""
        self._routes = routes

    def route_of(self, scope: Scope) -> str | None:
        """Path of the route that a request took; None where nothing is served."""
        return self._routes.get(scope.get("endpoint"))

    def ended(self, scope: Scope, duration_s: float) -> None:
        """A request has ended."""
        route = self.route_of(scope) or NO_ROUTE
        method = scope["method"] if scope["method"] in METHODS else OTHER
        self._requests.add(route, method, str(scope["state"].get("status", 0)))
        self._durations.add(duration_s, route)

    def readings(self) -> Iterator[Measured]:
        """Values now."""
        yield Measured("hotslot_http_requests_running", self.num_running)
        yield from self._requests.readings()
        yield from self._durations.readings()


class SidecarMetrics:
    """Metrics of the worker beside the gateway, asked for at each scrape. Belongs to one event loop."""

    def __init__(self, worker: str, security: ChannelSecurity = NO_SECURITY) -> None:
        """`worker` is the address of its metrics; empty where there is none.

        Where calls to the worker use TLS, so do these: a worker has one certificate for all of its ports. Raises
        InvalidRequestError for files that cannot be used.
        """
        self._url = f"{'https' if security.uses_tls else 'http'}://{worker}{PATH}" if worker else ""
        self._scrapes = Tally("hotslot_worker_scrapes_total", [("ok",), ("failed",)])
        self._files = TlsFiles(security.tls_paths) if worker and security.uses_tls else None
        # The name in the worker's certificate, which is dialled by another one beside it.
        self._extensions = {"sni_hostname": security.worker_name} if security.worker_name else {}
        self._security = security
        self._client = self._opened()

    async def with_worker(self, own: bytes) -> bytes:
        """The gateway's text with the worker's behind it, or alone where the worker does not answer."""
        if not self._url:
            return own
        if self._files is not None and self._files.refresh():
            before, self._client = self._client, self._opened()
            await before.aclose()
        try:
            response = await self._client.get(self._url, extensions=self._extensions)
            response.raise_for_status()
        except httpx2.HTTPError as exc:
            log.warning("worker_not_scraped", address=self._url, why=str(exc) or type(exc).__name__)
            self._scrapes.add("failed")
            return own
        self._scrapes.add("ok")
        return beside(own, response.content)

    def readings(self) -> Iterator[Measured]:
        """Values now."""
        yield from self._scrapes.readings()

    async def close(self) -> None:
        """Close the connection."""
        await self._client.aclose()

    def _opened(self) -> httpx2.AsyncClient:
        context: ssl.SSLContext | bool = True
        if self._files is not None:
            context = ssl.create_default_context(cafile=self._security.ca_file)
            if (cert_file := self._security.cert_file) is not None:
                context.load_cert_chain(cert_file, self._security.key_file)
        # No proxy of the environment comes between the parts of one pod.
        return httpx2.AsyncClient(timeout=WORKER_TIMEOUT_S, trust_env=False, verify=context)
