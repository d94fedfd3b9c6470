"""Which GPUs a sweep reserves, and what becomes of a trial whose torch sees none of them, or not all."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import SPACE, SWEEP, voxtune

from trainable.core.config import TrainConfig
from trainable.core.device import missing_gpu_reason
from trainable.core.errors import InputError
from trainable.core.options import to_dict
from trainable.data.prepare import Data
from trainable.data.split import save_split
from tune.driver.cluster.connection import Cluster
from tune.driver.measurement.trial_gpus import resolve_gpu
from tune.driver.processes import node_processes, worker
from tune.driver.processes.gpu_share import missing_gpu
from tune.driver.processes.node_processes import NodeStarter
from tune.driver.processes.node_trouble import NodeTroubleError
from tune.driver.processes.training_process import TrainingProcess, TrainingSpec
from tune.driver.scheduling.searcher import OptunaSearcher
from tune.driver.scheduling.storage_watch import StorageWatch
from tune.driver.sweep import launch
from tune.run.results import Run, read_run
from tune.run.run_dir import RunDir
from tune.search.journal import Journal, read_trials
from tune.spec.space import ConfigErrors
from tune.spec.sweep_config import SweepConfig, make_sweep_config
from tune.spec.sweep_file import dump, load_sweep_config
from tune.spec.trial_spec import TrialSpec

no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="torch sees a GPU")


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A cluster that claims a GPU, as one whose driver is too old for torch has it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_OVERRIDE_RESOURCES", '{"CPU": 1, "GPU": 2}')
        cluster = Cluster().__enter__()
        cluster.wait()
    yield cluster
    cluster.__exit__()


def config_of(**sections: dict[str, Any]) -> SweepConfig:
    return make_sweep_config({**SWEEP, **sections})


def test_a_gpu_that_is_not_given_is_one_per_trial_if_there_is_one(
    cluster: Cluster, capsys: pytest.CaptureFixture[str]
) -> None:
    assert config_of().resources.gpu is None
    assert resolve_gpu(config_of()).resources.gpu == 1
    assert capsys.readouterr().out == "resources.gpu: not given, so it is 1 (the cluster has 2 GPUs)\n"
    assert resolve_gpu(config_of(train={"epochs": 9, "device": "cpu"})).resources.gpu == 0
    assert capsys.readouterr().out == "resources.gpu: not given, so it is 0 (train.device is cpu)\n"
    assert resolve_gpu(config_of(resources={"gpu": 0.5})).resources.gpu == 0.5
    assert capsys.readouterr().out == ""


def test_a_gpu_of_0_trains_on_the_cpu_and_that_is_said_once(
    cluster: Cluster, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    config = resolve_gpu(config_of(resources={"gpu": 0})).with_record(cache_dir="/cache", attempts=[])
    assert config.resources.gpu == 0
    said = "resources.gpu is 0: trials train on the CPU; the cluster has 2 GPUs, see --set resources.gpu=1\n"
    assert capsys.readouterr().out == said

    class One:
        def count(self) -> int:
            return 1

    run, storage = Run(RunDir(tmp_path), config, []), StorageWatch("")
    searcher = OptunaSearcher(Journal(tmp_path, config), run, One(), storage)  # type: ignore[arg-type]
    assert searcher.suggest("trial")["recipe"]["device"] == "cpu"


def test_a_gpu_that_is_not_given_stays_so_in_the_file_and_conflicts_with_nothing(tmp_path: Path) -> None:
    values = {"study": {"gpu_hours": 2.0}, "train": {"device": "cuda"}}
    config = config_of(**values)
    (tmp_path / "study.yaml").write_text(dump(config))
    assert load_sweep_config(tmp_path / "study.yaml") == config
    for section, message in (("study", "gpu_hours would never be spent"), ("train", "but train.device is cuda")):
        with pytest.raises(ConfigErrors, match=message):
            config_of(**{section: values[section]}, resources={"gpu": 0})


@no_gpu
def test_torch_s_build_and_its_own_error_say_why_there_is_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    build = f"for CUDA {torch.version.cuda}" if torch.version.cuda else "built for the CPU only"
    expected = f"torch {torch.__version__}, {build}, CUDA_VISIBLE_DEVICES='3': "
    assert missing_gpu_reason().startswith(expected)
    assert len(missing_gpu_reason()) > len(expected) + 10


@pytest.fixture
def reserving(phantoms: Path, prepared: Data, tmp_path: Path) -> Callable[[Any], SweepConfig]:
    """A function that returns the config of a sweep whose trials reserve GPUs."""
    path = tmp_path / "space.yaml"
    path.write_text(SPACE.replace("device: cpu", "device: auto"))
    paths = [f"train.data_dir={phantoms}", f"train.cache_dir={prepared.folder}"]
    return lambda gpu: load_sweep_config(path, [*paths, f"resources.gpu={gpu}", "study.trials=2"])


@pytest.mark.slow
@no_gpu
def test_a_sweep_whose_trials_see_no_reserved_gpu_ends_with_the_reason_and_can_be_resumed(
    cluster: Cluster, reserving: Callable[[Any], SweepConfig], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before, the trials trained on the CPU without a word."""
    with pytest.raises(SystemExit) as ended:
        launch(reserving(1), tmp_path / "run", cluster=cluster)
    assert ended.value.code == 1
    [line] = [line for line in capsys.readouterr().out.splitlines() if line.startswith("stopped by")]
    assert "stopped by resources.gpu: 1 GPU is reserved on " in line
    assert f"but torch sees none there (torch {torch.__version__}, " in line
    assert "--set resources.gpu=0 to train on the CPU; go on with: " in line
    [trial] = read_run(tmp_path / "run").trials
    assert (trial.status, trial.epoch) == ("interrupted", 0)
    assert "torch sees none there" in (tmp_path / "run" / "trials" / "0000" / "stdout.log").read_text()


