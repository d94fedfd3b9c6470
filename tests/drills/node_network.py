"""Machines of a cluster on this one: network namespaces with their own addresses, names and mounts, on one bridge.

Needs root, and `ip` of iproute2. `can_make_machines` tells whether it works here.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from helpers import clean_environment

PORT = 6379
RAY = str(Path(sys.executable).with_name("ray"))


def can_make_machines() -> bool:
    """Whether this process may make network, mount and host name namespaces."""
    words = ["unshare", "--net", "--mount", "--uts", "ip", "link", "show"]
    try:
        return not os.geteuid() and not subprocess.run(words, capture_output=True, check=False).returncode
    except FileNotFoundError:
        return False


class Machine:
    """A network namespace with one address, and what runs in it.

    name: of the machine, as its processes see it. address: its own. setup: shell commands that each of its processes
    runs first, in a mount namespace of its own; an export or a mount there is seen by that process only.
    """

    def __init__(self, network: Network, name: str, address: str, setup: str = "") -> None:
        self.network, self.name, self.address, self.setup = network, name, address, setup
        self.namespace = f"{network.bridge}-{name}"
        self.own_ray = network.folder / f"ray-{name}"  # which its processes see as the folder of Ray
        self.own_ray.mkdir()
        self.raylet: subprocess.Popen[str] | None = None
        self.ray_words: tuple[str, ...] = ()

    def start(self, *words: object, setup: str | None = None, **environment: str) -> subprocess.Popen[str]:
        """Start a command on the machine, in a process group of its own; its standard error goes to its output.

        setup: instead of the machine's own.
        """
        steps = [f"hostname {self.name}", f"mount --bind {self.own_ray} {self.network.ray}"]
        steps += filter(None, [self.setup if setup is None else setup])
        script = " && ".join([*steps, f"exec {shlex.join(map(str, words))}"])
        inside = ["ip", "netns", "exec", self.namespace, "unshare", "--mount", "--uts", "sh", "-c", script]
        return subprocess.Popen(
            inside, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
            env=clean_environment() | self.network.environment | environment,
        )  # fmt: skip

    def run(self, *words: object, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run a command on the machine to its end."""
        process = self.start(*words, **environment)
        output, _ = process.communicate(timeout=300)
        return subprocess.CompletedProcess(process.args, process.returncode, output)

    def voxtune(self, *words: object, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run a verb on the machine to its end, without what the machine's setup does to its Ray processes."""
        process = self.start(sys.executable, "-m", "tune", *words, setup="", **environment)
        output, _ = process.communicate(timeout=300)
        return subprocess.CompletedProcess(process.args, process.returncode, output)

    def start_ray(self, *words: str) -> None:
        """Start the machine's Ray node with these options; that of the first machine is the head. `stop` ends it."""
        head = self.network.head
        place = ["--head", f"--port={PORT}", "--include-dashboard=false"] if self is head else []
        place = place or [f"--address={head.address}:{PORT}"]
        options = [f"--node-ip-address={self.address}", "--disable-usage-stats", f"--object-store-memory={80 * 2**20}"]
        # Here a head finds its last address, and it does not start if the table of processes, which networks on one
        # computer share, has a head at that address.
        for file in self.own_ray.rglob("ray_current_cluster"):
            file.unlink()
        # A process that has imported tune has set this to 0, and Ray would refuse to be one node of several.
        several = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "1"}
        self.raylet = self.start(RAY, "start", "--block", *place, *options, *words, **several)
        self.ray_words = words

    def start_ray_again_if_ended(self) -> None:
        """Start the Ray node again if it has given up, as it does when it has waited 30 s on a busy computer."""
        if self.raylet is not None and self.raylet.poll() is not None:
            print(f"{self.name}: Ray has not started: {(self.raylet.communicate()[0] or '')[-400:]}", file=sys.stderr)
            self.start_ray(*self.ray_words)

    def processes(self) -> list[int]:
        """Return the processes that run on the machine."""
        done = subprocess.run(["ip", "netns", "pids", self.namespace], capture_output=True, text=True, check=False)
        return [int(word) for word in done.stdout.split()]

    def stop(self, number: int = signal.SIGKILL) -> None:
        """End all that runs on the machine, as a power cut does."""
        for _ in range(50):
            pids = self.processes()
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)
            if not pids:
                break
            time.sleep(0.1)
        if self.raylet is not None:
            self.raylet.wait()
            self.raylet = None

    def pause(self) -> None:
        """Stop all that runs on the machine without ending it, as a machine that hangs; `resume` lets it go on."""
        for pid in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)

    def resume(self) -> None:
        """Let the processes of a machine that was paused go on."""
        for pid in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


