"""Principals of a deployment on one machine, each with a token that servers take: user, workers and gateway."""

import io
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from hotslot.content_files import PRIVATE, write_file
from hotslot.formats.principals import (
    CLIENT_SCOPES,
    EVERY_TENANT,
    Principal,
    Principals,
    Scope,
    is_secret_of,
    new_token,
    split_token,
)
from hotslot.formats.principals_file import change_principals
from hotslot.local.identity_files import GATEWAY, USER, WORKER

SCOPES: Mapping[str, frozenset[Scope]] = {
    USER: CLIENT_SCOPES | {Scope.OPERATOR},
    WORKER: frozenset({Scope.WORKER}),
    GATEWAY: frozenset({Scope.GATEWAY}),
}


def have_tokens(principals_file: Path, token_file: Callable[[str], Path]) -> None:
    """Give each principal a token that servers take, where it has none; others of the file stay. Raises OSError."""
    now_s = int(time.time())
    made: dict[str, str] = {}

    def change(principals: Principals) -> Principals:
        changed = dict(principals)
        for name, scopes in SCOPES.items():
            found = changed.get(name, Principal(name, frozenset({EVERY_TENANT}), scopes))
            if not _is_valid(token_file(name), found, now_s):
                made[name], record = new_token(now_s)
                found = replace(found, tokens=(*found.tokens, record))
            changed[name] = found
        return changed

    change_principals(principals_file, change)
    for name, token in made.items():
        write_file(token_file(name), io.BytesIO(token.encode() + b"\n"), mode=PRIVATE)


def _is_valid(token_file: Path, principal: Principal, now_s: int) -> bool:
    try:
        parts = split_token(token_file.read_text(encoding="ascii").strip())
    except (OSError, ValueError):
        return False
    return parts is not None and any(
        record.id == parts[0]
        and not record.revoked_s
        and not (record.expires_s and record.expires_s <= now_s)
        and is_secret_of(record, parts[1])
        for record in principal.tokens
    )
