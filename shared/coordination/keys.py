"""Every Redis key: its one builder, what it is for, and how long it lives.

All keys of a pool carry the same hash tag, `{hotslot:<pool>}`, so that a script may touch any of them on a cluster.
Every key expires. Times are multiples of the lease that the writing worker holds:

| key                         | holds                                             | lives                         |
|-----------------------------|---------------------------------------------------|-------------------------------|
| {pool}:worker:<worker_id>   | hash: info, state, load, token, epoch, …          | one lease: it is the lease    |
| {pool}:endpoint:<endpoint>  | hash: epoch and worker_id of who is there         | one lease                     |
| {pool}:since                | since when Redis has known the pool without a gap | SINCE_LEASES, 1 when one left |
| {pool}:leases               | sorted set: worker_id by end of lease, ms         | RETENTION_LEASES              |
| {pool}:residency:<id>       | hash: digest to resident, one worker's report     | RETENTION_LEASES              |
| {pool}:placements:<digest>  | hash: worker_id to resident, the same by version  | RETENTION_LEASES              |
| {pool}:changes              | stream of placement changes                       | RETENTION_LEASES, MAX_CHANGES |
| {hotslot}:pools             | sorted set: base model digest by last sign, ms    | RETENTION_LEASES              |
| {hotslot:rate:<tenant>}:<…> | hash: level and time of a tenant's token bucket   | until it is full again        |

With the pool's secret, `info`, `state` and `load` of a worker and each resident are signed (`seals.py`).

Keys of a crashed worker are removed by whichever worker next renews its lease, or by a watcher; the
retention is for when none is left to do so. Live workers report everything again several times within it.
"""

from dataclasses import dataclass
from typing import NewType

from hotslot.ids import Digest, WorkerId

RETENTION_LEASES = 8
"""Leases for which bookkeeping outlives the last worker that wrote it."""
REPORT_LEASES = 2
"""Leases between two reports of an unchanged residency."""
SINCE_LEASES = 2 / 3
"""Leases for which Redis knows a pool without any heartbeat from it. Less than one, so that it also counts as a
gap when Redis comes back with a state from before, in which leases have ended meanwhile."""
MAX_CHANGES = 2_000
"""Entries in the stream of changes; who watches from before the oldest must list everything again."""

Key = NewType("Key", str)

POOLS = Key("{hotslot}:pools")
PING = Key("{hotslot}:ping")
"""Never written; reading it tells if Redis answers."""
KEY_PATTERN = "{hotslot*"
"""Glob of every key here."""


def rate_key(tenant: str, kind: str) -> Key:
    """Counts what a tenant has left of a minute's limit, for all processes."""
    return Key(f"{{hotslot:rate:{tenant}}}:{kind}")


@dataclass(frozen=True, slots=True)
class PoolKeys:
    """The keys of one pool."""

    prefix: str

    @staticmethod
    def of(base_model_digest: Digest) -> "PoolKeys":
        """Keys for a base model; the digest is shortened to 128 bits."""
        return PoolKeys("{hotslot:" + base_model_digest.removeprefix("sha256:")[:32] + "}")

    def worker(self, worker_id: WorkerId) -> Key:
        """Exists exactly as long as the worker's lease."""
        return Key(f"{self.prefix}:worker:{worker_id}")

    def endpoint(self, endpoint: str) -> Key:
        """Fences out an older start at the same endpoint."""
        return Key(f"{self.prefix}:endpoint:{endpoint}")

    @property
    def since(self) -> Key:
        """Tells readers that Redis has lost its memory: set by whichever worker announces itself first."""
        return Key(f"{self.prefix}:since")

    @property
    def leases(self) -> Key:
        """Lists a pool's workers and finds those whose lease ended."""
        return Key(f"{self.prefix}:leases")

    def residency(self, worker_id: WorkerId) -> Key:
        """Placements to remove when the worker is gone, and those that changed since its last report."""
        return Key(f"{self.prefix}:residency:{worker_id}")

    def placements(self, digest: Digest) -> Key:
        """Workers that hold a version, in one read however large the fleet."""
        return Key(f"{self.prefix}:placements:{digest}")

    @property
    def changes(self) -> Key:
        """Stream that watchers follow."""
        return Key(f"{self.prefix}:changes")


def lua_key_builders() -> str:
    """Lua text that builds, from `prefix`, the keys which depend on what a function reads."""
    keys = PoolKeys("")
    constants = {"leases": keys.leases, "changes": keys.changes}
    of_one = {
        "worker": keys.worker(WorkerId("")),
        "residency": keys.residency(WorkerId("")),
        "placements": keys.placements(Digest("")),
    }
    return "".join(
        [
            *(f"local {name}_key = prefix .. '{end}'\n" for name, end in constants.items()),
            *(f"local function {name}_key(id) return prefix .. '{end}' .. id end\n" for name, end in of_one.items()),
        ]
    )