@no_gpu
def test_auto_is_not_measured_where_torch_sees_no_gpu(
    cluster: Cluster, reserving: Callable[[Any], SweepConfig]
) -> None:
    with pytest.raises(InputError, match=r"^resources.gpu: 1 GPU is reserved on .*, but torch sees none there \(torch"):
        resolve_gpu(reserving("auto"))


@pytest.fixture
def lost_gpu(monkeypatch: pytest.MonkeyPatch) -> str:
    """Torch sees one GPU of two; returns what is said of that."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    return (
        f"resources.gpu: 2 GPUs are reserved on {platform.node()}, but torch sees 1 of them "
        "(CUDA_VISIBLE_DEVICES='0,1'); look at `nvidia-smi` there: restart the node if a GPU has fallen off the bus, "
        "or start Ray there with the --num-gpus that are left"
    )


@pytest.mark.parametrize(("share", "missing"), [(0.5, False), (1, False), (2, True)])
def test_fewer_gpus_than_are_reserved_are_named_with_what_to_do(lost_gpu: str, share: float, missing: bool) -> None:
    assert missing_gpu(share) == (lost_gpu if missing else "")


def test_a_trial_ends_the_sweep_if_one_of_its_gpus_is_lost(
    lost_gpu: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reports: list[dict[str, Any]] = []
    monkeypatch.setattr(worker.ray_tune, "report", lambda report: reports.append(report))
    monkeypatch.setattr(worker, "freeze_imports", lambda: None)
    spec = TrialSpec(
        number=3, recipe=to_dict(TrainConfig(device="cuda")), checkpoint=None, cpu=1, gpu_share=2, nodes=1,
        lock_file=str(tmp_path / "lock"), stdout_log=str(tmp_path / "stdout.log"), report_timeout=None, data=None,
        contents_file=str(tmp_path / "cases.json"),
    )  # fmt: skip
    worker.run_trial(spec, lambda *_: pytest.fail("it trains"))
    assert [report["sweep_error"] for report in reports] == [lost_gpu]


def test_a_gpu_that_is_lost_between_two_trainings_ends_them_all(lost_gpu: str, prepared: Data, tmp_path: Path) -> None:
    (tmp_path / ".workers").touch()
    save_split(prepared.split, tmp_path / "split.json")
    paths = {"output_dir": tmp_path / "one", "cache_dir": prepared.folder, "split_file": tmp_path / "split.json"}
    recipe = to_dict(TrainConfig(device="cuda", **paths))
    process = TrainingProcess(1, 2, str(tmp_path / ".workers"))
    assert process.prepare() == lost_gpu
    assert process.run(TrainingSpec(recipe, False, None, None)).trouble == lost_gpu


def test_no_process_starts_on_another_node_that_has_lost_a_gpu(lost_gpu: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node_processes.ray, "get_gpu_ids", lambda: [0, 1])
    with pytest.raises(NodeTroubleError) as raised:
        NodeStarter().start([2, 3], 1, "127.0.0.1 1", "00")
    assert str(raised.value) == lost_gpu


@pytest.mark.gpu
@pytest.mark.parametrize("options", [[], ["--set", "resources.gpu=0"]])
def test_on_a_gpu_a_sweep_trains_there_unless_the_cpu_is_requested(
    phantoms: Path, prepared: Data, tmp_path: Path, options: list[str]
) -> None:
    space = tmp_path / "space.yaml"
    space.write_text(SPACE.replace("device: cpu", "device: auto").replace("resources: {gpu: 0, cpu: 1}\n", ""))
    words = ["launch", space, "--data", phantoms, "--out", tmp_path / "run", "--trials", "1"]
    words += ["--set", f"train.cache_dir={prepared.folder}", *options]
    done = voxtune(*words, RAY_OVERRIDE_RESOURCES='{"CPU": 1, "GPU": 1}')
    assert done.returncode == 0, done.stdout + done.stderr
    device = read_trials(tmp_path / "run")[0].user_attrs["progress"]["device"]
    if options:
        assert "resources.gpu is 0: trials train on the CPU; the cluster has 1 GPU, see" in done.stdout
        assert device == f"CPU, {platform.machine()}"
    else:
        assert "resources.gpu: not given, so it is 1 (the cluster has 1 GPU)\n" in done.stdout
        assert device == torch.cuda.get_device_name()
