"""The check of a cluster's nodes: what each row finds wrong, the marks in folders, the table, the verb."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import jsonschema
import pytest
from helpers import SPACE, voxtune, voxtune_here

from tune.analysis.json_output.outputs import json_schema
from tune.nodes.cells import Level, Node, Reference
from tune.nodes.checks import examine
from tune.nodes.facts import Gpu, NodeFacts, NodeWitness, read_gpus, required_packages, torch_version
from tune.nodes.folders import Folder, FolderFacts, Sight, Use, look_at, marked_folders, with_answer
from tune.nodes.report import NodeColumn, NodesReport
from tune.terminal.node_table import node_lines

GIB = 2**30
VERSIONS = {"torch": "2.13.0+cu126", "ray": "2.60.0", "numpy": "2.1.0", "nibabel": "5.3.2"}
HERE = Reference("3.11.7", VERSIONS, "abc", "0.1.0")
SEEN = FolderFacts(Sight.SEEN, 100 * GIB, 200 * GIB, locks=True)
WELL = NodeFacts(
    "3.11.7",
    VERSIONS,
    "abc",
    gpus=(Gpu("NVIDIA H100", 80 * GIB),) * 4,
    gpu_driver="570.1",
    torch_gpus=4,
    folders=dict.fromkeys(("DATA", "cache", "RUN"), SEEN),
    disks={"Ray's disk": SEEN, "TMPDIR's disk": SEEN},
    shared_memory=8 * GIB,
    open_files=65536,
)
NODE = Node("node-a", "10.0.0.2", {"CPU": 16.0, "GPU": 4.0}, facts=WELL)


def with_facts(**changes: object) -> Node:
    """The healthy node, but for some facts."""
    return replace(NODE, facts=replace(WELL, **changes))  # type: ignore[arg-type]


def with_folder(role: str, **changes: object) -> Node:
    """The healthy node, but for how it sees a folder."""
    return with_facts(folders=WELL.folders | {role: replace(SEEN, **changes)})  # type: ignore[arg-type]


def test_nothing_is_wrong_with_a_node_that_has_what_the_driver_has() -> None:
    assert {cell.level for cell in examine(NODE, HERE).values()} == {Level.OK}
    assert examine(with_facts(gpus=(), gpu_driver=""), HERE)["GPUs"].text == "4 by torch"  # without nvidia-smi
    builds = with_facts(versions={**VERSIONS, "torch": "2.13.0+cpu"})  # as on a head without a GPU
    assert examine(builds, HERE)["torch"].level == Level.OK


SMALL = replace(SEEN, free=GIB)
SICK = {
    "Python minor": ("Python", with_facts(python="3.12.1"), Level.WRONG, "3.12.1, the driver has 3.11.7"),
    "Python patch": ("Python", with_facts(python="3.11.9"), Level.WARNING, "3.11.9, the driver has 3.11.7"),
    "torch": ("torch", with_facts(versions={**VERSIONS, "torch": "2.10.0"}), Level.WRONG, "install torch==2.13.0 "),
    "no torch": ("torch", with_facts(versions={**VERSIONS, "torch": ""}), Level.WRONG, "torch is missing"),
    "Ray": ("Ray", with_facts(versions={**VERSIONS, "ray": "2.59.0"}), Level.WRONG, "install ray==2.60.0"),
    "code": ("voxtune", with_facts(code="def"), Level.WRONG, "other code of voxtune"),
    "missing": ("packages", with_facts(versions={**VERSIONS, "nibabel": ""}), Level.WRONG, "pip install nibabel==5.3"),
    "other": ("packages", with_facts(versions={**VERSIONS, "numpy": "2.0"}), Level.WARNING, "numpy 2.0 instead of 2.1"),
    "lost GPU": (
        "GPUs",
        with_facts(gpus=(), gpu_driver="", torch_gpus=0, torch_error="No CUDA GPUs are available"),
        Level.WRONG,
        "Ray gives away 4 GPUs, nvidia-smi shows none, torch reaches none (No CUDA GPUs are available)",
    ),
    "idle GPU": ("GPUs", replace(NODE, resources={"CPU": 16.0}), Level.WARNING, "Ray gives away none of its 4 GPUs"),
    "driver": (
        "GPU driver",
        with_facts(torch_gpus=0, torch_error="The NVIDIA driver on your system is too old"),
        Level.WRONG,
        "torch reaches none (The NVIDIA driver on your system is too old) of its 4 GPUs: renew NVIDIA's",
    ),
    "DATA": ("DATA", with_folder("DATA", sight=Sight.EMPTY), Level.WARNING, "is empty, as without its mount"),
    "cache": ("cache", with_folder("cache", sight=Sight.MISSING), Level.WRONG, "there is no such folder; mount"),
    "RUN": ("RUN", with_folder("RUN", sight=Sight.OTHER), Level.WRONG, "not the driver's; mount"),
    "lost": ("RUN", with_folder("RUN", sight=Sight.UNSHARED), Level.WRONG, "does not reach the driver"),
    "write": ("RUN", with_folder("RUN", sight=Sight.READ_ONLY, error="Permission denied"), Level.WRONG, "Permission"),
    "lock": ("locks in RUN", with_folder("RUN", locks=False), Level.WARNING, "the driver's locks do not hold there"),
    "no locks": ("locks in RUN", with_folder("RUN", locks=None), Level.WARNING, "its file system has no locks"),
    "RUN's disk": ("free in RUN", with_folder("RUN", free=GIB), Level.WARNING, "1.0 GiB free, 100 % are in use"),
    "Ray's disk": (
        "free for Ray",
        with_facts(disks={"Ray's disk": replace(SEEN, free=9 * GIB)}),
        Level.WARNING,
        "9.0 GiB free, 96 % are in use: make room, or start Ray there with another --temp-dir",
    ),
    "TMPDIR": ("free in TMPDIR", with_facts(disks={"TMPDIR's disk": SMALL}), Level.WARNING, "another TMPDIR"),
    "/dev/shm": ("/dev/shm", with_facts(shared_memory=64 * 2**20), Level.WARNING, "in Docker start with --shm-size=8g"),
    "files": (
        "open files",
        with_facts(open_files=1024),
        Level.WARNING,
        "may open 1024 files: start Ray there after `ulimit -n 65536`; if that is refused, the administrator raises",
    ),
    "clock": ("clock", replace(NODE, clock=(-60.0, 0.01)), Level.WARNING, "clock is 60.0 s behind the driver's"),
    "dead": ("answers", replace(NODE, facts=None, silence="no answer within 9 s"), Level.WRONG, "no answer within 9 s"),
}


@pytest.mark.parametrize("case", SICK)
def test_what_is_wrong_is_named_with_what_to_do(case: str) -> None:
    row, node, level, advice = SICK[case]
    cells = examine(node, HERE)
    assert cells[row].level == level
    assert [title for title, cell in cells.items() if cell.level != Level.OK] == [row]
    assert advice in cells[row].advice


def test_what_is_wrong_with_a_node_that_takes_no_trials_is_a_warning() -> None:
    head = replace(with_facts(versions={**VERSIONS, "torch": "2.10.0"}), takes_trials=False)
    assert examine(head, HERE)["torch"].level == Level.WARNING


def test_the_listing_of_nvidia_smi_is_read() -> None:
    gpus, driver = read_gpus("NVIDIA H100 80GB HBM3, 81559, 570.1\nNVIDIA A10, [N/A], 570.1\n")
    assert gpus == (Gpu("NVIDIA H100 80GB HBM3", 81559 * 2**20), Gpu("NVIDIA A10", 0))
    assert driver == "570.1"
    assert read_gpus("") == ((), "")


def test_the_version_of_torch_is_known_without_its_import_and_the_requirements_by_name() -> None:
    code = "import sys; from tune.nodes.facts import torch_version; print(torch_version(), 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    import torch

    assert done.stdout == f"{torch.__version__} False\n"
    assert torch_version() == torch.__version__
    assert {"torch", "ray", "nibabel", "pyyaml"} <= set(required_packages())
    assert not {"pytest", "mypy"} & set(required_packages())


@pytest.fixture
def folders(tmp_path: Path) -> dict[str, Folder]:
    """DATA with a case, a cache and a RUN that do not exist yet."""
    (tmp_path / "data/case").mkdir(parents=True)
    return {
        "DATA": Folder(tmp_path / "data", Use.NOBODY),
        "cache": Folder(tmp_path / "deep/cache", Use.CACHE),
        "RUN": Folder(tmp_path / "run", Use.BOTH),
    }


@contextlib.contextmanager
def other_process(code: str, *words: object) -> Iterator[str]:
    """What another process prints."""
    yield subprocess.run(
        [sys.executable, "-c", code, *map(str, words)], capture_output=True, text=True, check=True
    ).stdout


LOOK = """
import pickle, sys
from tune.nodes.folders import look_at
marks = pickle.loads(bytes.fromhex(sys.argv[1]))
for role in marks:
    found = look_at(marks[role], "node1")
    print(role, found.sight, found.locks, bool(found.free))
