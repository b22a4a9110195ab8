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

from hotslot.clients.defaults import DEFAULT_STORE
from hotslot.contexts import SavedContext, context_for
from hotslot.errors import InvalidRequestError
from hotslot.rpc.security import ChannelSecurity

_YES, _NO = ("1", "true", "t", "yes", "y", "on"), ("", "0", "false", "f", "no", "n", "off")
_VARIABLES = {
    "ca_file": "HOTSLOT_TLS_CA_FILE",
    "cert_file": "HOTSLOT_TLS_CERT_FILE",
    "key_file": "HOTSLOT_TLS_KEY_FILE",
    "worker_name": "HOTSLOT_TLS_WORKER_NAME",
    "token_file": "HOTSLOT_TOKEN_FILE",
}
"""Variables that stand for fields of a context."""
TOKEN = "HOTSLOT_TOKEN"


def variables_of(context: SavedContext) -> dict[str, str]:
    """Variables that say what a context says."""
    names = {"store": "HOTSLOT_STORE", "worker": "HOTSLOT_WORKER", "tenant": "HOTSLOT_TENANT", **_VARIABLES}
    return {names[name]: value for name, value in context.known().items()}


def security_for(environment: Mapping[str, str], store: str, context_name: str = "") -> ChannelSecurity:
    """Security of calls to a store and its workers: of the variables, else of the context that names this store.

    The one in use, or of that name, is asked first. Raises InvalidRequestError, also for a file of contexts that cannot
    be read, unless variables say all.
    """
    if says_security(environment):
        return found_security(environment, SavedContext())
    return found_security(environment, context_for(environment, "store", store, context_name, DEFAULT_STORE))


def security_for_worker(environment: Mapping[str, str], worker: str) -> ChannelSecurity:
    """Security of calls to a worker alone: of the variables, else of the context that names this worker.

    One that names none is not meant: the default worker is not its deployment's. Raises what `security_for` raises.
    """
    context = SavedContext() if says_security(environment) else context_for(environment, "worker", worker)
    return found_security(environment, context).for_workers()


def says_security(environment: Mapping[str, str]) -> bool:
    """Tell whether variables name certificates or a token."""
    return any(environment.get(name, "").strip() for name in (TOKEN, *_VARIABLES.values()))


def found_security(environment: Mapping[str, str], context: SavedContext) -> ChannelSecurity:
    """Read the variables, and the context where they say nothing; raises InvalidRequestError.

    Variables for another deployment than the context's must not meet its token: where one of them names certificates or
    a token, the context's are left out.
    """
    token = environment.get(TOKEN, "").strip()
    if says_security(environment):
        named = {name: environment.get(variable, "") for name, variable in _VARIABLES.items()}
    else:
        named = {name: getattr(context, name) for name in _VARIABLES}
    return ChannelSecurity(
        _path(named["ca_file"]),
        _path(named["cert_file"]),
        _path(named["key_file"]),
        worker_name=named["worker_name"],
        token=token,
        token_file=None if token else _path(named["token_file"]),
        insecure=flag("HOTSLOT_INSECURE", environment.get("HOTSLOT_INSECURE", "")),
    )


def _path(text: str) -> Path | None:
    return Path(text).expanduser() if text else None


def flag(name: str, text: str) -> bool:
    """Truth of a variable, false where it is empty; raises InvalidRequestError."""
    if text.lower() not in (*_YES, *_NO):
        raise InvalidRequestError([], f"{name}: found {text[:40]!r}, expected true or false")
    return text.lower() in _YES
