"""The embedded Valkey: up when the block begins, gone when it or its process ends."""

import signal
import socket
import subprocess
import sys

import psutil
import pytest
import redis

from hotslot.local.embedded_valkey import embedded_valkey


def test_it_answers_in_the_block_and_is_gone_after_it() -> None:
    with embedded_valkey() as server:
        client = redis.Redis.from_url(server.url)
        assert client.ping()
        assert client.config_get("maxmemory") == {"maxmemory": str(64 * 2**20)}
        assert client.config_get("save") == {"save": ""}
        client.close()
        assert psutil.pid_exists(server.pid)
    assert not psutil.pid_exists(server.pid)


def test_it_is_gone_even_when_it_was_stopped() -> None:
    with embedded_valkey() as server:
        psutil.Process(server.pid).send_signal(signal.SIGSTOP)
    assert not psutil.pid_exists(server.pid)


def test_a_cluster_of_one_node_serves_all_slots() -> None:
    with embedded_valkey(cluster=True) as server:
        client = redis.RedisCluster.from_url(server.url.replace("redis+cluster", "redis"))
        assert client.set("a", "1")
        assert client.get("a") == b"1"
        client.close()


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's help is Linux only")
def test_it_dies_with_a_parent_that_was_killed() -> None:
    program = (
        "import time\nfrom hotslot.local.embedded_valkey import embedded_valkey\n"
        "with embedded_valkey() as s:\n    print(s.pid, flush=True)\n    time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = psutil.Process(int(parent.stdout.readline()))
        assert child.is_running()
        parent.kill()
        parent.wait()
        gone, alive = psutil.wait_procs([child], timeout=60)
    assert (len(gone), len(alive)) == (1, 0)


def test_a_taken_port_is_a_clear_error() -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        with pytest.raises(RuntimeError, match="ended with 1"), embedded_valkey(port=holder.getsockname()[1]):
            pass
