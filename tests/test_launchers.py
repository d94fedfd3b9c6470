"""A training by several processes that Slurm's srun or Ray Train starts, on the CPU with gloo."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from helpers import clean_environment, rows
from slurm_standin import write_programs
from test_ddp import ROOT, assert_same, flags, trained

from trainable.data.prepare import Data

RAY_TRAIN = """
import os, sys
from pathlib import Path
import ray
from ray.train import RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer

def train(config):
    from trainable.cli import main
    code = main(config["flags"])
    Path(config["folder"], f"{os.environ['RANK']}.txt").write_text(str(code))
    if code:
        raise RuntimeError("the training has failed, see above")

folder, *flags = sys.argv[1:]
ray.init(address="local", num_cpus=2, include_dashboard=False)
TorchTrainer(
    train, train_loop_config={"flags": flags, "folder": folder}, scaling_config=ScalingConfig(num_workers=2),
    run_config=RunConfig(storage_path=folder, name="run"),
).fit()
"""


def words_of(data: Data, phantoms: Path, output: Path) -> list[str]:
    return [str(word) for word in flags(data, phantoms, output, "--epochs", 2, "--batch_size", 2)]


def documented_srun(*program: str) -> str:
    """The lines of docs/training.md that start a training by srun, with another program and one process per node."""
    page = (ROOT / "docs/training.md").read_text()
    block = re.search(r"```\n(export MASTER_ADDR=.*?)```", page, re.DOTALL)
    assert block is not None
    lines = block[1].replace("--ntasks-per-node=4 --gpus-per-node=4", "--ntasks-per-node=1")
    assert lines != block[1]
    found = lines.replace("python train.py --data_dir DATA --output_dir OUT", shlex.join(program))
    assert found != lines
    return found


@pytest.mark.slow
def test_the_documented_srun_trains_as_one_process_does(prepared: Data, phantoms: Path, tmp_path: Path) -> None:
    trained(1, *words_of(prepared, phantoms, tmp_path / "one"))
    programs = tmp_path / "bin"
    programs.mkdir()
    write_programs(programs)
    job = {"SLURM_STANDIN": str(tmp_path), "SLURM_JOB_NUM_NODES": "2", "SLURM_JOB_NODELIST": "n[0-1]"}
    job |= {"SLURM_JOB_ID": str(os.getpid()), "PATH": f"{programs}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    script = documented_srun(sys.executable, str(ROOT / "train.py"), *words_of(prepared, phantoms, tmp_path / "two"))
    done = subprocess.run(
        ["bash", "-c", script], env=clean_environment() | job, capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("device: 2 x cpu") == done.stdout.count("epoch   2/2") == 1
    assert_same(tmp_path / "one", tmp_path / "two")


def ray_train(folder: Path, words: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """Train by Ray Train's TorchTrainer with two workers."""
    variables = clean_environment() | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "RAY_worker_niceness": "0"}
    folder.mkdir()
    return subprocess.run(
        [sys.executable, "-c", RAY_TRAIN, str(folder), *words],
        env=variables, capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.mark.slow
def test_workers_of_ray_train_train_as_one_process_does_and_go_on(
    prepared: Data, phantoms: Path, tmp_path: Path
) -> None:
    trained(1, *words_of(prepared, phantoms, tmp_path / "one"))
    done = ray_train(tmp_path / "train", words_of(prepared, phantoms, tmp_path / "two"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert [(tmp_path / "train" / f"{rank}.txt").read_text() for rank in (0, 1)] == ["0", "0"]
    assert_same(tmp_path / "one", tmp_path / "two")
    again = ray_train(tmp_path / "again", words_of(prepared, phantoms, tmp_path / "two"))
    assert again.returncode
    assert "already contains a training" in again.stdout + again.stderr
    assert "the training has failed, see above" in again.stdout + again.stderr
    assert len(rows(tmp_path / "two")) == 2
