"""The secret that the store and the workers of a deployment share; the key for each purpose is derived from it.

The file has one secret a line, 32 characters or more. The first signs, all are accepted, so that a secret is changed
in three steps: the new one added as the second line everywhere, moved to the first, the old one removed. The file is
read again when it changes. A line `records:` with 64 hexadecimal digits is the key of records in Redis alone, for a
store that shall not be able to seal compiled code: `python -m shared.pool_secret FILE` prints it.
"""

import hashlib
import hmac
import re
import sys
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path

import structlog

from hotslot.errors import FieldViolation, InvalidRequestError
from shared.followed_file import FollowedFile

log = structlog.get_logger(__name__)

MIN_POOL_SECRET_LENGTH = 32
MAX_SECRETS = 4
_SALT = b"hotslot pool secret v1"
_RECORDS_ONLY = re.compile(r"records:([0-9a-f]{64})")


class Purpose(StrEnum):
    """Purposes of keys; a key of one is of no use for another."""

    RECORDS = "records in Redis"
    COMPILED_CODE = "compiled code"


class PoolSecret:
    """Keys from a file that may change at any time."""

    def __init__(self, path: Path) -> None:
        """Read it; raises InvalidRequestError, without any part of a secret, for a file that cannot be used."""
        self._lines = FollowedFile[tuple[str, ...]](path, _read, ())
        self._keys: dict[Purpose, tuple[bytes, ...]] = {}

    def keys(self, purpose: Purpose) -> tuple[bytes, ...]:
        """Keys of a purpose: the first signs, each of them is accepted. The same object until the file changes."""
        if self._lines.refresh():
            self._keys.clear()
            log.info("pool_secret_changed", num_secrets=len(self._lines.content))
        found = self._keys.get(purpose)
        if found is None:
            derived = (_derived(line, purpose) for line in self._lines.content)
            found = self._keys[purpose] = tuple(key for key in derived if key is not None)
        return found


def code_keys(path: Path) -> tuple[bytes, ...]:
    """Keys that seal compiled code, the first of which signs; raises InvalidRequestError, also where there is none."""
    if keys := PoolSecret(path).keys(Purpose.COMPILED_CODE):
        return keys
    raise _unusable(path, "it has the key of records alone: a worker that shares compiled code needs the secret")


def derived_key(secret: bytes, purpose: Purpose) -> bytes:
    """Key of a purpose: HKDF with SHA-256 (RFC 5869), one block."""
    pseudo_random = hmac.digest(_SALT, secret, hashlib.sha256)
    return hmac.digest(pseudo_random, purpose.encode() + b"\x01", hashlib.sha256)


def _derived(line: str, purpose: Purpose) -> bytes | None:
    only = _RECORDS_ONLY.fullmatch(line)
    if only is None:
        return derived_key(line.encode(), purpose)
    return bytes.fromhex(only[1]) if purpose is Purpose.RECORDS else None


def _read(path: Path) -> tuple[str, ...]:
    try:
        text = path.read_text("utf-8")
    except OSError as exc:
        raise _unusable(path, exc.strerror or str(exc)) from exc
    except UnicodeDecodeError as exc:
        raise _unusable(path, "expected text") from exc
    lines = tuple(line.strip() for line in text.splitlines() if line.strip())
    if not 1 <= len(lines) <= MAX_SECRETS:
        raise _unusable(path, f"found {len(lines)} secrets, expected 1 to {MAX_SECRETS}, each on a line of its own")
    if (shortest := min(map(len, lines))) < MIN_POOL_SECRET_LENGTH:
        raise _unusable(path, f"found a secret of {shortest} characters, expected {MIN_POOL_SECRET_LENGTH} or more")
    return lines


def _unusable(path: Path, problem: str) -> InvalidRequestError:
    return InvalidRequestError([FieldViolation("pool_secret_file", f"{path}: {problem}")])


def main(argv: Sequence[str]) -> int:
    """Print the lines that let a process check and sign records, and nothing else; returns the exit code."""
    if len(argv) != 1:
        print("usage: python -m shared.pool_secret FILE", file=sys.stderr)  # noqa: T201
        return 2
    try:
        keys = PoolSecret(Path(argv[0])).keys(Purpose.RECORDS)
    except InvalidRequestError as exc:
        print(f"python -m shared.pool_secret: {exc.message}", file=sys.stderr)  # noqa: T201
        return 2
    print("\n".join(f"records:{key.hex()}" for key in keys))  # noqa: T201
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
