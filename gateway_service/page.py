"""The built-in page: its files, and the headers under which a browser runs nothing but them."""

from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from types import MappingProxyType

from starlette.responses import Response

from gateway_service.errors import ApiError

MEDIA_TYPES: Mapping[str, str] = MappingProxyType(
    {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
)
HTML = "page.html"
ASSETS = frozenset({"page.css", "page.js", "calls.js", "fleet.js", "nodes.js", "trial.js", "icon.svg"})
POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        # A text that became HTML or code would be an error rather than an injection.
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)
HEADERS: Mapping[str, str] = MappingProxyType(
    {
        "content-security-policy": POLICY,
        "x-content-type-options": "nosniff",
        "x-frame-options": "DENY",
        "referrer-policy": "no-referrer",
        "cross-origin-opener-policy": "same-origin",
        "cross-origin-resource-policy": "same-origin",
        "permissions-policy": "camera=(), geolocation=(), microphone=()",
        "cache-control": "no-cache",
    }
)


@cache
def _content(name: str) -> bytes:
    return files("gateway_service").joinpath("page_files", name).read_bytes()


def page_response(name: str) -> Response:
    """A file of the page; raises ApiError for a name that is none of them."""
    if name not in ASSETS | {HTML}:
        raise ApiError(404, "UNKNOWN_PATH", "nothing is served at this path", kind="not_found_error")
    media_type = MEDIA_TYPES[name[name.rindex(".") :]]
    return Response(_content(name), media_type=media_type, headers=dict(HEADERS))
