"""Refusals of Redis: the right that its user lacks, in words."""

import re
from collections.abc import Iterator, Sequence

from redis import exceptions

from shared.coordination.keys import KEY_PATTERN

_COMMAND = re.compile(r"no permissions to run the '([^']+)' command", re.IGNORECASE)
_KEY = re.compile(r"no permissions to access (?:a|one of the) keys?", re.IGNORECASE)
_CHANNEL = re.compile(r"no permissions to access (?:a|one of the) channels?", re.IGNORECASE)
_IN_SCRIPT = "ACL failure in script"
_LOGIN = (exceptions.AuthenticationError, exceptions.AuthorizationError)


def refusal(failure: BaseException, keys: Sequence[str], script: str = "") -> str | None:
    """Right that Redis refuses its user, in words that follow "refuses "; None when the failure is something else.

    `keys` are those that the call named, `script` is what it ran.
    """
    for cause in _causes(failure):
        text = str(cause)
        if isinstance(cause, _LOGIN):
            return f"the login: {text}"
        if not isinstance(cause, exceptions.NoPermissionError) and _IN_SCRIPT not in text:
            continue
        where = f", which its script {script} calls" if _IN_SCRIPT in text and script else ""
        if (command := _COMMAND.search(text)) is not None:
            return f"the command {command[1]}{where}"
        if _KEY.search(text):
            return f"access to a key like {', '.join(keys[:3]) or KEY_PATTERN}{where}"
        return f"access to a channel{where}" if _CHANNEL.search(text) else text
    return None


def _causes(failure: BaseException) -> Iterator[BaseException]:
    """A failure and what lies behind it: the client of a cluster wraps what a node said."""
    cause: BaseException | None = failure
    while cause is not None:
        yield cause
        cause = cause.__cause__ or cause.__context__
