"""A call whose deadline passed before the server came to it is not begun."""

from typing import Any

import grpc
import pytest

from shared.server.call_log import CallRecord
from shared.server.interceptor import ErrorInterceptor


class LateContext:
    """A call's context as gRPC has it for a call that waited for the event loop."""

    def __init__(self, left_s: float | None) -> None:
        self._left_s = left_s
        self.ended_with: grpc.StatusCode | None = None

    def invocation_metadata(self) -> tuple[tuple[str, str], ...]:
        return ()

    def trailing_metadata(self) -> tuple[tuple[str, str], ...]:
        return ()

    def peer(self) -> str:
        return "ipv4:127.0.0.1:50000"

    def time_remaining(self) -> float | None:
        return self._left_s

    async def abort(self, code: grpc.StatusCode, *_: Any) -> None:
        self.ended_with = code
        raise grpc.aio.AbortError


@pytest.mark.parametrize(("left_s", "runs"), [(0.0, False), (-2.0, False), (5.0, True), (None, True)])
async def test_only_a_call_that_somebody_waits_for_is_begun(left_s: float | None, runs: bool) -> None:
    seen: list[str] = []
    records: list[CallRecord] = []

    async def behavior(request: str, _: Any) -> str:
        seen.append(request)
        return request

    context = LateContext(left_s)
    answering = ErrorInterceptor([records.append])._run("/hotslot.Test/Call", behavior, "hello", context)
    if runs:
        assert await answering == "hello"
    else:
        with pytest.raises(grpc.aio.AbortError):
            await answering
    assert seen == (["hello"] if runs else [])
    assert context.ended_with is (None if runs else grpc.StatusCode.DEADLINE_EXCEEDED)
    assert records[0].code is (grpc.StatusCode.OK if runs else grpc.StatusCode.DEADLINE_EXCEEDED)
