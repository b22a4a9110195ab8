"""Principals of tests, with tokens in hand, in a file that servers read."""

import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from hotslot.formats.principals import Principal, Scope, TokenRecord, encode_principals, new_token


class Roster:
    """A file of principals that a test changes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.principals: dict[str, Principal] = {}
        self.tokens: dict[str, str] = {}

    def add(
        self,
        name: str,
        scopes: Iterable[Scope],
        tenants: Iterable[str] = ("acme",),
        certificates: Iterable[str] = (),
        **token: int,
    ) -> str:
        """Write a principal with a token, which is returned."""
        self.tokens[name], record = new_token(int(time.time()), token.get("expires_s", 0))
        record = replace(record, revoked_s=token.get("revoked_s", 0))
        self.principals[name] = Principal(
            name, frozenset(tenants), frozenset(scopes), frozenset(certificates), (record,)
        )
        self.write()
        return self.tokens[name]

    def record(self, name: str) -> TokenRecord:
        return self.principals[name].tokens[0]

    def change(self, name: str, **token: int) -> None:
        """Write a principal's token with other times."""
        changed = replace(self.record(name), **token)  # type: ignore[arg-type]
        self.principals[name] = replace(self.principals[name], tokens=(changed,))
        self.write()

    def write(self) -> None:
        new = self.path.with_suffix(".new")
        new.write_bytes(encode_principals(self.principals))
        new.replace(self.path)


def bearer(token: str) -> tuple[str, str]:
    return ("authorization", f"Bearer {token}")
