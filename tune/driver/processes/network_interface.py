"""Which network interface of this machine has an address."""

from __future__ import annotations

import fcntl
import socket
import struct
from contextlib import suppress

SIOCGIFADDR = 0x8915  # of Linux's ioctl: the IPv4 address of a network interface


def interface_of(address: str) -> str:
    """Return the name of this machine's network interface with an IPv4 address; "" if none has it.

    By default gloo takes the one that the host name resolves to: on Debian the loopback, which others cannot reach.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        for _, name in socket.if_nameindex():
            with suppress(OSError):  # it has no IPv4 address
                answer = fcntl.ioctl(any_socket, SIOCGIFADDR, struct.pack("256s", name.encode()))
                if socket.inet_ntoa(answer[20:24]) == address:
                    return name
    return ""