class Network:
    """A bridge with machines: `add` makes one. The first is the head of the Ray cluster, which requires a token.

    Args:
        folder: for the token and for Ray's sockets; its path must be short.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.bridge = folder, f"vt{os.getpid()}"  # a name of an interface has at most 15 characters
        self.machines: list[Machine] = []
        token = folder / "token"
        token.write_text(os.urandom(32).hex())
        token.chmod(0o600)
        self.ray = folder / "ray"
        self.ray.mkdir()
        self.environment = {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(token),
            "RAY_TMPDIR": str(self.ray),
            "RAY_health_check_period_ms": "1000",
            "PYTHONPATH": str(Path(__file__).parents[2]),
            "OMP_NUM_THREADS": "1",
        }

    @property
    def head(self) -> Machine:
        """The first machine."""
        return self.machines[0]

    @property
    def address(self) -> str:
        """HOST:PORT of the Ray cluster."""
        return f"{self.head.address}:{PORT}"

    def add(self, name: str, setup: str = "") -> Machine:
        """Make a machine; arguments as of Machine."""
        number = len(self.machines) + 1
        machine = Machine(self, name, f"10.77.0.{number}", setup)
        self.machines.append(machine)
        inner, outer = "eth0", f"{self.bridge}-v{number}"
        ip("netns", "add", machine.namespace)
        ip("link", "add", outer, "type", "veth", "peer", "name", inner, "netns", machine.namespace)
        ip("link", "set", outer, "master", self.bridge, "up")
        within = ("-n", machine.namespace)
        ip(*within, "addr", "add", f"{machine.address}/24", "dev", inner)
        ip(*within, "link", "set", inner, "up")
        ip(*within, "link", "set", "lo", "up")
        return machine

    def __enter__(self) -> Network:
        ip("link", "add", self.bridge, "type", "bridge")
        ip("link", "set", self.bridge, "up")
        return self

    def __exit__(self, *_: object) -> None:
        for machine in reversed(self.machines):
            machine.stop()
            ip("netns", "del", machine.namespace)
        ip("link", "del", self.bridge)


def ip(*words: str) -> None:
    """Run `ip`."""
    subprocess.run(["ip", *words], check=True)


@contextlib.contextmanager
def ray_network(folder: Path, machines: Sequence[tuple[str, str]], *, cpus: int = 1) -> Iterator[Network]:
    """Yield a network with a Ray cluster of these machines, each with its setup; the first is the head, without cores.

    cpus: that each of the others offers.
    """
    with Network(folder) as network:
        for name, setup in machines:
            network.add(name, setup)
        for number, machine in enumerate(network.machines):
            machine.start_ray(f"--num-cpus={cpus if number else 0}")
            if number == 0:
                wait_for_head(network)
        wait_for_nodes(network, network.machines)
        yield network


def wait_for_head(network: Network, seconds: float = 120) -> None:
    """Wait until the head accepts connections."""
    code = f"import socket; socket.create_connection(({network.head.address!r}, {PORT}), 1)"
    end = time.monotonic() + seconds
    while network.head.run(sys.executable, "-c", code).returncode:
        assert time.monotonic() < end, "the head does not start"
        network.head.start_ray_again_if_ended()
        time.sleep(0.2)


WAIT = """
import sys, time
import ray
ray.init(address=sys.argv[1], log_to_driver=False, logging_level="ERROR")
wanted, end = set(sys.argv[3:]), time.monotonic() + 20
while True:
    alive = {node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]}
    if wanted <= alive if sys.argv[2] == "joined" else not wanted & alive:
        break
    if time.monotonic() > end:
        sys.exit(1)
    time.sleep(0.2)
"""


def wait_for_nodes(network: Network, machines: Sequence[Machine], seconds: float = 240) -> None:
    """Wait until these machines are in the cluster; a Ray node that has given up is started again."""
    end, words = time.monotonic() + seconds, ["joined", *(machine.address for machine in machines)]
    while (done := network.head.run(sys.executable, "-c", WAIT, network.address, *words)).returncode:
        assert time.monotonic() < end, done.stdout
        for machine in machines:
            machine.start_ray_again_if_ended()


def wait_for_loss(network: Network, machine: Machine, seconds: float = 120) -> None:
    """Wait until Ray has noticed that a machine was stopped."""
    end = time.monotonic() + seconds
    while (done := network.head.run(sys.executable, "-c", WAIT, network.address, "lost", machine.address)).returncode:
        assert time.monotonic() < end, done.stdout
