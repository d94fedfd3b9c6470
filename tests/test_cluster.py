"""The Ray cluster of a sweep: how it starts and ends, and how much fits on it."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
from helpers import clean_environment, voxtune
from listeners import descendants, listeners
from ray.tune.execution.tune_controller import _get_max_pending_trials
from ray.tune.search import Searcher
from ray.tune.search.search_generator import SearchGenerator

from trainable.core.errors import InputError
from tune.driver.cluster import connection
from tune.driver.cluster.connection import LONGEST_TEMP_DIR, Cluster, running_or_new, shorten_temp_dir, slots_for

SCRIPT = """
import signal, time
from tune.__main__ import stop
from tune.driver.cluster.connection import Cluster

signal.signal(signal.SIGTERM, stop)
with Cluster() as cluster:
    print("starting", flush=True)
    cluster.wait()
    print("started", flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize("moment", ["starting", "started"])
def test_sigterm_ends_the_process_and_its_cluster_cleanly(moment: str) -> None:
    process = subprocess.Popen([sys.executable, "-c", SCRIPT], stdout=-1, stderr=-1, text=True)
    assert process.stdout is not None
    while process.stdout.readline().strip() != moment:
        assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    assert errors.strip() == "stopped by SIGTERM; what was finished is kept"


def test_a_cluster_of_the_caller_ends_with_the_caller_and_a_new_one_with_its_own_context(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    events: list[str] = []

    def start(address: str | None) -> None:
        time.sleep(0.2)
        events.append(f"start {address}")

    monkeypatch.setattr(connection, "start_ray", start)
    monkeypatch.setattr(ray, "shutdown", lambda: events.append("end"))
    with Cluster("here") as one:
        with running_or_new(one, "elsewhere") as same:
            assert same is one
        assert events == []
        one.wait()
        assert events == ["start here"]
    assert events == ["start here", "end"]
    with running_or_new(None, "there"):
        pass
    assert events[2:] == ["start there", "end"]


def test_an_error_of_the_start_is_raised_by_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(address: str | None) -> None:
        raise InputError("no cluster answers there")

    monkeypatch.setattr(connection, "start_ray", start)
    with Cluster("here"):
        pass  # nobody asks
    with pytest.raises(InputError, match="no cluster answers there"), Cluster("here") as one:
        one.wait()


def test_a_machine_that_is_too_busy_to_start_a_cluster_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray gives up after a while, for which no test waits: its error is raised at once."""

    def init(**_: object) -> None:
        raise Exception("The current node timed out during startup. This could happen because ...")

    monkeypatch.setattr(ray, "init", init)
    with Cluster() as cluster, pytest.raises(InputError, match="not started within 120 s: .* when it is less busy"):
        cluster.wait()


def test_what_ray_reads_is_set_and_what_the_user_has_set_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "start_ray", lambda address: None)
    monkeypatch.setenv("TUNE_MAX_PENDING_TRIALS_PG", "3")
    monkeypatch.delenv("RAY_AIR_NEW_OUTPUT", raising=False)
    with Cluster():
        assert os.environ["TUNE_MAX_PENDING_TRIALS_PG"] == "3"
        assert os.environ["RAY_AIR_NEW_OUTPUT"] == "0"


def test_ray_is_to_start_all_processes_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """By default it starts one after the other for a searcher that is not its own."""
    monkeypatch.setattr(connection, "start_ray", lambda address: None)
    monkeypatch.delenv("TUNE_MAX_PENDING_TRIALS_PG", raising=False)
    assert _get_max_pending_trials(SearchGenerator(Searcher())) == 1
    with Cluster():
        assert _get_max_pending_trials(SearchGenerator(Searcher())) == 100_000


def test_shares_of_a_gpu_are_not_put_together_from_two() -> None:
    assert slots_for(2, 0.4) == 4
    assert slots_for(4, 0.3) == 12
    assert slots_for(1, 1 / 3) == 3
    assert slots_for(8, 1.0) == 8
    assert slots_for(7, 2.0) == 3
    assert slots_for(0, 0.5) == 0


def test_a_ray_client_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    words = ["launch", "demo", "--data", tmp_path, "--out", tmp_path / "run", "--address", "ray://head:10001"]
    done = voxtune(*words)
    assert done.returncode == 2
    assert "--address ray://head:10001: a Ray Client cannot drive a sweep; give HOST:PORT" in done.stderr
    assert "ray job submit" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_temporary_folder_with_a_long_path_is_replaced_for_ray(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setattr("tempfile.tempdir", "/" + (LONGEST_TEMP_DIR - 1) * "a")
    shorten_temp_dir()
    assert "RAY_TMPDIR" not in os.environ
    monkeypatch.setattr("tempfile.tempdir", "/" + LONGEST_TEMP_DIR * "a")
    monkeypatch.setenv("RAY_TMPDIR", "")  # so that it is removed after the test
    shorten_temp_dir()
    folder = Path(os.environ["RAY_TMPDIR"])
    assert folder == Path(f"/tmp/voxtune-{os.getuid()}")
    assert folder.stat().st_mode & 0o777 == 0o700
    monkeypatch.setenv("RAY_TMPDIR", "/" + LONGEST_TEMP_DIR * "a")
    with pytest.raises(InputError, match=r"RAY_TMPDIR /a+: \d+ bytes are too many .* such as RAY_TMPDIR=/tmp"):
        shorten_temp_dir()


@pytest.mark.slow
def test_a_cluster_starts_with_the_longest_temporary_folder_and_with_a_longer_one(tmp_path: Path) -> None:
    for length in (LONGEST_TEMP_DIR, LONGEST_TEMP_DIR + 1):
        folder = tempfile.mkdtemp(dir="/tmp", prefix="v" * (length - len("/tmp/") - 8))
        assert len(folder) == length
        environment = {name: value for name, value in clean_environment().items() if name != "RAY_TMPDIR"}
        code = "from tune.driver.cluster.connection import Cluster\nwith Cluster() as cluster: cluster.wait()"
        subprocess.run([sys.executable, "-c", code], check=True, env=environment | {"TMPDIR": folder})
        assert (Path(folder) / "ray").exists() == (length == LONGEST_TEMP_DIR)
        shutil.rmtree(folder)


def test_ray_is_imported_without_a_home_and_an_entry_in_passwd() -> None:
    """As in a container that runs as a bare number."""
    names = ("HOME", "USER", "LOGNAME", "LNAME", "USERNAME")
    environment = {name: value for name, value in clean_environment().items() if name not in names}
    code = "import getpass; from pathlib import Path; import tune.driver.cluster.connection; "
    code += "print(Path.home(), getpass.getuser())"
    unshare = ["unshare", "--user", "--map-user=4242"]
    if subprocess.run([*unshare, "true"], check=False).returncode:
        pytest.skip("needs user namespaces")
    done = subprocess.run([*unshare, sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.stdout == "/tmp/voxtune-4242 4242\n", done.stderr


def test_the_packages_that_all_nodes_get_are_those_of_this_code() -> None:
    assert connection.shipped_packages() == [str(Path(__file__).parents[1] / name) for name in ("trainable", "tune")]


@pytest.mark.slow
def test_a_local_cluster_has_the_cores_that_the_process_may_use() -> None:
    code = "import ray\nfrom tune.driver.cluster.connection import Cluster\n"
    code += "with Cluster() as cluster:\n    cluster.wait()\n"
    code += "    print(ray.cluster_resources()['CPU'])"
    command = ["taskset", "-c", str(min(os.sched_getaffinity(0))), sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=clean_environment())
    assert done.stdout == "1.0\n"


LISTENING = """
import sys, time
import ray
from tune.driver.cluster.connection import Cluster

with Cluster() as cluster:
    cluster.wait()
    work = ray.remote(lambda: 1)
    ray.get(work.remote())  # a worker listens too
    print(ray.get_runtime_context().gcs_address, flush=True)
    time.sleep(600)
"""
STRANGER = """
import sys
import ray

ray.init(address=sys.argv[1], log_to_driver=False)
print(ray.get(ray.remote(lambda: "inside").remote()))
"""


def other_address() -> str:
    """An address of this machine that is not of its loopback device; "" without one."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe, contextlib.suppress(OSError):
        probe.connect(("192.0.2.1", 9))  # sends nothing
        return str(probe.getsockname()[0])
    return ""


def answers(address: str, port: int) -> bool:
    """Does a server accept a connection there?"""
    try:
        socket.create_connection((address, port), timeout=2).close()
    except OSError:
        return False
    return True


@pytest.fixture(scope="module")
def local_cluster() -> Iterator[tuple[int, str]]:
    """A process with a local cluster: its number, and the address of the cluster."""
    process = subprocess.Popen(
        [sys.executable, "-c", LISTENING], stdout=subprocess.PIPE, text=True, env=clean_environment()
    )
    try:
        assert process.stdout is not None
        yield process.pid, process.stdout.readline().strip()
    finally:
        process.terminate()
        process.wait()


def run_script(script: str, *words: str, home: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a script with another HOME, where Ray looks for its token."""
    return subprocess.run(
        [sys.executable, "-c", script, *words],
        capture_output=True, text=True, check=False, env=clean_environment() | environment | {"HOME": str(home)},
    )  # fmt: skip


@pytest.mark.slow
def test_a_local_cluster_is_closed_to_the_network_and_to_who_has_no_token(
    local_cluster: tuple[int, str], tmp_path: Path
) -> None:
    pid, address = local_cluster
    ports = sorted(port for _, port in listeners(descendants(pid)))
    assert len(ports) >= 4
    assert all(answers("127.0.0.1", port) for port in ports)
    if (outside := other_address()) not in ("", "127.0.0.1"):
        assert not [port for port in ports if answers(outside, port)]
    stranger = run_script(STRANGER, address, home=tmp_path)
    assert stranger.returncode == 1
    assert "inside" not in stranger.stdout
    assert "InvalidAuthToken" in stranger.stderr


@pytest.mark.parametrize(
    "environment",
    [{"RAY_AUTH_MODE": "token"}, {}],
    ids=["no token", "another token"],
)
def test_a_refused_token_is_named(local_cluster: tuple[int, str], tmp_path: Path, environment: dict[str, str]) -> None:
    script = f"from tune.driver.cluster.connection import start_ray; start_ray({local_cluster[1]!r})"
    other = run_script(script, home=tmp_path, **environment)
    assert "InputError: --address" in other.stderr
    assert "RAY_AUTH_TOKEN" in other.stderr
