"""Servers on IPv6, on both families, and where the kernel has no IPv6; health checks find each of them."""

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml

from hotslot.endpoints import Endpoint, advertised_endpoint, listen_endpoint
from hotslot.rpc.channel import ChannelOptions, open_channel
from hotslot.rpc.channel import connect as connected

ROOT = Path(__file__).resolve().parents[4]
SERVER = """
import asyncio, sys
from shared.server.grpc_server import ServerOptions, serve, stop_signal
from shared.transport_settings import Transport
async def main():
    async with serve([], ServerOptions(sys.argv[1], Transport(insecure=True))) as server:
        await server.set_ready(True)
        print("port", server.port, flush=True)
        await stop_signal()
asyncio.run(main())
"""
NO_IPV6 = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <sys/socket.h>
int socket(int domain, int type, int protocol) {
  if (domain == AF_INET6) { errno = EAFNOSUPPORT; return -1; }
  return ((int (*)(int, int, int))dlsym(RTLD_NEXT, "socket"))(domain, type, protocol);
}
"""


def has_ipv6() -> bool:
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            return True
    except OSError:
        return False


needs_ipv6 = pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6")


@pytest.fixture(scope="module")
def no_ipv6(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Environment of a process whose kernel has no IPv6, as far as it can tell."""
    folder = tmp_path_factory.mktemp("no_ipv6")
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("g++")
    assert compiler is not None
    (folder / "no_ipv6.c").write_text(NO_IPV6)
    library = folder / "no_ipv6.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, folder / "no_ipv6.c", "-ldl"], check=True)
    environment = {"LD_PRELOAD": str(library)}
    probe = [sys.executable, "-c", "import socket; socket.socket(socket.AF_INET6)"]
    assert subprocess.run(probe, env={**os.environ, **environment}, capture_output=True, check=False).returncode
    return environment


@contextmanager
def served(listen: str, environment: dict[str, str]) -> Iterator[int]:
    command = [sys.executable, "-c", SERVER, listen]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, **environment}) as process:
        assert process.stdout is not None
        try:
            yield next(int(line.split()[1]) for line in process.stdout if line.startswith("port "))
        finally:
            process.terminate()


def health(listen: str, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "deploy" / "healthcheck.py"), "readiness"]
    more = {**environment, "HOTSLOT_LISTEN": listen}
    return subprocess.run(command, env={**os.environ, **more}, capture_output=True, text=True, check=False, timeout=60)


async def reaches(endpoint: str) -> bool:
    async with open_channel(endpoint, ChannelOptions(max_attempts=1)) as channel:
        await connected(channel, 10.0)
    return True


@needs_ipv6
async def test_a_server_on_every_interface_is_reached_over_both_families() -> None:
    for wildcard in ("[::]", "0.0.0.0"):
        with served(f"{wildcard}:0", {}) as port:
            assert await reaches(f"127.0.0.1:{port}")
            assert await reaches(f"[::1]:{port}")
            assert await reaches(f"[::1%lo]:{port}")
            assert health(f"{wildcard}:{port}", {}).returncode == 0


@needs_ipv6
async def test_a_server_on_one_ipv6_address_is_reached_there() -> None:
    with served("[::1]:0", {}) as port:
        assert await reaches(f"[::1]:{port}")
        done = health(f"[::1]:{port}", {})
        assert (done.returncode, done.stdout) == (0, f"[::1]:{port}: readiness: SERVING\n")


async def test_a_server_on_every_interface_starts_where_there_is_no_ipv6(no_ipv6: dict[str, str]) -> None:
    with served("[::]:0", no_ipv6) as port:
        assert await reaches(f"127.0.0.1:{port}")
        assert health(f"[::]:{port}", no_ipv6).returncode == 0


async def test_a_server_on_a_socket_is_reached_there(tmp_path: Path) -> None:
    with served(f"unix:{tmp_path}/s", {}):
        assert await reaches(f"unix:{tmp_path}/s")
        assert health(f"unix:{tmp_path}/s", {}).returncode == 0


def test_a_health_check_of_nonsense_is_one_line_of_usage() -> None:
    done = health("nonsense", {})
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].endswith("found 'nonsense', expected host:port")


def test_images_and_manifests_fit_clusters_of_either_family() -> None:
    for name in ("store", "worker"):
        text = (ROOT / "deploy" / f"{name}.Dockerfile").read_text()
        (listen,) = (line.split("=")[1].rstrip(" \\") for line in text.splitlines() if "HOTSLOT_LISTEN=" in line)
        endpoint = listen_endpoint(listen)
        assert isinstance(endpoint, Endpoint)
        assert endpoint.is_wildcard
    deployment = yaml.safe_load((ROOT / "deploy/kubernetes/base/worker.yaml").read_text())
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    (advertise,) = (entry["value"] for entry in container["env"] if entry["name"] == "HOTSLOT_ADVERTISE")
    for address, told in (("10.1.2.3", "10.1.2.3:7500"), ("fd00:10:244::7", "[fd00:10:244::7]:7500")):
        assert str(advertised_endpoint(advertise.replace("$(POD_IP)", address))) == told
