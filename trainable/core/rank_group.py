"""Processes that train together, one per GPU, started and watched by this process."""

from __future__ import annotations

import os
import pickle
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, Pipe, wait
from typing import Any, Protocol, Self

import torch.distributed as dist

from trainable.core.rank_link import END, Kind, Setup
from trainable.core.ranks import Launch, is_lost_connection

LOCAL_HOST, LOOPBACK = "127.0.0.1", "lo"  # an address that only this machine reaches, and its network interface
LOOK_SECONDS = 5.0  # from one look at the processes that say nothing to the next: a lost machine closes no connection
END_SECONDS = 60.0  # that the processes get to end a training at the same step, and to write its last checkpoint
DEATH_SECONDS = 5.0  # in which the death of a process is seen after another one has lost its connection to it


class RankDiedError(RuntimeError):
    """A process of a training has died, perhaps killed; the others were ended."""


class LostNodeError(RankDiedError):
    """A machine is lost, and with it its processes of a training; the others were ended."""


class Process(Protocol):
    """What is used of a Popen. All processes of a group are killed together, so `kill` may end others of it too."""

    def poll(self) -> int | None: ...
    def kill(self) -> None: ...
    def wait(self, timeout: float | None = None) -> int: ...


@dataclass(eq=False)
class Member:
    """One of the processes.

    place: its machine in messages, as " on 10.0.0.2"; "" for this one. is_lost: returns whether that machine is lost.
    """

    rank: int
    process: Process
    connection: Connection
    place: str = ""
    is_lost: Callable[[], bool] = lambda: False

    def messages(self) -> Iterator[tuple[Kind, Any]]:
        """Yield what the process has sent and nobody has read yet.

        Raises:
            EOFError, OSError: after that, if the process has ended, or its connection, which tells sooner of another
                machine's.
        """
        while self.connection.poll():
            yield self.connection.recv()
        if self.process.poll() is not None:
            raise EOFError


# Starts these processes, which wait for their Setup, with a number of CPU threads for each.
Start = Callable[[Sequence[Launch], int], list[Member]]


