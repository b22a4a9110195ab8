"""Refusal of new connections by the kernel: a filter of a listening socket drops the first packets of some addresses.

gRPC accepts every connection before its interface for Python hears of anything. What stands is left alone, and a client
tries again by itself a second later, so connections from such an address come late rather than never. Linux takes the
filter (classic BPF, `SO_ATTACH_FILTER`) from every process, for its own sockets.
"""

import ctypes
import errno
import ipaddress
import socket
import struct
import sys
from collections.abc import Collection, Iterable
from contextlib import suppress

from shared.server.closed_connections import own_listeners

MAX_ADDRESSES = 64
"""Addresses of one filter; its jumps are short."""

_ATTACH_FILTER, _DETACH_FILTER = 26, 27
_LOAD_BYTE, _LOAD_HALF, _LOAD_WORD = 0x30, 0x28, 0x20
_IF_EQUAL, _IF_SET, _RETURN = 0x15, 0x45, 0x06
_PROTOCOL = 0xFFFFF000
"""Place of the packet's protocol, as is known of it beside its bytes."""
_NETWORK_HEADER = 0xFFF00000
"""Place at which the IP header begins; others count from the TCP header."""
_TCP_FLAGS, _SYN = 13, 0x02
_IPV4, _IPV6 = 0x0800, 0x86DD
_IPV4_SOURCE, _IPV6_SOURCE = 12, 8
_DROP, _PASS = 0, 0xFFFFFFFF

Instruction = tuple[int, int, int, int]
"""Operation, instructions to pass over where it holds and where not, and a value."""


def program_for(networks: Iterable[str]) -> list[Instruction]:
    """Filter that drops the beginnings of connections from IPv4 addresses and IPv6 networks of 64 bits."""
    four: list[Instruction] = [(_LOAD_WORD, 0, 0, _NETWORK_HEADER + _IPV4_SOURCE)]
    six: list[Instruction] = []
    for network in networks:
        address = ipaddress.ip_address(network)
        words = struct.unpack(f">{len(address.packed) // 4}I", address.packed)
        if address.version == 4:
            four += [(_IF_EQUAL, 0, 1, words[0]), (_RETURN, 0, 0, _DROP)]
        else:
            six += [
                (_LOAD_WORD, 0, 0, _NETWORK_HEADER + _IPV6_SOURCE),
                (_IF_EQUAL, 0, 3, words[0]),
                (_LOAD_WORD, 0, 0, _NETWORK_HEADER + _IPV6_SOURCE + 4),
                (_IF_EQUAL, 0, 1, words[1]),
                (_RETURN, 0, 0, _DROP),
            ]
    passed: Instruction = (_RETURN, 0, 0, _PASS)
    return [
        (_LOAD_BYTE, 0, 0, _TCP_FLAGS),
        (_IF_SET, 1, 0, _SYN),
        passed,
        (_LOAD_HALF, 0, 0, _PROTOCOL),
        (_IF_EQUAL, 0, len(four) + 1, _IPV4),
        *four,
        passed,
        (_IF_EQUAL, 1, 0, _IPV6),
        passed,
        *six,
        passed,
    ]


def refuse_connections(networks: Collection[str], port: int) -> int:
    """Have the listeners of this port take no new connections from these, and from all others; how many listen.

    Raises OSError where the kernel takes no filter.
    """
    if sys.platform != "linux":
        raise OSError(errno.ENOSYS, "sockets have filters on Linux alone")
    num_listeners = 0
    for held in own_listeners(port):
        num_listeners += 1
        _attach(held, list(networks)[-MAX_ADDRESSES:])
    return num_listeners


def _attach(listener: socket.socket, networks: list[str]) -> None:
    if not networks:
        with suppress(FileNotFoundError):  # there is none
            listener.setsockopt(socket.SOL_SOCKET, _DETACH_FILTER, 0)
        return
    program = program_for(networks)
    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *each) for each in program))
    listener.setsockopt(socket.SOL_SOCKET, _ATTACH_FILTER, struct.pack("@HP", len(program), ctypes.addressof(code)))
