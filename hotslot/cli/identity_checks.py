"""Checks of `hotslot doctor` on identity: certificates, the token, plaintext, and who may read keys and tokens."""

import base64
import json
import stat
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from hotslot.cli.deployment_checks import CheckedDeployment
from hotslot.endpoints import dialled_endpoint, stays_here
from hotslot.errors import ForbiddenError, HotslotError, InvalidRequestError, UnauthenticatedError
from hotslot.formats.principals import read_principals, split_token
from hotslot.local.certificate_probe import Shown, authority_ends_s, look_at_certificate, speaks_tls
from hotslot.local.findings import Finding, fail, ok, warn
from hotslot.local.health_probe import ProbeOutcome
from hotslot.local.identity_files import SECRETS, IdentityFiles
from hotslot.rpc.security import MAX_TOKEN_BYTES, BearerToken, ChannelSecurity
from hotslot.rpc.tls_files import TlsFiles

DAY_S = 86_400.0
TOKEN_ENDS_SOON_S = 7 * DAY_S
CERTIFICATE_ENDS_SOON_S = 14 * DAY_S
OTHERS = stat.S_IRWXG | stat.S_IRWXO
_NAME_THEM = "name it with HOTSLOT_TLS_CA_FILE, or `hotslot context set NAME --ca-file`"
_NAME_TOKEN = "name one with HOTSLOT_TOKEN_FILE, or `hotslot context set NAME --token-file`"


def check_credentials(security: ChannelSecurity) -> Iterator[Finding]:
    """Files of certificates, keys and the token: that calls can use them, and that their owner alone reads secrets."""
    try:
        TlsFiles(security.tls_paths)
        BearerToken(security)
    except InvalidRequestError as exc:
        yield fail("credentials", exc.message, "name other files; no deployment is called with these")
        return
    yield from check_secret_files([path for path in (security.key_file, security.token_file) if path is not None])
    if security.ca_file is not None:
        yield from _ending("authority", f"{security.ca_file}", authority_ends_s(security.ca_file))


def check_secret_files(paths: list[Path]) -> Iterator[Finding]:
    """Rights of files that are their owner's alone."""
    for path in paths:
        if path.stat().st_mode & OTHERS:
            yield warn("credentials", f"{path} may be read by others", f"chmod 600 {path}")


def check_identity_folder(files: IdentityFiles) -> Iterator[Finding]:
    """Secrets that `hotslot up` keeps on this machine."""
    if not files.folder.is_dir():
        return
    secret = [path for path in sorted(files.folder.rglob("*")) if path.suffix in SECRETS]
    if files.folder.stat().st_mode & OTHERS:
        yield warn("identity", f"{files.folder} is open to others", f"chmod 700 {files.folder}")
    wrong = [path for path in secret if path.stat().st_mode & OTHERS]
    if wrong:
        found = f"{wrong[0]}{f' and {len(wrong) - 1} more' if len(wrong) > 1 else ''} may be read by others"
        yield warn("identity", found, f"chmod -R go= {files.folder}, and `hotslot renew --authority` if they were read")
    elif files.trusted_file.exists():
        yield from _ending("identity", f"the authority in {files.folder}", authority_ends_s(files.trusted_file))


def check_transport(subject: CheckedDeployment) -> Iterator[Finding]:
    """TLS of the endpoints that commands call: their certificates, or the plaintext and where it goes."""
    security = subject.options.security
    for kind, endpoint, of in (
        ("store", subject.store, security),
        ("worker", subject.worker, security.for_workers()),
    ):
        probed = subject.store_probed if kind == "store" else subject.worker_probed
        if probed.answer is ProbeOutcome.SILENT:
            continue
        yield _tls(kind, endpoint, of) if of.uses_tls else _plaintext(kind, endpoint)


