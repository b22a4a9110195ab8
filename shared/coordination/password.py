"""The password of Redis's user from a file that may change: each connection reads it anew."""

from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

from redis import exceptions
from redis.credentials import CredentialProvider

from hotslot.errors import FieldViolation, InvalidRequestError

MAX_PASSWORD_BYTES = 64 * 1024


class PasswordFile(CredentialProvider):
    """The user that a URL names, with the password that a file has; a line end at its end is not part of it."""

    def __init__(self, url: str, path: Path) -> None:
        """Raises InvalidRequestError for a URL that has a password too."""
        parts, parameters = urlsplit(url), parse_qs(urlsplit(url).query)
        if parts.netloc.rpartition("@")[0].partition(":")[2] or "password" in parameters:
            problem = "redis_url has a password, too: leave one of them out"
            raise InvalidRequestError([FieldViolation("redis_password_file", problem)])
        user = unquote(parts.netloc.rpartition("@")[0].partition(":")[0])
        self._user = user or parameters.get("username", [""])[0]
        self._path = path

    def get_credentials(self) -> tuple[str] | tuple[str, str]:
        """User, where there is one, and password. Raises InvalidRequestError for a file that cannot be read."""
        try:
            raw = self._path.read_bytes()[:MAX_PASSWORD_BYTES]
            password = raw.decode().removesuffix("\n").removesuffix("\r")
        except OSError as exc:
            raise _unreadable(self._path, exc.strerror or str(exc)) from exc
        except UnicodeDecodeError as exc:
            raise _unreadable(self._path, "expected UTF-8") from exc
        if not password:
            raise _unreadable(self._path, "it is empty")
        return (self._user, password) if self._user else (password,)

    async def get_credentials_async(self) -> tuple[str] | tuple[str, str]:
        """The same for a connection, which cannot be made without: AuthenticationError."""
        try:
            return self.get_credentials()
        except InvalidRequestError as exc:
            raise exceptions.AuthenticationError(exc.message) from exc


def _unreadable(path: Path, problem: str) -> InvalidRequestError:
    return InvalidRequestError([FieldViolation("redis_password_file", f"{path}: {problem}")])
