"""The YAML of a sweep: what is read, and where and why it is refused."""

import os
from pathlib import Path
from typing import Any

import pytest
from helpers import SWEEP

from trainable.core.config import TrainConfig
from trainable.core.errors import InputError
from trainable.core.options import make_config
from tune.search.asha import rung_epochs
from tune.search.sampler import first_recipes
from tune.spec.kinds import LogUniform
from tune.spec.run_record import RunRecord
from tune.spec.sweep_config import SweepConfig, make_sweep_config, to_sections
from tune.spec.sweep_file import dump, load_sweep_config
from tune.terminal.tables import print_space

GOOD = """\
study: {trials: 8, time_budget: 12h}
early_stopping:
  grace_period: 2
resources: {gpu: 0.5, cpu: 4}
train:
  epochs: 20
  val_freq: 2
  min_lr: 1e-7
space:
  lr: {loguniform: [1e-5, 1e-2]}
  optimizer:
    choice: [adam, sgd]
  momentum:
    uniform: [0.8, 0.99]
    when: {optimizer: sgd}
"""


def write(folder: Path, text: str, name: str = "my.yaml") -> Path:
    file = folder / name
    file.write_text(text)
    return file


def test_reads(tmp_path: Path) -> None:
    config = load_sweep_config(write(tmp_path, GOOD))
    assert (config.budget.trials, config.budget.time_budget, config.objective.score) == (8, 43200.0, "val_dice_mean")
    assert (config.resources.gpu, config.resources.max_failures) == (0.5, 2)
    assert (config.searcher.type, config.early_stopping.type) == ("tpe", "asha")
    assert config.train == {"epochs": 20, "val_freq": 2, "min_lr": 1e-7}
    assert config.space.parameters[0].kind == LogUniform(1e-5, 1e-2)
    assert config.fixed("patience") == 0


@pytest.mark.parametrize(
    ("grace", "factor", "epochs", "kind", "rungs"),
    [
        (1, 3, 9, "asha", (1, 3)),
        (1, 3, 10, "asha", (1, 3, 9)),
        (5, 3, 100, "asha", (5, 15, 45)),
        (9, 2, 9, "asha", ()),
        (1, 3, 9, "none", ()),
    ],
)
def test_rungs(grace: int, factor: int, epochs: int, kind: str, rungs: tuple[int, ...]) -> None:
    config = make_sweep_config(
        {
            "early_stopping": {"type": kind, "grace_period": grace, "reduction_factor": factor},
            "train": {"epochs": epochs},
            "space": {"lr": {"loguniform": [1e-4, 1e-3]}},
        }
    )
    assert rung_epochs(config) == rungs


def test_train_config_overlays(tmp_path: Path) -> None:
    config = load_sweep_config(write(tmp_path, GOOD))
    recipe = config.train_config({"lr": 0.01}, seed=7, epochs=30)
    assert recipe == TrainConfig(lr=0.01, seed=7, epochs=30, val_freq=2, min_lr=1e-7)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("12h", 43200), ("90m", 5400), ("45s", 45), ("1h30m", 5400), ("2d", 172800), ("3600", 3600), ("1.5", 1.5)],
)
def test_durations(tmp_path: Path, text: str, seconds: float) -> None:
    assert load_sweep_config(write(tmp_path, GOOD), [f"study.time_budget={text}"]).budget.time_budget == seconds


def test_round_trip(tmp_path: Path) -> None:
    """Also of strings that look like numbers: a commit 12e4567 must not come back as inf."""
    record = {"commit": "12e4567", "hash": "1e5", "versions": {"ray": "2.60"}, "word": "off"}
    config = load_sweep_config(write(tmp_path, GOOD), ["train.amp=true", "space.residual={choice: [true, false]}"])
    config = config.with_record(**record)
    again = load_sweep_config(write(tmp_path, dump(config), "study.yaml"))
    assert again == config
    assert again.record.to_dict() == record
    assert dump(again) == dump(config)


