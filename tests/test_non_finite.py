"""A network whose logits are not finite: no prediction, no score, and a training that ends."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from optuna.trial import TrialState

from trainable import cli
from trainable.core.errors import InputError
from trainable.core.options import make_config
from trainable.data.prepare import Data
from trainable.predict import predict_cases
from trainable.training import checkpoint
from trainable.training.epoch_result import EndReason, EpochResult
from trainable.training.loop import fit
from trainable.training.state import TrainingState
from tune.search.journal import Journal, read_trials
from tune.spec.sweep_config import make_sweep_config

TINY = {
    **{"depth": 2, "base_channels": 2, "target_shape": (16, 16, 16), "device": "cpu", "num_workers": 0},
    **{"epochs": 3, "patches_per_epoch": 2},
}


@pytest.fixture
def damaged(phantoms: Path, prepared: Data, tmp_path: Path) -> Path:
    """The folder of a training of 1 epoch, in whose checkpoints one weight is then NaN."""
    folder = tmp_path / "damaged"
    config = make_config(
        {**TINY, "epochs": 1, "output_dir": folder, "data_dir": phantoms, "cache_dir": prepared.folder}
    )
    fit(config, prepared)
    for path in (folder / "checkpoints").glob("*.pth"):
        state = checkpoint.load_checkpoint(path)
        state["network"]["encoder.0.conv1.weight"].view(-1)[0] = torch.nan
        checkpoint.save_checkpoint(state, path)
    return folder


def test_prediction_refuses_each_case_by_name_and_writes_none(damaged: Path, phantoms: Path, tmp_path: Path) -> None:
    """Before, the labels were "no tumour", with Dice 1 where a case has no ET."""
    cases = [phantoms / "Phantom_00000", phantoms / "Phantom_00005"]
    with pytest.raises(InputError) as caught:
        predict_cases(damaged, cases, tmp_path / "out", device="cpu")
    first, *listing = str(caught.value).splitlines()
    assert first == "2 of 2 cases cannot be used:"
    for case, line in zip(cases, listing, strict=True):
        assert line.startswith(f"  {case.name}: {damaged}/checkpoints/best_model.pth cannot predict it: ")
        assert line.endswith(" logits are not finite, and 1 of the network's weights are not either")
    assert not (tmp_path / "out").exists()


def test_other_cases_are_predicted_if_the_logits_of_one_are_not_finite(
    prepared: Data, phantoms: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from trainable.evaluation import inference

    whole = inference.predict_logits
    shapes = list[torch.Size]()

    def overflow_in_the_first(network: torch.nn.Module, image: torch.Tensor, config: object) -> torch.Tensor:
        shapes.append(image.shape)
        logits = whole(network, image, config).clone()  # type: ignore[arg-type]
        if len(shapes) == 1:
            logits[0, 1, 3, 4, 5] = torch.inf
        return logits

    config = make_config({**TINY, "epochs": 1, "output_dir": tmp_path / "model"})
    fit(config, prepared)
    monkeypatch.setattr(inference, "predict_logits", overflow_in_the_first)
    cases = [phantoms / "Phantom_00000", phantoms / "Phantom_00001"]
    predictions = predict_cases(tmp_path / "model", cases, tmp_path / "out", device="cpu")
    assert list(predictions.scores) == ["Phantom_00001"]
    assert [path.name for path in (tmp_path / "out").glob("*.nii.gz")] == ["Phantom_00001.nii.gz"]
    [error] = predictions.failed
    assert f"Phantom_00000: {tmp_path / 'model/checkpoints/best_model.pth'} cannot predict it: 1 of " in str(error)
    assert "not finite, though all of its weights are: the case's intensities are too large, or" in str(error)


def test_a_test_refuses_the_checkpoint_and_names_the_case(
    damaged: Path, prepared: Data, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["--resume", str(damaged / "checkpoints" / "best_model.pth"), "--test_only"]) == 2
    printed = capsys.readouterr()
    assert f"best_model.pth cannot be scored: {prepared.split.test[0]}: " in printed.err
    assert "Dice" not in printed.out
    assert not (damaged / "test_scores.json").exists()


def spoil_in_epoch_2(training: TrainingState) -> None:
    """Let the weights become NaN in the second epoch's first step, as an update that overflows leaves them."""
    update, steps = training.train_step.update, list[int]()

    def spoiled() -> torch.Tensor:
        norm = update()
        steps.append(1)
        if training.epoch == 1:
            next(training.network.parameters()).data.fill_(torch.nan)
        return norm

    training.train_step.update = spoiled  # type: ignore[method-assign]


def test_a_validation_that_is_not_finite_ends_the_training_and_the_epoch_before_is_kept(
    prepared: Data, tmp_path: Path
) -> None:
    config = make_config({**TINY, "output_dir": tmp_path})
    results = list[EpochResult]()
    last = fit(config, prepared, results.append, spoil_in_epoch_2)
    assert [(result.epoch, result.end_reason) for result in results] == [(1, EndReason.NONE), (2, EndReason.NON_FINITE)]
    assert last.note.startswith(f"the validation of epoch 2 met {prepared.split.val[0]}: ")
    assert (last.val, last.best_epoch) == (None, 1)
    latest = checkpoint.load_checkpoint(tmp_path / "checkpoints" / "latest.pth")
    assert latest["epoch"] == 1
    assert all(tensor.isfinite().all() for tensor in latest["network"].values())
    resumed = fit(config.model_copy(update={"resume": tmp_path / "checkpoints" / "latest.pth"}), prepared)
    assert (resumed.epoch, resumed.end_reason) == (3, EndReason.EPOCHS)


def test_train_py_ends_with_1_and_says_which_case(
    damaged: Path, prepared: Data, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["--resume", str(damaged), "--epochs", "2"]) == 1
    stopped = capsys.readouterr().out.splitlines()[-1]
    assert stopped.startswith(f"stopped: the validation of epoch 2 met {prepared.split.val[0]}: ")
    advice = "latest.pth already has the weights whose gradient is not finite, and no checkpoint is older; start a new"
    assert f"Nothing of this epoch is kept. {advice} training in another --output_dir" in stopped


def test_a_trial_whose_validation_is_not_finite_is_pruned(prepared: Data, tmp_path: Path) -> None:
    journal = Journal(tmp_path, make_sweep_config({"space": {"lr": {"loguniform": [1e-5, 1e-2]}}}))
    number, _ = journal.ask()
    config = make_config({**TINY, "output_dir": tmp_path / "trial"})
    fit(config, prepared, lambda result: journal.record(number, result.row()), spoil_in_epoch_2)  # type: ignore[arg-type]
    assert journal.tell(number) == TrialState.PRUNED
    [trial] = read_trials(tmp_path)
    assert trial.user_attrs["progress"]["end_reason"] == "non_finite"
    assert trial.user_attrs["progress"]["best"]["epoch"] == 1
