"""Secrets that are invented for an id that is known: told without the work of a hash, and nobody waits behind them."""

import asyncio
import secrets
from pathlib import Path

import pytest

from hotslot.errors import QuotaExceededError, UnauthenticatedError
from hotslot.formats.principals import TokenRecord, is_secret_of
from hotslot.rpc.status import from_rpc_error
from shared.identity import authenticator
from tests.hostile.test_call_floods import paced
from tests.hostile.test_connections import dialled, status
from tests.support.principals import bearer

pytestmark = pytest.mark.integration


@pytest.mark.parametrize("is_checked", [True, False], ids=["a checked id", "one from before checks"])
async def test_guesses_of_a_known_id_s_secret_are_hardly_hashed_and_keep_no_new_token_waiting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_checked: bool
) -> None:
    hashed: list[str] = []

    def hashing(record: TokenRecord, secret: str) -> bool:
        hashed.append(record.id)
        return is_secret_of(record, secret)

    monkeypatch.setattr(authenticator, "is_secret_of", hashing)
    if not is_checked:
        monkeypatch.setattr(authenticator, "may_be_secret_of", lambda record, secret: True)
    async with paced(tmp_path, per_s=1_000.0) as running, dialled(running.server) as stub:
        own = running.roster.record("loud").id
        guesses = [[bearer(f"hs1_{own}_{secrets.token_urlsafe(40)}")] for _ in range(60)]
        calls = [asyncio.create_task(status(stub, metadata=each)) for each in guesses]
        await asyncio.sleep(0.05)
        await status(stub, metadata=running.token("quiet"))
        ended = [from_rpc_error(e) for e in await asyncio.gather(*calls, return_exceptions=True)]  # type: ignore[arg-type]
        assert {type(error) for error in ended} <= {UnauthenticatedError, QuotaExceededError}
        if is_checked:
            assert hashed == [running.roster.record("quiet").id]
            assert {type(error) for error in ended} == {UnauthenticatedError}
        else:
            before = hashed[: hashed.index(running.roster.record("quiet").id)]
            assert len(before) <= 20, "those that had come before, and two that wait"