def check_token(subject: CheckedDeployment, known: IdentityFiles) -> Iterator[Finding]:
    """The token: that the store takes it, and when it ends. `known` may have its record on this machine."""
    if subject.store_probed.answer not in (ProbeOutcome.SERVING, ProbeOutcome.NOT_SERVING):
        return
    security = subject.options.security
    try:
        next(iter(subject.client.store.list_base_models()), None)
    except ForbiddenError:
        pass  # It is known who calls.
    except UnauthenticatedError as exc:
        how = "ask for a new one, or `hotslot token create` one" if security.has_token else _NAME_TOKEN
        yield fail("token", exc.message, how)
        return
    except HotslotError:
        return  # What is wrong with the store is told by its own check.
    if not security.has_token:
        if security.cert_file is None:
            yield ok("token", "none is named, and none is asked for")
        return
    ends_s = _token_ends_s(security, known)
    if ends_s:
        yield from _ending("token", "the token", ends_s, TOKEN_ENDS_SOON_S, "ask for a new one before")
    else:
        yield ok("token", "the store takes it")


def _tls(kind: str, endpoint: str, security: ChannelSecurity) -> Finding:
    own = security.cert_file, security.key_file
    pair = (own[0], own[1]) if own[0] is not None and own[1] is not None else None
    shown = look_at_certificate(endpoint, security.ca_file, pair, security.server_name)
    match shown.kind:
        case Shown.TRUSTED:
            return next(_ending("transport", f"the certificate of the {kind} at {endpoint}", shown.ends_s))
        case Shown.REFUSED:
            how = "name the authority of this deployment (`hotslot context show`), or the name in its certificate"
            return fail("transport", f"the certificate of the {kind} at {endpoint} is refused: {shown.problem}", how)
        case Shown.PLAINTEXT:
            how = "it has no certificate: give it one, or name a context without --ca-file"
            return fail("transport", f"the {kind} at {endpoint} does not answer by TLS: {shown.problem}", how)
        case Shown.NOTHING:
            return ok("transport", f"the {kind} at {endpoint} is no port whose certificate can be looked at")


def _plaintext(kind: str, endpoint: str) -> Finding:
    if speaks_tls(endpoint):
        return fail("transport", f"the {kind} at {endpoint} speaks TLS, and no authority is named", _NAME_THEM)
    if stays_here(dialled_endpoint(endpoint)):
        return ok("transport", f"the {kind} at {endpoint} is called in plaintext, which stays on this machine")
    found = f"the {kind} at {endpoint} is called in plaintext: who is on the way reads and changes it"
    return warn("transport", found, "give it a certificate (docs/security.md)")


def _ending(
    check: str, what: str, ends_s: float, soon_s: float = CERTIFICATE_ENDS_SOON_S, how: str = "renew it before"
) -> Iterator[Finding]:
    left_s = ends_s - time.time()
    day = time.strftime("%Y-%m-%d", time.gmtime(ends_s))
    if left_s <= 0:
        yield fail(check, f"{what} ended on {day}", how.removesuffix(" before"))
    elif left_s < soon_s:
        yield warn(check, f"{what} ends on {day}, in {left_s / DAY_S:.0f} days", how)
    else:
        yield ok(check, f"{what} is good until {day}")


def _token_ends_s(security: ChannelSecurity, known: IdentityFiles) -> float:
    """Unix time of a token's end; 0 where it has none, or does not say and is not known here."""
    text = security.token
    if security.token_file is not None:
        with security.token_file.open("rb") as file:
            text = file.read(MAX_TOKEN_BYTES).decode("ascii", "replace").strip()
    parts = split_token(text)
    if parts is None:
        return _claimed_end_s(text)
    try:
        principals = read_principals(known.principals_file)
    except HotslotError:
        return 0.0
    records = (record for principal in principals.values() for record in principal.tokens)
    return next((float(record.expires_s) for record in records if record.id == parts[0]), 0.0)


def _claimed_end_s(token: str) -> float:
    """`exp` of a JSON Web Token, which the server verifies; 0 for what has none."""
    _, _, rest = token.partition(".")
    claims = rest.partition(".")[0]
    try:
        return float(json.loads(base64.urlsafe_b64decode(claims + "=" * (-len(claims) % 4)))["exp"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return 0.0


def without_credentials(security: ChannelSecurity) -> ChannelSecurity:
    """The same for calls that need none."""
    return replace(security, ca_file=None, cert_file=None, key_file=None, token="", token_file=None)