def test_the_record_has_the_form_of_earlier_versions(tmp_path: Path) -> None:
    """Only what was noted is written, in the order in which a launch notes it; unknown keys are kept."""
    config = load_sweep_config(write(tmp_path, GOOD))
    assert "record: {}" in dump(config)
    assert config.record == RunRecord()
    noted = {"storage": None, "attempts": ["a"], "cache_dir": "/c", "split": "1e5", "format": 4, "study": "voxtune-2"}
    again = load_sweep_config(write(tmp_path, dump(config.with_record(later=[1], **noted)), "study.yaml"))
    assert (again.record.split, again.record.format, again.record.study) == ("1e5", 4, "voxtune-2")
    assert again.record.to_dict() == {**noted, "later": [1]}
    assert list(again.with_record(attempts=["a", "b"]).record.to_dict()) == [*noted, "later"]
    assert again.with_record(attempts=["a", "b"]).record.attempts == ["a", "b"]


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ("{attempts: [1]}", r"record.attempts.0 is 1; expected a list"),
        ("{format: four}", r"record.format is 'four'; expected a whole number"),
        ("[1]", r"record is \[1\]; expected `key"),
    ],
)
def test_a_damaged_record_is_named(tmp_path: Path, record: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_sweep_config(write(tmp_path, f"{GOOD}record: {record}\n", "study.yaml"))


def test_legacy_spellings_become_plain_options(tmp_path: Path) -> None:
    config = load_sweep_config(write(tmp_path, GOOD), ["train.amp=true", "train.focal_loss=true"])
    assert (config.train["amp"], config.train["base_loss"]) == ("fp16", "focal")


def test_overrides(tmp_path: Path) -> None:
    changes = ["train.epochs=4", "study.trials=3", "space.lr={loguniform: [1e-4, 1e-2]}", "study.time_budget=null"]
    config = load_sweep_config(write(tmp_path, GOOD), [*changes, "searcher.type=random", "train.val_freq=1"])
    assert (config.train["epochs"], config.budget.trials, config.searcher.type) == (4, 3, "random")
    assert config.budget.time_budget is None
    assert config.space.parameters[0].kind == LogUniform(1e-4, 1e-2)


def test_a_searched_option_is_fixed_by_dropping_it(tmp_path: Path) -> None:
    config = load_sweep_config(write(tmp_path, GOOD), ["train.lr=1e-3", "space.lr=null"])
    assert config.train["lr"] == 1e-3
    assert "lr" not in [parameter.name for parameter in config.space.parameters]


def test_depth_and_patch_may_be_fixed_and_searched_apart(tmp_path: Path) -> None:
    """A patch of 144 suits no depth of 6, the default, but the depths that are searched."""
    config = load_sweep_config(
        write(tmp_path, GOOD), ["train.target_shape=[144, 144, 144]", "space.depth={randint: [4, 5]}"]
    )
    assert config.train_config({"depth": 5}).target_shape == (144, 144, 144)


def test_a_cost_in_gpu_seconds_needs_a_gpu(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="gpu_seconds would always be 0, since resources.gpu is 0; use seconds"):
        load_sweep_config(write(tmp_path, GOOD), ["study.metric=[val_dice_mean, gpu_seconds]", "resources.gpu=0"])
    config = load_sweep_config(write(tmp_path, GOOD), ["study.metric=[val_dice_WT, gpu_seconds]"])
    assert (config.objective.score, config.objective.cost) == ("val_dice_WT", "gpu_seconds")
    assert config.cost_of(10.0, 5.0) == 5.0


def test_a_searcher_whose_package_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tune.spec.sweep_config.find_spec", lambda name: None)
    changes = ["searcher.type=cmaes", "space.weight_decay={loguniform: [1e-6, 1e-3]}"]
    with pytest.raises(InputError, match=r"needs the package cmaes: pip install 'voxtune\[cmaes\]'"):
        load_sweep_config(write(tmp_path, GOOD), changes)


@pytest.mark.parametrize(
    ("searcher", "names"), [("tpe", []), ("random", []), ("gp", ["momentum"]), ("cmaes", ["optimizer", "momentum"])]
)
def test_what_a_searcher_cannot_model_is_listed(tmp_path: Path, searcher: str, names: list[str]) -> None:
    changes = [f"searcher.type={searcher}", "space.weight_decay={loguniform: [1e-6, 1e-3]}"]
    assert load_sweep_config(write(tmp_path, GOOD), changes).unmodelled_options == names


REPLACED: list[tuple[str, str, str]] = [
    ("trials: 8", "trials: 0", r"my.yaml:1: study.trials is 0; expected a whole number >= 1"),
    ("trials: 8", "trials: true", r"my.yaml:1: study.trials is True; expected a whole number >= 1"),
    ("trials: 8", "trails: 8", r"my.yaml:1: study.trails is unknown \(did you mean trials\?\)"),
    ("trials: 8", "mode: min", r"my.yaml:1: study.mode is 'min'; expected 'max'. Every score here is a Dice"),
    ("trials: 8", "metric: val_dice_wt", r"study.metric is 'val_dice_wt'; .* \(did you mean val_dice_WT\?\)"),
    (
        "trials: 8",
        "metric: [val_dice_mean, minutes]",
        r"study.metric is .*; expected one of .* 'gpu_seconds', 'seconds'",
    ),
    ("trials: 8", "metric: [val_dice_mean, seconds, seconds]", r"study.metric is .* or a list of one of them and one"),
    (
        "study: {trials: 8, time_budget: 12h}\n",
        "study: {metric: [val_dice_mean, seconds]}\nsearcher: {type: cmaes}\n",
        r"searcher.type is 'cmaes', which has one objective; expected tpe, gp or random with study.metric",
    ),
    (
        "study: {trials: 8, time_budget: 12h}\n",
        "searcher: {type: cmaes}\n",
        r"my.yaml:1: searcher.type is 'cmaes', which needs two searched numbers without `when`",
    ),
    ("gpu: 0.5", "report_timeout: soon", r"resources.report_timeout is 'soon'; expected a duration such as 2d"),
    ("12h", "12 parsecs", r"my.yaml:1: study.time_budget is '12 parsecs'; expected a duration such as 2d, 12h"),
    ("12h", "h", r"expected a duration"),
    ("12h", "1:30", r"study.time_budget is '1:30'; expected a duration such as 2d"),  # YAML 1.1 would read 90
    ("0.5, cpu: 4}\ntrain:", "0}\ntrain:\n  device: cuda", r"my.yaml:4: resources.gpu is 0, but train.device is cuda"),
    ("12h", "0", r"study.time_budget is 0; expected a number > 0"),
    (
        "gpu: 0.5",
        "gpu: 1.5",
        r"my.yaml:4: resources.gpu is 1.5; expected a fraction up to 1, a whole number, or",
    ),
    ("gpu: 0.5", "gpu: atuo", r"resources.gpu is 'atuo'; expected a fraction up to 1, .* \(did you mean auto\?\)"),
    ("gpu: 0.5", "gpu: true", r"resources.gpu is True; expected a fraction up to 1"),
    ("cpu: 4", "cpu: 0", r"my.yaml:4: resources.cpu is 0; expected a whole number >= 1"),
    (
        "grace_period: 2",
        "grace_period: 3",
        r"my.yaml:3: .*grace_period is 3; expected a multiple of train.val_freq \(2",
    ),
    ("grace_period: 2", "grace_period: 40", r"my.yaml:3: .* expected at most train.epochs \(20\)"),
    ("grace_period: 2", "type: asha", r"my.yaml:2: .*grace_period is 1; expected a multiple of train.val_freq"),
    ("grace_period: 2", "type: ashes", r"my.yaml:3: early_stopping.type is 'ashes'; .* \(did you mean asha\?\)"),
    (
        "grace_period: 2",
        "reduction_factor: 1",
        r"my.yaml:3: early_stopping.reduction_factor is 1; expected a whole number >= 2",
    ),
    ("epochs: 20", "epoch: 20", r"my.yaml:6: train.epoch: unknown option 'epoch' \(did you mean epochs\?\)"),
    ("epochs: 20", "epochs: many", r"my.yaml:6: train.epochs is 'many'; expected a whole number >= 1"),
    ("epochs: 20", "resume: a.pth", r"my.yaml:6: train.resume is 'a.pth'; expected no resume here, launch sets it"),
    ("epochs: 20", "test_only: true", r"my.yaml:6: train.test_only .* launch sets it"),
    ("epochs: 20", "depth: 8\n  target_shape: [96, 96, 96]", r"my.yaml:7: train.target_shape .* depth 8 do not fit"),
    ("epochs: 20", "val_fraction: 0.9", r"my.yaml:6: train.val_fraction \+ test_fraction leave no case"),
    ("epochs: 20", "focal_loss: 3", r"my.yaml:6: train.focal_loss is 3; expected true or false"),
    ("epochs: 20", "lr: 0.1", r"my.yaml:6: train.lr is 0.1, but space.lr searches it"),
    ("1e-2]", "1e-6]", r"my.yaml:10: space.lr.loguniform is \[1e-05, 1e-06\]; expected low < high"),
    ("[adam, sgd]", "[adam, adamw]", r"my.yaml:15: space.momentum.when.optimizer is 'sgd'; optimizer is never 'sgd'"),
    ("uniform: [0.8, 0.99]", "uniform: [0.8, 1.5]", r"my.yaml:14: space.momentum is 1.5; expected a number >= 0"),
    ("trials: 8", "on: 8", r"my.yaml:1: study.True is unknown; expected one of metric,"),
    ("cpu: 4}", "~: 4}", r"my.yaml:4: resources.None is unknown; expected one of gpu, cpu"),
    ("epochs: 20", "3: 20", r"my.yaml:6: train.3: unknown option 3"),
    ("resources:", "resource:", r"my.yaml:4: resource is unknown \(did you mean resources\?\)"),
    ("resources: {gpu: 0.5, cpu: 4}", "resources: 3", r"my.yaml:4: resources is 3; expected `key: value` lines"),
    ("  val_freq: 2", "  epochs: 3", r"my.yaml:7: train.epochs is written twice, first in line 6"),
    ("[adam, sgd]", "[adam, sgd", r"my.yaml:13: cannot be read as YAML: expected ',' or '\]'"),
    ("12h", "2024-13-45", r"my.yaml:1: cannot be read as YAML: month must be in 1..12"),
    (GOOD, "", r"my.yaml:1: expected the sections study, early_stopping"),
    (GOOD, "- 3", r"my.yaml:1: expected the sections"),
    (GOOD, "study:\n", r"my.yaml:1: space is empty; expected an option to search"),
    (GOOD, "a: &a\n  b: *a\n", r"my.yaml:1: a is unknown"),
]


@pytest.mark.parametrize(("old", "new", "message"), REPLACED)
def test_refused(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert GOOD.count(old) == 1
    with pytest.raises(InputError, match=message):
        load_sweep_config(write(tmp_path, GOOD.replace(old, new)))


OVERRIDDEN: list[tuple[str, str]] = [
    ("train.epochs=abc", r"^--set train.epochs: train.epochs is 'abc'; expected a whole number >= 1$"),
    ("train.lr=0.1", r"^--set train.lr: train.lr is 0.1, but space.lr searches it; drop one .* space.lr=null"),
    ("train.epochs=1", r"my.yaml:3: .*grace_period is 2; expected at most train.epochs \(1\)"),
    ("space.lr.loguniform=[1e-5, 1e-2]", r"expected section.key=value; write --set 'space.lr=\{loguniform: \.\.\.\}'$"),
    ("space.lr=3", r"--set space.lr: space.lr is 3; expected one of choice"),
    ("space.lrr=null", r"--set space.lrr=null: there is no space.lrr to drop \(did you mean lr\?\)"),
    ("space.optimizer=null", r"my.yaml:15: space.momentum.when.optimizer is 'sgd'; optimizer is always 'adam'"),
    ("sapce.lr=3", r"--set sapce.lr=3: unknown section 'sapce' \(did you mean space\?\)"),
    ("epochs", r"--set epochs: expected section.key=value, such as train.epochs=3"),
    ("epochs=3", r"expected section.key=value"),
    ("train.epochs=[1", r"--set train.epochs:1: cannot be read as YAML"),
]


@pytest.mark.parametrize(("change", "message"), OVERRIDDEN)
def test_refused_overrides(tmp_path: Path, change: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_sweep_config(write(tmp_path, GOOD), [change])


def test_all_problems_at_once_in_the_order_of_the_file(tmp_path: Path) -> None:
    text = GOOD.replace("trials: 8", "trials: 0").replace("epochs: 20", "epochs: 0").replace("[adam, sgd]", "[]")
    with pytest.raises(InputError) as caught:
        load_sweep_config(write(tmp_path, text), ["resources.cpu=0"])
    assert [line.split(": ")[0].split("/")[-1] for line in str(caught.value).splitlines()] == [
        "my.yaml:1",
        "my.yaml:6",
        "my.yaml:12",
        "--set resources.cpu",
    ]


def test_shipped_by_bare_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo").mkdir()  # a folder of that name does not hide it
    assert load_sweep_config("demo") == load_sweep_config("demo.yaml")
    with pytest.raises(InputError, match=r"demi: no such file .did you mean demo.*; shipped are brats, brats_long"):
        load_sweep_config("demi")
    with pytest.raises(InputError, match="cannot be read as text"):
        load_sweep_config(tmp_path)
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="cannot be read as text"):
        load_sweep_config("binary.yaml")


def test_every_key_has_a_description() -> None:
    sections: list[Any] = [field.annotation for field in SweepConfig.model_fields.values()]
    for section in (s for s in sections if hasattr(s, "model_fields")):
        assert all(field.description for field in section.model_fields.values())


def test_a_record_is_refused_where_a_user_gives_it(tmp_path: Path) -> None:
    """A run's study.yaml has one."""
    text = "space: {lr: {loguniform: [1e-5, 1e-2]}}\nrecord: {data: x}\n"
    for name in ("mine.yaml", "study.yaml"):
        (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=r"mine.yaml:2: launch and resume write the section record into study.yaml"):
        load_sweep_config(tmp_path / "mine.yaml")
    assert load_sweep_config(tmp_path / "study.yaml").record.data == "x"
    with pytest.raises(InputError, match=r"--set record.data=x: launch and resume write the section record"):
        load_sweep_config("demo", ["record.data=x"])


def test_a_number_with_a_leading_zero_is_decimal() -> None:
    """YAML 1.1 reads 010 as 8."""
    config = load_sweep_config("demo", ["study.trials=010", "train.epochs=0_12"])
    assert (config.budget.trials, config.fixed("epochs")) == (10, 12)


def test_a_tilde_in_a_path_is_the_home_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    config = load_sweep_config("demo", ["train.cache_dir=~/cache", "train.data_dir=/data/~x"])
    assert config.train["cache_dir"] == "/home/me/cache"
    assert config.train["data_dir"] == "/data/~x"


def test_a_path_that_is_not_utf_8_is_refused_with_its_bytes() -> None:
    with pytest.raises(
        InputError, match=r"data_dir is .*expected a path in UTF-8, not of the bytes b'/data/\\xff\\xfe'"
    ):
        make_config({"data_dir": os.fsdecode(b"/data/\xff\xfe")})


def test_a_small_space_is_tried_once(capsys: pytest.CaptureFixture[str]) -> None:
    config = make_sweep_config(
        {"study": {"trials": 12}, "space": {"depth": {"choice": [3, 4]}, "batch_size": {"randint": [1, 2]}}}
    )
    recipes = first_recipes(config, 5)
    assert recipes[0] == config.space.default_values()
    assert sorted(map(str, recipes)) == sorted(map(str, config.space.recipes or []))
    assert config.trials_left(3, recipes[:3]) == 1
    assert config.trials_left(4, recipes) == 0
    print_space(config)
    assert "the space has 4 recipes: the sweep ends when each has been tried" in capsys.readouterr().out


def test_a_run_that_was_begun_before_the_default_recipe_was_protected_goes_on_without() -> None:
    config = make_sweep_config(SWEEP).with_record(cache_dir="/cache")
    sections = to_sections(config)
    assert sections["study"].pop("protect_default") is True
    assert make_sweep_config(sections).protect_default is False
    assert make_sweep_config(to_sections(config)).protect_default is True
    assert make_sweep_config({**sections, "record": {}}).protect_default is True


def test_a_run_that_was_begun_without_min_trials_and_margin_goes_on_without_them() -> None:
    config = make_sweep_config(SWEEP)
    sections = to_sections(config.with_record(cache_dir="/cache"))
    given = sections["early_stopping"]
    older = {**sections, "early_stopping": {"type": "asha", "grace_period": 1, "reduction_factor": 3}}
    assert make_sweep_config(older).early_stopping.min_trials == 1
    assert make_sweep_config(older).early_stopping.margin == 0
    new = {**sections, "early_stopping": {**given, "min_trials": 7, "margin": "auto"}}
    assert make_sweep_config(new).early_stopping.min_trials == 7
    assert make_sweep_config(to_sections(make_sweep_config(new))).early_stopping.margin == "auto"


@pytest.mark.parametrize("margin", [-0.1, 1.5, "none", True])
def test_a_margin_is_a_dice_or_auto(margin: object) -> None:
    with pytest.raises(InputError, match=r"early_stopping.margin is .*; expected a Dice from 0 to 1, or 'auto'"):
        make_sweep_config({**SWEEP, "early_stopping": {"margin": margin}})
