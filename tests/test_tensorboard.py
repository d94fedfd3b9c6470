"""A training and a sweep as TensorBoard reads them, by its own code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from synthetic_run import make_synthetic_run
from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.context import RequestContext
from tensorboard.plugins.base_plugin import TBContext
from tensorboard.plugins.hparams import api_pb2
from tensorboard.plugins.hparams.backend_context import Context
from tensorboard.plugins.hparams.get_experiment import Handler as ExperimentHandler
from tensorboard.plugins.hparams.list_session_groups import Handler as SessionsHandler

from trainable.training.epoch_result import row_columns
from trainable.training.tensorboard_tags import TAGS
from trainable.training.training_log import TrainingLog
from tune.run.results import read_run
from tune.viewers.tensorboard_runs import trial_log, write_searched_options, write_winner
from tune.viewers.trial_name import MAX_LENGTH, named_folder, trial_name

DEFAULT = {"optimizer": "adam", "lr": 3e-4, "augment": True, "loss_weights": [1.0, 1.0], "amp": "bf16"}


def row(epoch: int, dice: float, **values: float) -> dict[str, Any]:
    """A row of metrics.csv."""
    scores = {f"val_dice_{region}": dice for region in ("WT", "TC", "ET", "mean")}
    return {
        "epoch": epoch,
        **scores,
        "best_score": dice,
        "max_gpu_memory": 0.0,
        "lr": 1e-3,
        "end_reason": "",
        **values,
    }


def hparams(folder: Path) -> tuple[Any, list[Any]]:
    """What TensorBoard's HParams tab shows of a folder: what is searched, and a group per training."""
    multiplexer = EventMultiplexer().AddRunsFromDirectory(str(folder)).Reload()
    context = Context(TBContext(logdir=str(folder), data_provider=MultiplexerDataProvider(multiplexer, str(folder))))
    experiment = ExperimentHandler(RequestContext(), context, "", api_pb2.GetExperimentRequest()).run()
    columns = [api_pb2.ColParams(hparam=info.name) for info in experiment.hparam_infos]
    columns += [api_pb2.ColParams(metric=info.name) for info in experiment.metric_infos]
    request = api_pb2.ListSessionGroupsRequest(
        start_index=0, slice_size=100, col_params=columns, include_metrics=True,
        allowed_statuses=[api_pb2.STATUS_UNKNOWN, api_pb2.STATUS_SUCCESS, api_pb2.STATUS_FAILURE],
    )  # fmt: skip
    return experiment, list(SessionsHandler(RequestContext(), context, "", request).run().session_groups)


def test_every_number_of_an_epoch_has_a_name_and_the_mean_dice_comes_first() -> None:
    numbers = set(row_columns()) - {"epoch", "end_reason"}
    assert numbers == TAGS.keys()
    assert min(TAGS.values()) == TAGS["val_dice_mean"]
    assert len(set(TAGS.values())) == len(TAGS)


@pytest.mark.parametrize(("memory", "shown"), [(0.0, False), (5000.0, True)])
def test_gpu_memory_is_shown_of_a_gpu_only(tmp_path: Path, memory: float, shown: bool) -> None:
    TrainingLog(tmp_path).write(row(1, 0.5, max_gpu_memory=memory))
    tags = EventAccumulator(str(tmp_path)).Reload().Tags()["scalars"]
    assert ("memory/gpu_peak_MiB" in tags) == shown
    assert "dice/val_mean" in tags


def test_a_training_shows_its_options_and_its_score(tmp_path: Path) -> None:
    log = TrainingLog(tmp_path / "final", options={"lr": 0.01, "optimizer": "sgd", "augment": False})
    log.write(row(1, 0.5))
    log.write(row(2, 0.75))
    log.end(failed=False)
    experiment, [group] = hparams(tmp_path)
    assert {info.name.tag for info in experiment.metric_infos} >= {"dice/val_score", "dice/val_mean"}
    assert group.hparams["lr"].number_value == 0.01
    assert group.hparams["optimizer"].string_value == "sgd"
    assert group.hparams["augment"].bool_value is False
    assert group.sessions[0].status == api_pb2.STATUS_SUCCESS
    assert {value.name.tag: value.value for value in group.metric_values}["dice/val_score"] == 0.75


