"""Makes what the services of docker-compose.yml show and keep from each other: certificates, a password, a secret.

    python credentials.py /credentials

Below that folder each service has one of its own, which its container alone mounts. An authority, a password and a
secret that are there stay, so that they live as long as their volume; certificates are renewed at the start and every
day after, and services read them again. It runs on, since Podman starts nothing that depends on a container that ended.
"""

import hashlib
import os
import secrets
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from hotslot.local.authority import Authority
from hotslot.local.identity_files import LOCAL_HOSTS
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
RENEWED_EVERY_S = 86_400
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
        if signal.sigtimedwait(ends, RENEWED_EVERY_S) is not None:
            return 0


def make(root: Path) -> None:
    """Make what is not there, and new certificates."""
    authority = Authority(_folder(root / "authority", 0o700), "hotslot compose")
    password = _kept(root / "authority" / "redis-password")
    secret = _kept(root / "authority" / "pool-secret")
    database = _kept(root / "authority" / "postgres-password")
    for service, hosts in HOSTS.items():
        folder = _folder(root / service, 0o755)
        if service != "prometheus":  # It has no listener that speaks TLS, and is known by none.
            authority.issue(service, (*hosts, *LOCAL_HOSTS), folder=folder)
        (folder / "ca.crt").write_bytes(authority.ca_file.read_bytes())
        if service in USES_REDIS:
            (folder / "redis-password").write_text(password)
            (folder / "pool-secret").write_text(secret)
        if service == "postgres":
            (folder / "postgres-password").write_text(database)
        if service == "store":
            (folder / "pgpass").write_text(f"*:*:hotslot:hotslot:{database}\n")
        if service == "redis":
            digest = hashlib.sha256(password.encode()).hexdigest()
            (folder / "valkey.conf").write_text(REDIS_CONF.format(digest=digest, rule=acl_rule()))
        for path in folder.iterdir():
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