"""


def test_another_process_sees_the_marks_and_the_lock_and_nothing_is_left(
    folders: dict[str, Folder], tmp_path: Path
) -> None:
    import pickle

    with marked_folders(folders, "token" * 4) as marks:
        with other_process(LOOK, pickle.dumps(marks).hex()) as text:
            assert text == "DATA seen None True\ncache seen True True\nRUN seen True True\n"
        assert with_answer(marks["RUN"], SEEN, "node1") == SEEN
        assert with_answer(marks["RUN"], SEEN, "node2").sight == Sight.UNSHARED  # which has written nothing
        assert with_answer(marks["cache"], SEEN, "node2") == SEEN  # to which nodes do not write
    assert sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*")) == [Path("data"), Path("data/case")]


def test_a_folder_that_is_not_the_driver_s_is_told_from_one_that_is_gone_or_empty(
    folders: dict[str, Folder], tmp_path: Path
) -> None:
    with marked_folders(folders, "token" * 4) as marks:
        sights = {}
        for state in ("other", "empty", "gone"):
            for name in ("data", "run"):
                shutil.rmtree(tmp_path / name)
                if state != "gone":
                    (tmp_path / name).mkdir()
                if state == "other":
                    (tmp_path / name / "something").touch()
            sights[state] = [look_at(marks[role], "n").sight for role in ("DATA", "RUN")]
            for name in ("data", "run"):
                (tmp_path / name).mkdir(exist_ok=True)
    assert sights == {
        "other": [Sight.OTHER, Sight.OTHER],
        "empty": [Sight.EMPTY, Sight.EMPTY],
        "gone": [Sight.MISSING, Sight.MISSING],
    }


def test_a_lock_that_does_not_hold_is_noticed(folders: dict[str, Folder], monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a mount whose locks are local: here the driver does not lock at all."""
    with monkeypatch.context() as patched:
        patched.setattr(fcntl, "flock", lambda *_: None)
        context = marked_folders(folders, "token" * 4)
        marks = context.__enter__()
    assert look_at(marks["RUN"], "node1").locks is False
    context.__exit__(None, None, None)