def test_a_resumed_training_shows_the_options_and_the_end_of_its_last_start(tmp_path: Path) -> None:
    picture = np.full((20, 30, 3), 100, np.uint8)
    for lr, epochs, failed in ((0.1, (1, 2, 3), True), (0.01, (3, 4), False)):
        log = TrainingLog(tmp_path / "final", options={"lr": lr})
        for epoch in epochs:
            log.write(row(epoch, epoch / 10), {"case_a": picture})
        log.end(failed=failed)
        for path in log.board_folder.glob("events*"):
            path.write_bytes(path.read_bytes() + b"\x09")  # half a record, as after a kill
    _, [group] = hparams(tmp_path)
    assert group.hparams["lr"].number_value == 0.01
    [session] = group.sessions
    assert session.status == api_pb2.STATUS_SUCCESS
    assert session.end_time_secs >= session.start_time_secs
    events = EventAccumulator(str(tmp_path / "final")).Reload()
    assert [point.step for point in events.Scalars("dice/val_mean")] == [1, 2, 3, 4]
    assert [point.step for point in events.Images("validation/case_a")] == [1, 2, 3, 4]


def test_a_sweep_shows_what_it_searches_and_each_trial_with_its_score(tmp_path: Path) -> None:
    run = read_run(make_synthetic_run(tmp_path / "run", trials=4, failed_every=0, cases=2, gpus=1))
    for _ in range(2):  # a resumed sweep writes it again
        write_searched_options(run.dir, run.config)
    for trial in run.trials:
        log = trial_log(run.dir, run.config, trial.number, trial.values)
        log.write(row(1, 0.1 * trial.number))
        log.end(failed=trial.number == 3)
    experiment, groups = hparams(run.dir.tensorboard)
    assert {info.name for info in experiment.hparam_infos} == {p.name for p in run.config.space.parameters}
    assert [info.name for info in experiment.hparam_infos][:2] == ["lr", "optimizer"]
    runs = EventMultiplexer().AddRunsFromDirectory(str(run.dir.tensorboard)).Runs()
    assert "." not in runs
    assert "sweep" in runs
    assert experiment.metric_infos[0].display_name == "score"
    assert [group.name[:4] for group in groups] == ["0000", "0001", "0002", "0003"]
    assert [group.sessions[0].status for group in groups] == [api_pb2.STATUS_SUCCESS] * 3 + [api_pb2.STATUS_FAILURE]
    assert groups[1].hparams["optimizer"].string_value == run.trials[1].values["optimizer"]
    assert groups[2].metric_values[0].value == pytest.approx(0.2)


def test_the_winners_pictures_replace_those_of_an_earlier_winner(tmp_path: Path) -> None:
    run = read_run(make_synthetic_run(tmp_path / "run", trials=3, failed_every=0, cases=2, gpus=1))
    for number, case in [(0, "case_a"), (1, "case_b")]:
        folder = run.dir.trial(number).pictures
        folder.mkdir(parents=True)
        Image.fromarray(np.full((20, 30, 3), 100, np.uint8)).save(folder / f"{case}.png")
        write_winner(run, run.trials[number])
    [winner] = run.dir.tensorboard.glob("winner *")
    assert winner.name.startswith("winner 0001 ")
    events = EventAccumulator(str(winner)).Reload()
    assert events.Tags()["images"] == ["validation/case_b"]
    assert events.Images("validation/case_b")[0].step == run.trials[1].best_epoch
    write_winner(run, run.trials[2])  # which has drawn none
    assert not list(run.dir.tensorboard.glob("winner *"))


@pytest.mark.parametrize(
    ("values", "name"),
    [
        ({}, "0007 default"),
        ({"optimizer": "sgd", "lr": 0.01234, "momentum": 0.9}, "0007 sgd lr=0.012 momentum=0.9"),
        ({"augment": False, "loss_weights": [1.0, 2.5]}, "0007 no_augment loss_weights=1x2.5"),
        ({"amp": "off"}, "0007 amp=off"),
        ({f"a_long_option_{i}": i for i in range(9)}, "0007 a_long_option_0=0 a_long_option_1=1 +7"),
        ({"an_option" * 9: 1}, "0007"),
    ],
)
def test_a_name_says_where_a_recipe_differs_from_the_default(values: dict[str, Any], name: str) -> None:
    assert trial_name(7, {**DEFAULT, **values}, DEFAULT) == name
    assert len(name) <= MAX_LENGTH


def test_a_trial_keeps_its_folder_when_the_default_changes(tmp_path: Path) -> None:
    (tmp_path / "0007 sgd").mkdir()
    assert named_folder(tmp_path, "0007 sgd lr=0.1") == tmp_path / "0007 sgd"
    assert named_folder(tmp_path, "0008 sgd") == tmp_path / "0008 sgd"
    assert named_folder(tmp_path, "00071 sgd") == tmp_path / "00071 sgd"
