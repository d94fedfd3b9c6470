"""How a model's prediction options are chosen by its validation cases, and what becomes of its files."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import Interrupted, start, wait_for
from threshold_model import LIMITS, threshold_model

from trainable import cli, postprocess
from trainable.bundle.recorded_scores import RecordedScores, recorded_scores
from trainable.core.config import TrainConfig
from trainable.core.errors import InputError
from trainable.core.logger import logger
from trainable.data.phantom import write_phantoms
from trainable.data.prepare import Data, prepare_data
from trainable.data.split import Split
from trainable.evaluation.metrics import Scores
from trainable.evaluation.prediction_setting import MIN_CHANGED, Choice, PredictionSetting, candidates, choose_setting
from trainable.evaluation.validate import validate
from trainable.postprocess import SCRATCH, choose_postprocessing, starting_setting, write_choice, write_setting
from trainable.postprocess_record import read_record, write_record
from trainable.predict import predict_cases
from trainable.training.case_scores import COLUMNS
from trainable.training.checkpoint import load_checkpoint, load_network, save_checkpoint
from trainable.training.ensemble import load_ensemble
from trainable.training.loop import fit
from trainable.training.training_dir import TRAINED_OPTIONS, TrainingDir

PLAIN = PredictionSetting(mirror=False, overlap=0.5, min_component=0, et_threshold=0)
NAMES = tuple(f"Phantom_{number:05d}" for number in range(12))
VAL, TEST = NAMES[1:10], NAMES[10:]


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Data:
    """Cases smaller than those of other tests, as they are predicted many times."""
    folder = tmp_path_factory.mktemp("small") / "data"
    write_phantoms(folder, cases=12, shape=(32, 32, 32), workers=1)
    return divided(prepare_data(TrainConfig(data_dir=folder), quiet=True))


def divided(data: Data, val: tuple[str, ...] = VAL) -> Data:
    """The same cases, divided anew."""
    return Data(data.folder, Split(tuple(sorted({*NAMES} - {*val, *TEST})), val, TEST))


def make_model(folder: Path, data: Data, limits: Sequence[float] = LIMITS, **options: Any) -> TrainingDir:
    """A model that finds islands of noise in each case."""
    small = {"data_dir": str(data.folder).removesuffix(".cache"), "base_channels": 2, "target_shape": (32, 32, 32)}
    return threshold_model(folder, data, limits, **{**small, **options})


@pytest.fixture
def model(cases: Data, tmp_path: Path) -> TrainingDir:
    """A model that finds islands of noise in each of nine validation cases."""
    return make_model(tmp_path / "model", cases)


@dataclass(frozen=True)
class Chosen:
    """A model for which a setting was chosen: before, the choice, and what was printed."""

    model: TrainingDir
    before: dict[str, Any]
    choice: Choice
    printed: str

    @property
    def record(self) -> dict[str, Any]:
        """The content of postprocess.json."""
        content: dict[str, Any] = json.loads((self.model.path / "postprocess.json").read_text())
        return content


@pytest.fixture(scope="module")
def chosen(cases: Data, tmp_path_factory: pytest.TempPathFactory) -> Chosen:
    """A model whose islands are removed from now on; it had test scores before."""
    model = make_model(tmp_path_factory.mktemp("chosen") / "model", cases)
    model.test_scores.with_suffix(".json").write_text(json.dumps(PLAIN.to_dict()))
    before, lines = load_checkpoint(model.best), list[str]()
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    logger.addHandler(handler)
    try:
        choice = choose_postprocessing(model.path)
    finally:
        logger.removeHandler(handler)
    return Chosen(model, before, choice, "\n".join(lines))


def made_up(gains: Mapping[str, Any], spread: float = 0.0, seed: int = 0, cases: int = 6) -> Any:
    """A function that scores a setting: the gain of each changed option, alike in each case up to some noise."""
    rng = np.random.default_rng(seed)
    noise: dict[PredictionSetting, Any] = {}

    def score(setting: PredictionSetting) -> dict[str, Scores]:
        shift = noise.setdefault(setting, rng.normal(0, spread, cases) if setting != PLAIN else np.zeros(cases))
        values = setting.to_dict()
        gain = sum(gains.get(f"{name} {values[name]}", 0.0) for name in values)
        return {f"case {index}": {"dice_mean": 0.5 + gain + shift[index]} for index in range(cases)}

    return score


def test_a_setting_is_taken_only_if_its_gain_is_shown() -> None:
    small, clear = made_up({"et_threshold 200": 0.001}, 0.02), made_up({"et_threshold 200": 0.1}, 0.02)
    assert choose_setting(PLAIN, small, "dice_mean").chosen == PLAIN
    choice = choose_setting(PLAIN, clear, "dice_mean")
    assert choice.chosen == replace(PLAIN, et_threshold=200)
    assert [item.setting for item in choice.tried if item.taken] == [choice.chosen]


def test_of_several_that_are_shown_in_a_stage_the_largest_gain_is_taken_and_later_stages_build_on_it() -> None:
    gains = {"mirror True": 0.02, "overlap 0.75": 0.01, "min_component 50": 0.01, "min_component 200": 0.02}
    choice = choose_setting(PLAIN, made_up(gains, 1e-4, seed=1), "dice_mean")
    assert choice.chosen == PredictionSetting(mirror=True, overlap=0.5, min_component=200, et_threshold=0)
    assert [item.against.mirror for item in choice.tried] == [False] * 2 + [True] * 7


def test_candidates_without_a_gain_are_taken_in_at_most_one_of_twenty_choices() -> None:
    taken = sum(
        choose_setting(PLAIN, made_up({}, 0.05, seed, cases=4), "dice_mean").chosen != PLAIN for seed in range(40)
    )
    assert taken <= 2


def test_a_gain_in_two_cases_shows_nothing_however_equal_they_are() -> None:
    gain = {"et_threshold 500": 1 / 3}
    assert MIN_CHANGED == 3
    assert choose_setting(PLAIN, made_up(gain, cases=2), "dice_mean").chosen == PLAIN
    assert choose_setting(PLAIN, made_up(gain, cases=3), "dice_mean").chosen == replace(PLAIN, et_threshold=500)


def test_no_candidate_costs_64_times_the_network() -> None:
    for start_setting in (PLAIN, replace(PLAIN, mirror=True), replace(PLAIN, overlap=0.75)):
        by_network = candidates(start_setting)[0]
        assert by_network
        assert not any(setting.mirror and setting.overlap > 0.5 for setting in by_network)


def test_islands_are_removed_if_that_is_shown_to_help_and_the_model_then_predicts_so(
    chosen: Chosen, cases: Data, tmp_path: Path
) -> None:
    after, record, number = load_checkpoint(chosen.model.best), chosen.record, chosen.choice.chosen.min_component
    assert number > 0
    assert after["config"] == chosen.before["config"] | chosen.choice.chosen.to_dict()
    assert after.keys() == chosen.before.keys() | {TRAINED_OPTIONS}
    assert all(torch.equal(after["network"][name], weights) for name, weights in chosen.before["network"].items())
    assert after["cases"] == chosen.before["cases"]
    assert (record["version"], record["before"]) == (1, PLAIN.to_dict())
    assert record["chosen"] == chosen.choice.chosen.to_dict()
    assert tuple(record["scores"]) == VAL
    assert record["gain"]["dice_mean"]["low"] > 0
    gain = r"\+0\.\d+ \[\+0\.\d+, \+0\.\d+\]  9 cases differ  taken"
    assert re.search(rf"  min_component {number} +{gain}", chosen.printed)
    assert not (chosen.model.path / SCRATCH).exists()
    assert load_checkpoint(chosen.model.latest)["config"] == chosen.before["config"]  # a resumed training goes on so
    case = Path(str(cases.folder).removesuffix(".cache")) / VAL[0]
    predictions = predict_cases(chosen.model.path, [case], tmp_path / "out", device="cpu")
    assert predictions.scores[VAL[0]]["dice_mean"] == pytest.approx(record["scores"][VAL[0]]["dice_mean"])
    assert record["scores"][VAL[0]]["dice_mean"] > record["scores_before"][VAL[0]]["dice_mean"]


def test_earlier_test_scores_are_said_to_be_without_it(chosen: Chosen) -> None:
    assert "test_scores.json has scores without this post-processing; to score the test cases" in chosen.printed
    assert f"voxtune train --resume {chosen.model.path} --test_only" in chosen.printed


def test_validation_scores_on_record_are_of_the_weights_and_the_setting_that_they_were_scored_with(
    chosen: Chosen, tmp_path: Path
) -> None:
    def on_record(model: TrainingDir) -> RecordedScores:
        return recorded_scores(model.path, load_ensemble([model.best], torch.device("cpu")))[0]

    again = TrainingDir(shutil.copytree(chosen.model.path, tmp_path / "again"))
    again.test_scores.with_suffix(".json").unlink()
    before = on_record(again)
    assert (before.cases, before.setting) == (chosen.record["scores"], chosen.choice.chosen)
    again.case_scores.write_text("\n".join([",".join(COLUMNS), *(f"3,{name},0.1,0.2,0.3,0.2" for name in VAL)]) + "\n")
    state = load_checkpoint(again.best)
    state["network"]["heads.0.bias"] -= 1  # trained on, with a clean-up of the user's own, or the one that was chosen
    for number in (400, chosen.choice.chosen.min_component):
        save_checkpoint({**state, "config": {**state["config"], "min_component": number}}, again.best)
        after = on_record(again)
        assert after.means["dice_mean"] == pytest.approx(0.2)
        assert after.setting == replace(chosen.choice.chosen, min_component=number)


@pytest.mark.slow
def test_a_second_call_starts_from_the_setting_before_the_first_also_after_a_kill_between_record_and_model(
    chosen: Chosen, tmp_path: Path
) -> None:
    again = TrainingDir(shutil.copytree(chosen.model.path, tmp_path / "again"))
    save_checkpoint(chosen.before, again.best)  # the record was written, the model was not
    choice = choose_postprocessing(again.path)
    assert (choice.before, choice.chosen) == (PLAIN, chosen.choice.chosen)
    assert load_checkpoint(again.best)["config"]["min_component"] == choice.chosen.min_component
    assert json.loads((again.path / "postprocess.json").read_text()) == chosen.record
    third = choose_postprocessing(again.path)
    assert (third.before, third.chosen) == (PLAIN, chosen.choice.chosen)


def test_test_cases_are_not_opened_and_cases_may_have_moved(model: TrainingDir, cases: Data, tmp_path: Path) -> None:
    for name in {*NAMES} - {*TEST}:
        shutil.copytree(Path(str(cases.folder).removesuffix(".cache")) / name, tmp_path / "moved" / name)
    for name in TEST:
        (tmp_path / "moved" / name).mkdir()  # a case without files is refused by whoever looks at it
    assert choose_postprocessing(model.path, tmp_path / "moved").chosen.min_component > 0
    assert {path.name for path in (tmp_path / "moved.cache").iterdir() if path.is_dir()} == {*NAMES} - {*TEST}


def test_a_training_that_is_resumed_from_the_model_goes_on_without_the_choice(
    chosen: Chosen, cases: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    again = TrainingDir(shutil.copytree(chosen.model.path, tmp_path / "again"))

    def setting(source: Path, *words: str) -> PredictionSetting:
        return PredictionSetting.of_config(cli.resolve(cli.read_flags(["--resume", str(source), *words])))

    assert setting(again.best, "--test_only") == chosen.choice.chosen != PLAIN
    assert setting(again.best, "--epochs", "9") == setting(again.latest, "--epochs", "9") == PLAIN
    config = cli.resolve(cli.read_flags(["--resume", str(again.best), "--epochs", "9", "--mirror"]))
    monkeypatch.setattr("trainable.training.loop.train_one_epoch", killed)
    with pytest.raises(Interrupted):
        fit(config, cases)
    assert setting(again.path) == replace(PLAIN, mirror=True)


def test_if_nothing_helps_nothing_is_written(cases: Data, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    few = make_model(tmp_path / "few", divided(cases, VAL[:2]))
    before = few.best.read_bytes()
    choose_postprocessing(few.path)
    expected = "nothing is shown to help; 2 cases cannot show it: the model stays as it was, mirror false, overlap 0.5"
    assert expected in capsys.readouterr().out
    assert few.best.read_bytes() == before
    assert not (few.path / "postprocess.json").exists()


def test_a_kill_between_two_different_choices_leaves_the_setting_before_the_first(
    chosen: Chosen, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    again = TrainingDir(shutil.copytree(chosen.model.path, tmp_path / "again"))
    first = read_record(again.path)
    assert first is not None
    other = replace(first, chosen=replace(PLAIN, et_threshold=50))
    for fails in (True, False):  # before the new record is written, and after
        monkeypatch.setattr(postprocess, "write_record", killed if fails else write_record)
        monkeypatch.setattr(postprocess, "write_setting", write_setting if fails else killed_at(other.chosen))
        with pytest.raises(Interrupted):
            write_choice(again.path, [again.best], other)
        state = load_checkpoint(again.best)
        assert PredictionSetting.of_config(TrainConfig.model_validate(state["config"])) == PLAIN
        assert starting_setting(again.path, [state]) == PLAIN


def killed(*_: Any) -> None:
    """End as a kill does."""
    raise Interrupted


def killed_at(setting: PredictionSetting) -> Callable[[Sequence[Path], PredictionSetting], None]:
    """A write_setting that ends as a kill does before it writes this setting."""
    return lambda files, wanted: killed() if wanted == setting else write_setting(files, wanted)


def test_by_one_case_nothing_is_chosen_which_is_said_in_the_singular(
    cases: Data, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    choose_postprocessing(make_model(tmp_path / "one", divided(cases, VAL[:1])).path)
    printed = capsys.readouterr().out
    assert ": 1 validation case, compared by dice_mean" in printed
    assert re.search(r"  min_component 50 +[+-]0\.\d{4}  1 case differs\n", printed)
    assert "nothing is shown to help; 1 case cannot show it: the model stays" in printed


def test_an_earlier_choice_is_taken_back_if_it_is_not_shown_any_more(chosen: Chosen, tmp_path: Path) -> None:
    again = TrainingDir(shutil.copytree(chosen.model.path, tmp_path / "again"))
    state = load_checkpoint(again.best)
    state["cases"]["val"] = {name: state["cases"]["val"][name] for name in VAL[:2]}
    save_checkpoint(state, again.best)
    assert choose_postprocessing(again.path).chosen == PLAIN
    assert load_checkpoint(again.best)["config"] == chosen.before["config"]
    assert not (again.path / "postprocess.json").exists()


def test_a_case_is_predicted_by_the_members_that_it_validated(
    cases: Data, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folds = {"fold_0": (VAL[:4], LIMITS), "fold_1": (VAL[4:], (3.0, 3.0, 3.0))}
    expected = {}
    for name, (val, limits) in folds.items():
        data = divided(cases, val)
        member = make_model(tmp_path / "model" / "members" / name, data, limits)
        network, config = load_network(member.best, torch.device("cpu"))
        expected |= validate(network, config, data.folder, val)
    choice = choose_postprocessing(tmp_path / "model")
    record = json.loads((tmp_path / "model" / "postprocess.json").read_text())
    assert record["scores_before"] == {name: pytest.approx(scores) for name, scores in expected.items()}
    assert record["models"] == {f"members/{name}/checkpoints/best_model.pth": 3 for name in folds}
    for name in folds:
        state = load_checkpoint(TrainingDir(tmp_path / "model" / "members" / name).best)
        assert state["config"]["min_component"] == choice.chosen.min_component > 0
    assert "9 validation cases, each predicted by the members of its fold" in capsys.readouterr().out


def test_a_model_without_validation_cases_or_a_folder_without_a_model_is_refused(cases: Data, tmp_path: Path) -> None:
    blind = make_model(tmp_path / "blind", divided(cases, ()))
    with pytest.raises(InputError, match="had no validation cases.*retrain without --with_val, or with --folds"):
        choose_postprocessing(blind.path)
    (tmp_path / "best").mkdir()
    shutil.copy(blind.best, tmp_path / "best" / "best_model.pth")
    with pytest.raises(InputError, match="best: no finished training; expected RUN/retrain/NAME"):
        choose_postprocessing(tmp_path / "best")


def test_cases_that_are_gone_or_have_changed_since_the_training_are_refused(cases: Data, tmp_path: Path) -> None:
    data = tmp_path / "data"
    gone = make_model(tmp_path / "gone", cases, data_dir=data)
    with pytest.raises(
        InputError, match="data: the cases of the training are not there; give their folder or URI with --data DIR"
    ):
        choose_postprocessing(gone.path)
    shutil.copytree(str(cases.folder).removesuffix(".cache"), data)
    model = make_model(tmp_path / "model", cases, data_dir=data, cache_dir=None)
    for word in ("flair", "t1", "t1ce", "t2", "seg"):
        shutil.copy(data / NAMES[11] / f"{NAMES[11]}_{word}.nii.gz", data / VAL[0] / f"{VAL[0]}_{word}.nii.gz")
    with pytest.raises(InputError, match=f"not those of the training: {VAL[0]} \\(images\\); restore them"):
        choose_postprocessing(model.path)


def test_after_kill_9_the_next_call_ends_as_if_nothing_had_been(model: TrainingDir) -> None:
    scratch = model.path / SCRATCH
    process = start("-m", "tune", "postprocess", model.path)
    wait_for(process, lambda: len(list(scratch.glob("*.npy"))) >= 3)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()  # type: ignore[union-attr]
    assert scratch.exists()
    assert choose_postprocessing(model.path).chosen.min_component > 0
    assert not scratch.exists()
