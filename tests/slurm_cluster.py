"""A real Slurm of two nodes and two partitions on this machine, from Debian's packages slurmctld, slurmd, munge."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Self

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "scancel", "squeue")
CONFIG = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket,cred_expire=5
CryptoType=crypto/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
AccountingStorageType=accounting_storage/none
ReturnToService=2
NodeName=n0 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=1 RealMemory=4000 State=UNKNOWN
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=1 RealMemory=4000 State=UNKNOWN
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
PartitionName=main Nodes=n0,n1 Default=YES MaxTime=INFINITE State=UP PriorityTier=1 GraceTime=60
PartitionName=urgent Nodes=n0,n1 MaxTime=INFINITE State=UP PriorityTier=2
"""


def why_not() -> str:
    """Return why no Slurm can be started here; "" if it can."""
    missing = [name for name in PROGRAMS if shutil.which(name, path=search_path()) is None]
    if missing:
        return f"not installed: {', '.join(missing)}"
    return "" if os.getuid() == 0 else "only root can start it"


def search_path() -> str:
    """Return PATH with the folders of daemons."""
    return f"{os.environ['PATH']}:/usr/sbin:/sbin"


class SlurmCluster:
    """A controller and two nodes with one CPU each, as a context; its files are in a folder with a short path.

    A job of the partition `urgent` preempts those of `main`, the default one, which have 60 s to end. A requeued job
    starts again after some 10 s, since credentials are valid for 5 s only; usually that is 2 minutes.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = os.environ | {"SLURM_CONF": str(folder / "slurm.conf"), "PATH": search_path()}
        self.pids: list[Path] = []

    def __enter__(self) -> Self:
        munge = self.folder / "munge"
        for folder in (munge, self.folder / "state"):
            folder.mkdir(mode=0o700)
        (munge / "key").write_bytes(os.urandom(1024))
        (munge / "key").chmod(0o400)
        text = CONFIG.format(folder=self.folder, host=socket.gethostname(), ports=free_ports(3))
        (self.folder / "slurm.conf").write_text(text)
        options = {"key-file": "key", "socket": "socket", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
        self.start(munge / "pid", "munged", "--force", *(f"--{name}={munge / file}" for name, file in options.items()))
        self.start(self.folder / "slurmctld.pid", "slurmctld", "-i")
        for node in ("n0", "n1"):
            self.start(self.folder / f"slurmd-{node}.pid", "slurmd", "-N", node)
        self.wait_for("idle", "sinfo", "-h", "-o", "%T")
        return self

    def __exit__(self, *_: object) -> None:
        self.run("scancel", "--full", "-u", "root")
        self.wait_for("", "squeue", "-h")
        for pid in reversed(self.pids):
            os.kill(int(pid.read_text()), 15)

    def start(self, pid_file: Path, *words: str) -> None:
        """Start a daemon, and wait for the file of its process number."""
        self.run(*words)
        end = time.monotonic() + 20
        while not pid_file.exists() or not pid_file.read_text().strip():
            assert time.monotonic() < end, f"{words[0]} has not started"
            time.sleep(0.1)
        self.pids.append(pid_file)

    def run(self, *words: str) -> str:
        """Run a command of Slurm; return what it prints."""
        done = subprocess.run(words, env=self.environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{words}: {done.stderr}"
        return done.stdout.strip()

    def wait_for(self, text: str, *words: str, seconds: float = 60) -> None:
        """Wait until a command prints this text."""
        end = time.monotonic() + seconds
        while (printed := self.run(*words)) != text:
            assert time.monotonic() < end, f"{words} prints {printed!r}, not {text!r}"
            time.sleep(0.5)

    def wait_until(self, condition: Callable[[], bool], log: Path, seconds: float = 180) -> None:
        """Wait until a condition holds; a job's log is shown if it does not."""
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, log.read_text()
            time.sleep(0.2)


def free_ports(count: int) -> list[int]:
    """Return ports of this machine that nobody listens on."""
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports
