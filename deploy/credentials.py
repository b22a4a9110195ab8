"""Makes what the services of docker-compose.yml show and keep from each other: certificates, tokens, secrets.

    python credentials.py /credentials

Below that folder each service has one of its own, which its container alone mounts. An authority, a password and a
secret that are there stay, so that they live as long as their volume; certificates are renewed at the start and every
day after, and services read them again. Tokens are of a user, the workers and the gateway; further principals may be
added to, and taken from, authority/principals.json at any time. It runs on, since Podman starts nothing that depends on
a container that ended.
"""

import hashlib
import io
import os
import secrets
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from hotslot.content_files import write_file
from hotslot.errors import InvalidRequestError
from hotslot.formats.principals import encode_principals, read_principals
from hotslot.local.authority import Authority
from hotslot.local.identity_files import GATEWAY, LOCAL_HOSTS, WORKER
from hotslot.local.own_principals import have_tokens
from shared.coordination.rights import acl_rule

HOSTS: Mapping[str, Sequence[str]] = {
    "redis": ("redis",),
    "postgres": ("postgres",),
    "prometheus": ("prometheus",),
    "store": ("store", "store-b"),
    "worker": ("worker-a", "worker-b"),
    "gateway": ("gateway",),
}
"""Names of each service's containers."""
OTHERS = ("redis", "postgres", "prometheus")
"""Services of images that are not hotslot's."""
USES_REDIS = ("store", "worker")
KNOW_CALLERS = ("store", "worker", "gateway")
CALLS_AS = {"worker": WORKER, "gateway": GATEWAY}
"""Principals by their services."""
RENEWED_EVERY_S = 86_400
LOOKS_EVERY_S = 2.0
"""Time between two looks at the file of principals, whose copies services have."""
SERVICE_ID = 10001
"""User of hotslot's images."""
REDIS_CONF = """\
port 0
tls-port 6379
tls-cert-file /credentials/redis.crt
tls-key-file /credentials/redis.key
tls-ca-cert-file /credentials/ca.crt
tls-auth-clients no
save ""
appendonly no
maxmemory 256mb
maxmemory-policy noeviction
user default off
user health on nopass resetkeys resetchannels -@all +ping
user hotslot on #{digest} {rule}
"""


def main() -> int:
    """Make everything below the folder that is named, and renew certificates until a signal comes."""
    root = Path(sys.argv[1])
    ends = {signal.SIGTERM, signal.SIGINT}
    signal.pthread_sigmask(signal.SIG_BLOCK, ends)
    while True:
        make(root)
        (root / "authority" / "made").touch()
        print(f"credentials: {', '.join(HOSTS)} below {root}", flush=True)
        renewed_s = time.monotonic()
        while time.monotonic() - renewed_s < RENEWED_EVERY_S:
            if signal.sigtimedwait(ends, LOOKS_EVERY_S) is not None:
                return 0
            share_principals(root)


def make(root: Path) -> None:
    """Make what is not there, and new certificates."""
    authority = Authority(_folder(root / "authority", 0o700), "hotslot compose")
    password = _kept(root / "authority" / "redis-password")
    secret = _kept(root / "authority" / "pool-secret")
    database = _kept(root / "authority" / "postgres-password")
    have_tokens(root / "authority" / "principals.json", lambda name: root / "authority" / f"{name}.token")
    for service, hosts in HOSTS.items():
        folder = _folder(root / service, 0o755)
        if service != "prometheus":  # It has no listener that speaks TLS, and is known by none.
            authority.issue(service, (*hosts, *LOCAL_HOSTS), folder=folder)
        (folder / "ca.crt").write_bytes(authority.ca_file.read_bytes())
        if service in USES_REDIS:
            (folder / "redis-password").write_text(password)
            (folder / "pool-secret").write_text(secret)
        if service in CALLS_AS:
            (folder / "token").write_bytes((root / "authority" / f"{CALLS_AS[service]}.token").read_bytes())
        if service == "postgres":
            (folder / "postgres-password").write_text(database)
        if service == "store":
            (folder / "pgpass").write_text(f"*:*:hotslot:hotslot:{database}\n")
        if service == "redis":
            digest = hashlib.sha256(password.encode()).hexdigest()
            (folder / "valkey.conf").write_text(REDIS_CONF.format(digest=digest, rule=acl_rule()))
        for path in folder.iterdir():
            _own(path, service)
    share_principals(root)


def share_principals(root: Path) -> None:
    """Give services the file of principals, where theirs is not as it is now; one that cannot be read waits."""
    file = root / "authority" / "principals.json"
    try:
        data = encode_principals(read_principals(file))
    except InvalidRequestError as exc:
        print(f"credentials: {exc.message}", file=sys.stderr, flush=True)
        return
    for service in KNOW_CALLERS:
        shared = root / service / file.name
        if not shared.exists() or shared.read_bytes() != data:
            write_file(shared, io.BytesIO(data), mode=0o400)
            _own(shared, service)


def _own(path: Path, service: str) -> None:
    # The users of others' images are not known here; no other container mounts their folders.
    path.chmod(0o444 if service in OTHERS else 0o400)
    if os.getuid() == 0 and service not in OTHERS:
        os.chown(path, SERVICE_ID, SERVICE_ID)


def _folder(path: Path, mode: int) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    path.chmod(mode)
    return path


def _kept(path: Path) -> str:
    """Random text that was made before, or is made now."""
    if not path.exists():
        path.touch(0o600)
        path.write_text(secrets.token_urlsafe(32))
    return path.read_text()


if __name__ == "__main__":
    sys.exit(main())
