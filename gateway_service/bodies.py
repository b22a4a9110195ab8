"""Reads the body of a request: bounded in size and time, one strict JSON object."""

import asyncio
from typing import Any

from starlette.requests import ClientDisconnect, Request

from gateway_service.errors import ApiError
from hotslot.formats.strict_json import StrictJsonError, parse_object

PASSED_OVER_BYTES = 16 * 2**20
"""Most bytes of a body that is too large that are received and forgotten, before its connection is closed."""
IN_PLACE_BYTES = 64 * 1024
"""Larger bodies are parsed in a thread, so that the event loop goes on."""


async def read_object(request: Request, max_bytes: int, timeout_s: float) -> dict[str, Any]:
    """The JSON object that a request carries; raises ApiError."""
    _check_type(request)
    body = await _read(request, max_bytes, timeout_s)
    try:
        if len(body) <= IN_PLACE_BYTES:
            return parse_object(body)
        return await asyncio.to_thread(parse_object, body)
    except StrictJsonError as exc:
        raise ApiError(400, "MALFORMED_JSON", f"the body is not a JSON object: {exc}") from exc


def _check_type(request: Request) -> None:
    media_type = request.headers.get("content-type", "application/json").partition(";")[0].strip().lower()
    if media_type != "application/json" and not media_type.endswith("+json"):
        message = f"found content-type {media_type[:80]!r}, expected application/json"
        raise ApiError(415, "UNSUPPORTED_MEDIA_TYPE", message)


async def _read(request: Request, max_bytes: int, timeout_s: float) -> bytes:
    told = request.headers.get("content-length", "0")
    if told.isdecimal() and int(told[:20]) > max_bytes + PASSED_OVER_BYTES:
        raise _too_large(max_bytes)
    body, size_bytes = bytearray(), 0
    try:
        async with asyncio.timeout(timeout_s):
            async for part in request.stream():
                size_bytes += len(part)
                if size_bytes > max_bytes + PASSED_OVER_BYTES:
                    raise _too_large(max_bytes)
                # Clients that still send do not hear an answer.
                if size_bytes <= max_bytes:
                    body += part
    except TimeoutError as exc:
        raise ApiError(408, "BODY_TIMEOUT", f"the body did not arrive within {timeout_s:g} s") from exc
    except ClientDisconnect as exc:
        raise ApiError(499, "CANCELLED", "the client went away") from exc
    if size_bytes > max_bytes:
        raise _too_large(max_bytes)
    return bytes(body)


def _too_large(max_bytes: int) -> ApiError:
    return ApiError(413, "BODY_TOO_LARGE", f"the body is larger than the {max_bytes:,} bytes that are taken; send less")