class RankGroup:
    """Processes that train together, kept for one training after another.

    They end when the thread that has made this object ends, and when this process does, also by kill -9.

    Args:
        processes: how many, at least two.
        cuda: each trains on another GPU; else on the CPU.
        threads: of the CPU, for each of them.
        start: starts them; by default on this machine, where they see the GPUs that this process sees.
        local: how many of them are on each machine; None for all.
        host: the address of this machine that they can reach.
    """

    def __init__(
        self,
        processes: int,
        *,
        cuda: bool,
        threads: int,
        start: Start | None = None,
        local: int | None = None,
        host: str = LOCAL_HOST,
    ) -> None:
        self.store = make_store(host)
        launches = [Launch(rank, processes, rank % (local or processes)) for rank in range(processes)]
        self.working: set[Member] = set()
        self.asking: Member | None = None  # which waits for the answer to what it has asked
        self.result: Any = None
        self.members = (start or start_here)(launches, threads)
        for member in self.members:
            setup = Setup(launches[member.rank], host, self.store.port, cuda, threads)
            with suppress(OSError):  # it has died, which `run` sees
                member.connection.send_bytes(pickle.dumps(setup))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def usable(self) -> bool:
        """Whether all processes live, and can be given work."""
        return bool(self.members) and all(member.process.poll() is None for member in self.members)

    def run(self, work: Callable[..., Any], *arguments: Any, on_message: Callable[[Any], object]) -> Any:
        """Call `work(link, *arguments)` in each process; return rank 0's result once all have returned.

        If an exception is raised here meanwhile, as by on_message or Ctrl-C, the training in `work` is ended at the
        same step of all processes, which stay usable; after END_SECONDS they are killed.

        Args:
            work: a function that the processes can import; link: the RankLink of its process.
            arguments: that can be pickled.
            on_message: called with each value that a process tells or asks by its link; only rank 0 asks.

        Raises:
            RankDiedError: if a process dies. Other exceptions are the first one of `work`, with its traceback as a
                note. All processes are killed then.
        """
        request = pickle.dumps((work, arguments))
        self.working, self.result = set(self.members), None
        try:
            for member in self.members:
                with suppress(OSError):  # it has died, which is seen below
                    member.connection.send_bytes(request)
            while self.working:
                self._handle_messages(on_message, LOOK_SECONDS)
        except BaseException:
            self._end_work()
            raise
        return self.result

    def _handle_messages(self, on_message: Callable[[Any], object], timeout: float) -> None:
        """Wait for messages of the processes that work, and handle them; raise what one of them has raised."""
        by_connection = {member.connection: member for member in self.working}
        ready = wait(list(by_connection), timeout)
        if not ready and (died := [member for member in self.members if member.process.poll() is not None]):
            raise self._death_of(died[0])
        for connection in ready:
            member = by_connection[connection]  # type: ignore[index]
            try:
                kind, value = member.connection.recv()
            except (EOFError, OSError):
                raise self._death_of(member) from None
            if kind == Kind.PRINT:
                sys.stdout.write(value)
                sys.stdout.flush()
            elif kind == Kind.FAILED:
                raise self._failure(value)
            elif kind in (Kind.TELL, Kind.ASK):
                self.asking = member if kind == Kind.ASK else self.asking
                on_message(value)
                if kind == Kind.ASK:
                    self._answer()
            else:
                self.working.discard(member)
                self.result = value if member.rank == 0 else self.result

    def _answer(self) -> None:
        """Let the process that waits for an answer go on."""
        if self.asking is not None:
            with suppress(OSError):  # it has died, which is seen by the next message
                self.asking.connection.send_bytes(b"")
            self.asking = None

    def _end_work(self) -> None:
        """End what the processes work on, at the same step; kill them if they do not end in time. Nothing is raised."""
        if not self.members:
            return
        end = time.monotonic() + END_SECONDS
        try:
            for member in self.members:
                with suppress(OSError):
                    member.connection.send_bytes(END)
            self._answer()
            while self.working and time.monotonic() < end:
                self._handle_messages(lambda _: None, max(0.0, end - time.monotonic()))
        except Exception:
            self.close()  # what has failed is less than what ended the work
        except BaseException:
            self.close()
            raise
        if self.working:
            self.close()

    def _failure(self, error: Exception) -> Exception:
        """End all after an exception in one process; return it, or what has led to it.

        If it is a lost connection, that is the exception or the death of another process, which may be seen later.
        """
        end = time.monotonic() + DEATH_SECONDS * is_lost_connection(error)
        while True:
            for member in self.members:
                try:
                    for kind, value in member.messages():
                        if kind == Kind.FAILED and is_lost_connection(error) and not is_lost_connection(value):
                            self.close()
                            return value
                except (EOFError, OSError):
                    return self._death_of(member)
            if time.monotonic() >= end:
                self.close()
                return error
            time.sleep(0.05)

    def _death_of(self, member: Member) -> RankDiedError:
        """End all after the death of one process; return an error that says which one and how."""
        with suppress(subprocess.TimeoutExpired):
            member.process.wait(DEATH_SECONDS)
        code, count = member.process.poll(), len(self.members)
        self.close()
        how = "has died" if code is None else f"ended with exit code {code}"
        if code is not None and code < 0:
            how = f"was killed by {signal.Signals(-code).name}"
        its = f"process {member.rank} of the {count} that train together"
        if member.is_lost():
            return LostNodeError(f"the loss of a node, with {its}{member.place}")
        return RankDiedError(f"{its} {how}{member.place}")

    def close(self) -> None:
        """Kill the processes, and return when they have ended."""
        members, self.members, self.working, self.asking = self.members, [], set(), None
        for member in members:
            member.process.kill()
        for member in members:
            member.process.wait()
            member.connection.close()


def make_store(host: str) -> dist.TCPStore:
    """Return a store, by which processes find each other, that listens on this address of this machine only."""
    with socket.create_server((host, 0)) as server:  # by itself a TCPStore listens on all addresses
        port: int = server.getsockname()[1]
        return dist.TCPStore(host, port, is_master=True, wait_for_workers=False, master_listen_fd=server.detach())


def start_here(launches: Sequence[Launch], threads: int, interface: str = LOOPBACK) -> list[Member]:
    """Start processes on this machine. interface: of the network, as for start_process."""
    members = list[Member]()
    for launch in launches:
        own, its = Pipe()
        with its:
            number = its.fileno()
            process = start_process(str(number), threads, interface, pass_fds=[number])
        members.append(Member(launch.rank, process, own))
    return members


def start_process(where: str, threads: int, interface: str, **options: Any) -> subprocess.Popen[bytes]:
    """Start a process that reaches the one that gives it work as rank_link.connect says.

    interface: of the network, on which gloo listens; "" for its choice. NCCL, which may know a faster one, listens
        there too if it is the loopback. GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME of the user come first.
    options: of Popen.
    """
    paths = os.pathsep.join(path for path in sys.path if path)  # as Ray ships the packages
    environment = {"GLOO_SOCKET_IFNAME": interface} if interface else {}
    environment |= {"NCCL_SOCKET_IFNAME": interface} if interface == LOOPBACK else {}
    environment |= os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": str(threads)}
    return subprocess.Popen(
        [sys.executable, "-P", "-c", "from trainable.core.rank_link import main; main()", where],
        env=environment,
        start_new_session=True,  # Ctrl-C reaches the process that gives it work alone, which ends it
        **{"stdin": subprocess.DEVNULL, **options},
    )