def test_a_node_that_may_not_write_is_told_so(folders: dict[str, Folder]) -> None:
    if os.geteuid():
        pytest.skip("becomes another user")
    for parent in folders["RUN"].path.parents[:-2]:  # those of the tests, which other users may not enter
        os.chmod(parent, 0o755)
    with marked_folders(folders, "token" * 4) as marks:
        for path in folders["RUN"].path.glob("*.lock"):
            path.chmod(0o666)
        os.seteuid(65534)
        try:
            found = look_at(marks["RUN"], "node1")
        finally:
            os.seteuid(0)
    assert (found.sight, found.error) == (Sight.READ_ONLY, "Permission denied")


def test_what_a_node_tells_of_this_machine_is_so(tmp_path: Path) -> None:
    facts = NodeWitness().tell("node1", ["torch", "ray", "no-such-package"], {}, str(tmp_path), use_gpus=False)
    assert facts.versions["no-such-package"] == ""
    assert facts.disks["Ray's disk"].total == shutil.disk_usage(tmp_path).total
    assert facts.shared_memory == shutil.disk_usage("/dev/shm").total


def report_of(count: int, sick: int = 0) -> NodesReport:
    """A report of so many healthy nodes, and so many with another torch."""
    bad = with_facts(versions={**VERSIONS, "torch": "2.10.0"})
    columns = [NodeColumn(f"gpu-{n:04d}", f"10.0.{n // 250}.{n % 250}", examine(NODE, HERE)) for n in range(count)]
    columns += [NodeColumn(f"sick-{n}", f"10.9.0.{n}", examine(bad, HERE)) for n in range(sick)]
    return NodesReport("10.0.0.1:6379", tuple(columns))


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize(("count", "sick"), [(1, 0), (3, 1), (30, 2), (1000, 12)])
def test_the_table_fits_the_width_and_names_each_node(width: int, count: int, sick: int) -> None:
    lines = [line.plain for line in node_lines(report_of(count, sick), width)]
    assert max(map(len, lines)) <= width
    text = "\n".join(lines)
    assert all(text.count(f"gpu-{number:04d}") == 1 for number in range(count))
    assert text.count("✗ 2.10.0") == sick
    assert text.count("the driver has 2.13.0+cu126") == bool(sick)  # once for all of them
    assert ("ok: all nodes are well" in text) == (not sick)
    assert len(lines) < 400


