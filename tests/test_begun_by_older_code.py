"""A sweep and a training that an older commit began go on, and end as that commit would have ended them.

tests/begun_by_4cc44e8/README.md says how the fixture was made.
"""

from __future__ import annotations

import csv
import os
import shutil
import subprocess
import sys
from pathlib import Path

import optuna
import pytest
import yaml
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial

from trainable import cli
from trainable.data.phantom import write_phantoms

OLD = Path(__file__).parent / "begun_by_4cc44e8"
COMPARED = 14  # columns of metrics.csv, up to lr; those after it are times and memory


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the fixture, and its cases in `cases`."""
    folder = tmp_path_factory.mktemp("begun") / "old"
    shutil.copytree(OLD, folder)
    write_phantoms(folder / "cases", cases=6, shape=(48, 48, 40), seed=7, workers=1)
    config = yaml.safe_load((folder / "run" / "study.yaml").read_text())
    config["resources"]["cpu"] = os.cpu_count()  # one trial at a time
    (folder / "run" / "study.yaml").write_text(yaml.safe_dump(config))
    return folder


def trials_of(journal: Path) -> list[FrozenTrial]:
    """The trials of an Optuna journal."""
    storage = JournalStorage(JournalFileBackend(str(journal)))
    return optuna.load_study(study_name="voxtune", storage=storage).trials


def rows_of(path: Path) -> list[list[str]]:
    """The compared columns of a metrics.csv."""
    with path.open(newline="") as file:
        return [row[:COMPARED] for row in csv.reader(file)]


@pytest.mark.slow
def test_the_sweep_ends_as_the_older_code_would_have_ended_it(begun: Path) -> None:
    words = [sys.executable, "-m", "tune", "resume", str(begun / "run"), "--data", str(begun / "cases"), "--no_report"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if "the cases are not those" in done.stderr:
        pytest.skip("this machine computes other phantoms")
    assert done.returncode == 0, done.stderr
    resumed, untouched = trials_of(begun / "run" / "journal.log"), trials_of(begun / "run_untouched_journal.log")
    assert [trial.params for trial in resumed] == [trial.params for trial in untouched]
    assert [trial.state for trial in resumed] == [trial.state for trial in untouched]
    for one, other in zip(resumed, untouched, strict=True):
        assert one.values == pytest.approx(other.values, abs=1e-3)
        assert one.intermediate_values == pytest.approx(other.intermediate_values, abs=1e-3)
        decisions = [
            {rung: record["decision"] for rung, record in trial.user_attrs.get("rungs", {}).items()}
            for trial in (one, other)
        ]
        assert decisions[0] == decisions[1]
        best = [trial.user_attrs["progress"]["best"] for trial in (one, other)]
        assert best[0]["epoch"] == best[1]["epoch"]
        assert best[0]["score"] == pytest.approx(best[1]["score"], abs=1e-3)
    verified = subprocess.run([sys.executable, "-m", "tune", "verify", str(begun / "run")], check=False)
    assert verified.returncode == 0


@pytest.mark.parametrize(
    ("flags", "untouched_file", "tolerance"),
    [
        (["--no-augment"], "training_without_augmentation_metrics.csv", 1e-3),
        # The patches that are rotated or zoomed had zeros in place of their surroundings then.
        ([], "training_untouched_metrics.csv", 0.05),
    ],
)
def test_the_training_ends_as_the_older_code_would_have_ended_it(
    begun: Path, tmp_path: Path, flags: list[str], untouched_file: str, tolerance: float
) -> None:
    training = shutil.copytree(begun / "training", tmp_path / "training")
    words = ["--resume", training, "--data_dir", begun / "cases", "--cache_dir", begun / "cases.cache", *flags]
    assert cli.main(list(map(str, words))) == 0
    (header, *resumed), (expected_header, *untouched) = map(rows_of, (training / "metrics.csv", begun / untouched_file))
    assert header == expected_header
    assert len(resumed) == len(untouched) == 4
    text = header.index("end_reason")
    for one, other in zip(resumed, untouched, strict=True):
        assert one[text] == other[text]
        numbers = [[float(value) for place, value in enumerate(row) if place != text] for row in (one, other)]
        assert numbers[0] == pytest.approx(numbers[1], rel=tolerance, abs=1e-4)
