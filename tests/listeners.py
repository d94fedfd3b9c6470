"""On which addresses of this machine processes wait for connections, by Linux's tables of sockets."""

from __future__ import annotations

import contextlib
import ipaddress
import os
from pathlib import Path


def descendants(pid: int) -> set[int]:
    """A process and all that it has started."""
    parents = {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = status.read_text().rpartition(")")[2].split()
            parents[int(status.parent.name)] = int(fields[1])
    found, new = set[int](), {pid}
    while new:
        found |= new
        new = {child for child, parent in parents.items() if parent in found} - found
    return found


def listeners(pids: set[int]) -> set[tuple[str, int]]:
    """The addresses and TCP ports that these processes listen on; "::" and "0.0.0.0" are all of the machine's."""
    sockets = set()
    for pid in pids:
        for file in Path(f"/proc/{pid}/fd").glob("*"):
            with contextlib.suppress(OSError):
                sockets.add(os.readlink(file))
    found = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and f"socket:[{fields[9]}]" in sockets:
                address, _, port = fields[1].rpartition(":")
                found.add((address_of(address), int(port, 16)))
    return found


def address_of(digits: str) -> str:
    """An address as Linux writes it there: groups of four bytes, the last one first, in hexadecimal digits."""
    groups = [bytes.fromhex(digits[start : start + 8])[::-1] for start in range(0, len(digits), 8)]
    return str(ipaddress.ip_address(b"".join(groups)))
