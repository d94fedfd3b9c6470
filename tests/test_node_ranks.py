"""Processes that train together on nodes of a real Ray cluster: who else connects to the port on which they join."""

from __future__ import annotations

import operator
import socket
import struct
import time
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from multiprocessing import AuthenticationError
from multiprocessing.connection import Client, Connection
from typing import Any

import pytest

from tune.driver.cluster.connection import Cluster
from tune.driver.processes import node_ranks

RESET_ON_CLOSE = struct.pack("ii", 1, 0)
Address = tuple[str, int]


def nothing(message: object) -> None:
    raise AssertionError(message)


def connect_as_scanners_do(address: Address) -> list[socket.socket]:
    """Connect without the key; return the clients that stay: one says nothing, one speaks HTTP, one stops midway."""
    silent, asking, half, resetting = (socket.create_connection(address, timeout=10) for _ in range(4))
    asking.sendall(b"GET / HTTP/1.1\r\nHost: node\r\n\r\n")
    half.sendall(struct.pack("!i", 16) + b"half")
    resetting.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
    resetting.close()
    return [silent, asking, half]


def connect_with_wrong_key(address: Address) -> None:
    with pytest.raises(AuthenticationError):
        Client(address, authkey=b"wrong")


def send_no_rank(address: Address, key: bytes) -> None:
    """Connect with the key, and send what cannot be unpickled."""
    with Client(address, authkey=key) as connection:
        connection.send_bytes(b"no pickle")
        with pytest.raises(EOFError):
            connection.recv()


def wait_until_dropped(client: socket.socket) -> None:
    """Wait until the other end closes a connection; TimeoutError after 10 s without a word."""
    with client, suppress(ConnectionResetError):
        while client.recv(1024):
            pass


def test_strangers_at_the_port_neither_end_nor_hold_up_the_start(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They connect while the processes still import torch, and are dropped; the processes may be silent for longer."""
    clients, others, accept_all = list[socket.socket](), list[Future[None]](), node_ranks.accept_all

    def among_strangers(listener: socket.socket, key: bytes, *rest: Any) -> dict[int, Connection]:
        address = listener.getsockname()
        clients.extend(connect_as_scanners_do(address))
        others.append(pool.submit(connect_with_wrong_key, address))
        others.append(pool.submit(send_no_rank, address, key))
        return accept_all(listener, key, *rest)

    monkeypatch.setattr(node_ranks, "accept_all", among_strangers)
    monkeypatch.setattr(node_ranks, "START_SECONDS", 60.0)
    monkeypatch.setattr(node_ranks, "SILENT_SECONDS", 1)
    with ThreadPoolExecutor() as pool, node_ranks.group_on_nodes(1, 2, cuda=False, threads=1) as group:
        assert group.run(operator.is_not, None, on_message=nothing)
        for client in clients:
            wait_until_dropped(client)
        for other in others:
            other.result()
        time.sleep(1.5)
        assert group.run(operator.is_not, None, on_message=nothing)
