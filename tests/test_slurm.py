"""cluster/slurm/voxtune.sbatch: real sweeps on two nodes of this machine, under stand-ins for Slurm and a real one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import yaml
from helpers import SPACE, clean_environment, rows, voxtune, wait_for
from slurm_cluster import SlurmCluster, why_not
from slurm_standin import JOB, write_programs

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "cluster/slurm/voxtune.sbatch"
REQUEUED = "the job goes back to the queue, and then resumes the sweep"
WITHOUT_SLURM = pytest.mark.skipif(bool(why_not()), reason=f"a real Slurm: {why_not()}")


def environment(folder: Path) -> dict[str, str]:
    """Return an environment whose PATH has this checkout's voxtune, and Ray and Python of the tests."""
    programs = folder / "bin"
    programs.mkdir()
    (programs / "voxtune").write_text(f'#!/bin/bash\nexec {sys.executable} -m tune "$@"\n')
    (programs / "voxtune").chmod(0o755)
    path = f"{programs}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    return clean_environment() | {"PATH": path, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def write_space(folder: Path, trials: int) -> Path:
    """Write the YAML of a sweep whose trials take some seconds on one CPU; return its path."""
    space = yaml.safe_load(SPACE)
    space["train"] |= {"patches_per_epoch": 48, "epochs": 8}
    space["study"]["trials"] = trials
    path = folder / "space.yaml"
    path.write_text(yaml.safe_dump(space))
    return path


def two_train(run: Path) -> bool:
    """Return whether the first two trials are both in the middle, which takes both nodes: each has one CPU."""
    return all(0 < len(rows(run / f"trials/{number:04d}")) < 8 for number in (0, 1))


def token_of(pid: str) -> str:
    """Return the token of Ray in the environment of a process."""
    variables = dict(item.split("=", 1) for item in Path(f"/proc/{pid}/environ").read_text().split("\0") if "=" in item)
    assert variables["RAY_AUTH_MODE"] == "token"
    return variables["RAY_AUTH_TOKEN"]


@pytest.mark.parametrize(
    ("job", "words", "message"),
    [
        ("", ["run", "demo"], "submit it: sbatch --nodes=2 --gpus-per-node=4 voxtune.sbatch RUN SPACE --data DATA"),
        ("1", [], "the folder of the sweep is missing; expected: voxtune.sbatch RUN SPACE --data DATA"),
        ("1", ["run"], "run has no sweep to resume; to launch one: voxtune.sbatch run SPACE --data DATA"),
        ("1", ["run", "--trials", "9"], "run has no sweep to resume; to launch one"),
    ],
)
def test_what_it_cannot_do_is_said_before_ray_starts(tmp_path: Path, job: str, words: list[str], message: str) -> None:
    variables = environment(tmp_path) | {"SLURM_JOB_ID": job}
    done = subprocess.run(
        ["bash", SCRIPT, *words], env=variables, cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert f"voxtune.sbatch: {message}" in done.stderr


def test_a_missing_environment_is_said(tmp_path: Path) -> None:
    done = subprocess.run(
        ["/bin/bash", SCRIPT, "run"], env={"SLURM_JOB_ID": "1", "PATH": "/usr/bin:/bin"}, cwd=tmp_path,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "no voxtune in PATH; activate the environment of voxtune before sbatch" in done.stderr


@pytest.mark.slow
def test_a_job_of_two_nodes_that_slurm_ends_goes_on_when_it_is_started_again(phantoms: Path, tmp_path: Path) -> None:
    """TERM to the batch shell alone, as `--signal=B:TERM@120` sends it; to Ray's processes alone, as a preemption does;
    to a cancelled job, which stays ended.
    """
    variables = environment(tmp_path) | {"SLURM_STANDIN": str(tmp_path)}
    write_programs(tmp_path / "bin")
    run, log = tmp_path / "run", tmp_path / "job.log"
    words = ["--nodes=2", "--cpus-per-task=1", SCRIPT, run, write_space(tmp_path, 5), "--data", phantoms, "--no_report"]
    sbatch = subprocess.Popen(
        [tmp_path / "bin/sbatch", *map(str, words)], env=variables, text=True, stdout=subprocess.PIPE
    )
    wait_for(sbatch, lambda: two_train(run))
    token = token_of((tmp_path / "step.pids").read_text().split()[0])
    os.kill(int((tmp_path / "batch.pid").read_text()), signal.SIGTERM)
    wait_for(sbatch, lambda: "resumed: attempt 2" in log.read_text())
    subprocess.run([tmp_path / "bin/scancel", "--signal=TERM", f"{JOB}.0"], env=variables, check=True)
    wait_for(sbatch, lambda: "resumed: attempt 3" in log.read_text())
    (tmp_path / "state").write_text("CANCELLED")
    os.kill(int((tmp_path / "batch.pid").read_text()), signal.SIGTERM)
    assert sbatch.wait(timeout=120) == 143, log.read_text()
    assert log.read_text().count(REQUEUED) == 2
    (tmp_path / "state").unlink()
    done = subprocess.run([tmp_path / "bin/sbatch", *map(str, words)], env=variables, check=False)
    text = log.read_text()
    assert done.returncode == 0, text
    assert text.count(f"voxtune launch {run}, with Ray at ") == 1
    assert text.count(f"voxtune resume {run}, with Ray at ") == 3
    assert not (run / "report.html").exists()  # --no_report holds for all four
    assert "all 5 trials have ended" in text
    assert voxtune("verify", run).returncode == 0
    assert not list(Path("/tmp").glob("voxtune-4711-*"))
    assert len(token) == 64
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and token.encode() in path.read_bytes()]


@pytest.mark.slow
@WITHOUT_SLURM
def test_a_real_slurm_requeues_a_job_that_it_ends_and_not_one_that_is_cancelled(phantoms: Path, tmp_path: Path) -> None:
    """`scancel --batch --signal=TERM` is what `--signal=B:TERM@120` does, at a moment that does not depend on speed."""
    run, log = tmp_path / "run", tmp_path / "job.log"
    variables = environment(tmp_path)
    size = ["--nodes=2", "--cpus-per-task=1", "--time=30", f"--output={log}"]
    words = [SCRIPT, run, write_space(tmp_path, 5), "--data", phantoms, "--no_report"]
    short = tempfile.TemporaryDirectory(dir="/tmp", ignore_cleanup_errors=True)
    with short as folder, SlurmCluster(Path(folder)) as slurm:
        slurm.environment |= variables | {"PATH": f"{variables['PATH']}:/usr/sbin:/sbin"}
        slurm.run("sbatch", *size, *map(str, words))
        slurm.wait_until(lambda: two_train(run), log)
        slurm.run("scancel", "1")
        slurm.wait_for("", "squeue", "-h", seconds=120)
        assert REQUEUED not in log.read_text()
        slurm.run("sbatch", *size, *map(str, words))
        slurm.wait_until(lambda: "resumed: attempt 2" in log.read_text(), log)
        slurm.run("scancel", "--batch", "--signal=TERM", "2")
        slurm.wait_until(lambda: REQUEUED in log.read_text(), log)
        slurm.wait_for("", "squeue", "-h", seconds=300)
    text = log.read_text()
    assert text.count("resumed: attempt") == 2
    assert "all 5 trials have ended" in text
    assert voxtune("verify", run).returncode == 0
