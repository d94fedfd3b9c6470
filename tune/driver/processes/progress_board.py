"""What running trials are doing between their reports: sent by them every few seconds to the driver, as datagrams.

A datagram needs no process between the two, and its sender waits for nothing. One that is lost, or that the network
between two machines does not let through, is of no importance. Ray's own way, a report, would have each trial wait for
the driver, and the driver handle it as an event of its sweep.
"""

from __future__ import annotations

import json
import secrets
import socket
import time
from contextlib import suppress
from dataclasses import astuple, dataclass
from typing import Self

import ray

from trainable.training.step_progress import StepProgress
from tune.driver.cluster import ray_compat
from tune.run.live_state import Activity

MAX_BYTES = 1024  # of a datagram
MAX_READ = 1000  # datagrams per read, so that it ends however many arrive meanwhile
TOKEN_BYTES = 16


@dataclass(frozen=True)
class BoardAddress:
    """Where a board listens. token: a datagram that does not begin with it is ignored."""

    host: str
    port: int
    token: bytes


class ProgressBoard:
    """Receives the progress of trials in the driver's process; the system keeps what arrives until it is read.

    host: the IP address at which the processes of trials reach this machine.
    """

    def __init__(self, host: str) -> None:
        self.socket = open_socket(host)
        try:
            self.socket.bind((host, 0))
        except OSError:  # an address that another machine translates into this one's
            self.socket.bind(("", 0))
        self.address = BoardAddress(host, self.socket.getsockname()[1], secrets.token_bytes(TOKEN_BYTES))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def read(self) -> list[Activity]:
        """Return what has arrived since the last call, updated now by this machine's clock; wait for nothing."""
        activities = []
        with suppress(BlockingIOError):  # nothing is left
            for _ in range(MAX_READ):
                message = self.socket.recv(MAX_BYTES)
                if secrets.compare_digest(message[:TOKEN_BYTES], self.address.token):
                    activities.append(decode(message[TOKEN_BYTES:]))
        return activities


def start_board() -> ProgressBoard:
    """Return a board that trials on all machines of the connected cluster reach, and no others."""
    return ProgressBoard("127.0.0.1" if ray_compat.started_here() else ray.util.get_node_ip_address())


def open_socket(host: str) -> socket.socket:
    """Return a socket for datagrams to or from this IP address that waits for nothing."""
    result = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM)
    result.setblocking(False)
    return result


def encode(number: int, progress: StepProgress) -> bytes:
    """Return the progress of a trial as it is sent."""
    return json.dumps([number, *astuple(progress)]).encode()


def decode(message: bytes) -> Activity:
    """Return what encode was given, as an activity that is updated now."""
    number, *fields = json.loads(message)
    told = StepProgress(*fields)
    return Activity(number, told.phase, told.epoch, told.done, told.total, told.patches_per_second, time.time())


class ProgressSender:
    """Sends the progress of one trial from its process to a board.

    board: None to send nothing. number: of the trial.
    """

    def __init__(self, board: BoardAddress | None, number: int) -> None:
        self.board, self.number = board, number

    def send(self, progress: StepProgress) -> None:
        """Send it, and wait for nothing. What goes wrong is of no importance to the training."""
        if self.board is None:
            return
        with suppress(OSError), open_socket(self.board.host) as out:  # its buffer may be full, the driver out of reach
            out.sendto(self.board.token + encode(self.number, progress), (self.board.host, self.board.port))
