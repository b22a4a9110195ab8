"""Security of a client that says nothing of it: from HOTSLOT_ variables, else from the context in use.

| variable | field of a context | meaning |
|---|---|---|
| HOTSLOT_TLS_CA_FILE | ca_file | certificates that those of servers must lead to |
| HOTSLOT_TLS_CERT_FILE, HOTSLOT_TLS_KEY_FILE | cert_file, key_file | own certificate and key |
| HOTSLOT_TLS_WORKER_NAME | worker_name | name in workers' certificates |
| HOTSLOT_TOKEN | | the token itself |
| HOTSLOT_TOKEN_FILE | token_file | file with the token |
| HOTSLOT_INSECURE | | true: the token may go to other machines in plaintext |
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hotslot.clients.defaults import DEFAULT_STORE
from hotslot.contexts import contexts_path, read_contexts
from hotslot.errors import InvalidRequestError
from hotslot.rpc.security import ChannelSecurity

_YES, _NO = ("1", "true", "t", "yes", "y", "on"), ("", "0", "false", "f", "no", "n", "off")
CA_FILE, CERT_FILE, KEY_FILE, WORKER_NAME, TOKEN_FILE = (
    "ca_file",
    "cert_file",
    "key_file",
    "worker_name",
    "token_file",
)
"""Fields of a context."""


def security_for(environment: Mapping[str, str], store: str) -> ChannelSecurity:
    """Security of calls to a store and its workers: of the variables, else of the context that names this store.

    The one in use is asked first. Raises InvalidRequestError, also for a file of contexts that cannot be read.
    """
    contexts = read_contexts(contexts_path(environment))
    named = [contexts.named[contexts.current]] if contexts.current in contexts.named else []
    fitting = [context for context in (*named, *contexts.named.values()) if (context.store or DEFAULT_STORE) == store]
    return found_security(environment, fitting[0].more if fitting else {})


def found_security(environment: Mapping[str, str], context: Mapping[str, Any]) -> ChannelSecurity:
    """Read the variables, and the context where they say nothing; raises InvalidRequestError.

    Variables for another deployment than the context's must not meet its token: where one of them names certificates or
    a token, the context's are left out.
    """
    named = {
        CA_FILE: environment.get("HOTSLOT_TLS_CA_FILE", ""),
        CERT_FILE: environment.get("HOTSLOT_TLS_CERT_FILE", ""),
        KEY_FILE: environment.get("HOTSLOT_TLS_KEY_FILE", ""),
        WORKER_NAME: environment.get("HOTSLOT_TLS_WORKER_NAME", ""),
        TOKEN_FILE: environment.get("HOTSLOT_TOKEN_FILE", ""),
    }
    token = environment.get("HOTSLOT_TOKEN", "").strip()
    if not (token or any(named.values())):
        named = {name: str(context.get(name) or "") for name in named}
    return ChannelSecurity(
        _path(named[CA_FILE]),
        _path(named[CERT_FILE]),
        _path(named[KEY_FILE]),
        worker_name=named[WORKER_NAME],
        token=token,
        token_file=None if token else _path(named[TOKEN_FILE]),
        insecure=flag("HOTSLOT_INSECURE", environment.get("HOTSLOT_INSECURE", "")),
    )


def _path(text: str) -> Path | None:
    return Path(text).expanduser() if text else None


def flag(name: str, text: str) -> bool:
    """Truth of a variable, false where it is empty; raises InvalidRequestError."""
    if text.lower() not in (*_YES, *_NO):
        raise InvalidRequestError([], f"{name}: found {text[:40]!r}, expected true or false")
    return text.lower() in _YES