def test_doctor_on_this_machine_has_json_by_its_schema_and_says_by_its_code_whether_all_is_well(tmp_path: Path) -> None:
    done = voxtune("doctor", "--out", tmp_path / "run", "--json", RAY_TMPDIR="/tmp")
    content = json.loads(done.stdout)
    jsonschema.validate(content, json_schema("doctor"))
    assert done.returncode == int(not content["ok"]), done.stderr
    (node,) = content["nodes"]
    found = {check["name"]: check for check in node["checks"]}
    assert node["name"].endswith(" (driver)")
    assert {
        found[name]["level"] for name in ("Python", "torch", "Ray", "voxtune", "packages", "RUN", "locks in RUN")
    } == {"ok"}
    assert "DATA" not in found
    assert list(tmp_path.iterdir()) == []


def test_wrong_arguments_are_refused_before_ray_starts(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for words, message in (
        (["--data", tmp_path / "no"], f"--data {tmp_path / 'no'}: no such folder"),
        ([tmp_path / "empty"], "no study.yaml there"),
        (["brts"], "no such file"),
        ([tmp_path / "empty", "--out", tmp_path / "run"], "leave out --out and --storage"),
    ):
        done = voxtune_here("doctor", *words)
        assert done.returncode == 2
        assert message in done.stderr
        assert "Traceback" not in done.stderr
    assert sorted(tmp_path.iterdir()) == [tmp_path / "empty"]


@pytest.mark.slow
def test_a_cluster_that_requires_no_token_and_a_trial_that_fits_nowhere_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        cluster.add_node(num_cpus=1)
        (tmp_path / "space.yaml").write_text(SPACE.replace("cpu: 1", "cpu: 2"))
        words = ["doctor", tmp_path / "space.yaml", "--address", cluster.address]
        done = voxtune(*words, "--json", RAY_AUTH_MODE="disabled")
        table = voxtune(*words, RAY_AUTH_MODE="disabled").stdout
    finally:
        cluster.shutdown()
    content = json.loads(done.stdout)
    assert done.returncode == 1
    assert [finding["level"] for finding in content["cluster"]] == ["warning", "wrong"]
    assert "takes commands from everyone who reaches its ports" in content["cluster"][0]["advice"]
    assert (
        "2 CPUs and 0 GPUs per trial, on one node; the cluster has 2 nodes of 1 CPUs" in content["cluster"][1]["advice"]
    )
    assert len({node["name"] for node in content["nodes"]}) == 2  # though both are this machine
    assert "✗ resources ask for 2 CPUs" in table
    assert "! this cluster takes commands" in table
