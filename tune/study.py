"""StudyConfig: what a sweep is asked to do, and the YAML it is read from."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, InstanceOf, ValidationError, field_validator

from trainable.config import InputError, TrainConfig
from trainable.options import NumberLoader, make_config, nearest, plain, problems
from tune.space import STAND_IN, KeyPath, Problem, Problems, Space, read_space

DURATION = re.compile(r"(?=\d)(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?")
ELSEWHERE = {  # options of TrainConfig that `train:` may not hold, and why
    **dict.fromkeys(("output_dir", "resume", "test_only"), "launch sets it"),
    "seed": "write study.seed",
    "metric": "write study.metric",
}


class Section(BaseModel):
    """A part of the YAML. Frozen; unknown names are refused; true is no number."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class Study(Section):
    """What is searched for, and for how long."""

    metric: Literal["val_dice_mean", "val_dice_WT", "val_dice_TC", "val_dice_ET"] = Field(
        "val_dice_mean", description="Score of a trial, at its best validated epoch."
    )
    mode: Literal["max"] = Field("max", description="Every metric here is a Dice, which is maximised.")
    trials: int = Field(32, ge=1, description="Recipes to try.")
    seed: int = Field(0, ge=0, description="Seed of the split, the searcher and the trials.")
    time_budget: float | None = Field(None, gt=0, description="After so long a launch or resume stops.")
    gpu_hours: float | None = Field(None, gt=0, description="Sum over trials, after which the sweep stops.")
    target: float | None = Field(None, gt=0, le=1, description="Score of a finished trial at which the sweep stops.")

    @field_validator("time_budget", mode="before")
    @classmethod
    def _seconds(cls, value: Any) -> Any:
        """12h, 90m, 45s, 1h30m and 2d as seconds."""
        if not isinstance(value, str):
            return value
        if not (match := DURATION.fullmatch(value.replace(" ", ""))):
            raise ValueError("a duration such as 2d, 12h, 1h30m, 90m or 45s, or seconds")
        parts = zip(match.groups("0"), (86400, 3600, 60, 1), strict=True)
        return float(sum(int(part) * unit for part, unit in parts))


class EarlyStopping(Section):
    """When a trial that falls behind ends."""

    type: Literal["asha", "none"] = Field("asha", description="asha compares trials at rungs; none lets all run on.")
    grace_period: int = Field(1, ge=1, description="Epoch of the first rung.")
    reduction_factor: int = Field(
        3, ge=2, description="One in so many trials passes a rung; the next is so much later."
    )


class Searcher(Section):
    """How the next recipe is chosen."""

    type: Literal["tpe", "random"] = Field("tpe", description="Optuna's sampler.")
    startup_trials: int = Field(10, ge=0, description="Trials drawn at random before the sampler learns from them.")


class Resources(Section):
    """What one trial may use."""

    gpu: float = Field(0, ge=0, description="GPUs of a trial; a fraction shares one.")
    cpu: int = Field(1, ge=1, description="CPU cores of a trial, and its threads.")
    max_failures: int = Field(2, ge=0, description="Restarts of a trial from its last checkpoint after errors.")

    keep_top: int = Field(5, ge=0, description="Of so many of the best trials the stopped ones keep their checkpoint.")

    @field_validator("gpu")
    @classmethod
    def _whole_above_one(cls, value: float) -> float:
        if value > 1 and value != int(value):
            raise ValueError("a fraction up to 1, or a whole number")
        return value


class StudyConfig(Section):
    """A whole sweep, as load_study has checked it."""

    study: Study = Study()
    early_stopping: EarlyStopping = EarlyStopping()
    searcher: Searcher = Searcher()
    resources: Resources = Resources()
    train: dict[str, Any] = Field({}, description="Options of TrainConfig that all trials share, as plain values.")
    space: InstanceOf[Space] = Field(description="Options that are searched.")
    record: dict[str, Any] = Field({}, description="What a launch notes of itself: versions, commit, hashes.")

    @property
    def rungs(self) -> tuple[int, ...]:
        """The epochs, before the last, at which trials are compared."""
        epochs = 0 if self.early_stopping.type == "none" else self.option("epochs")
        rungs = [self.early_stopping.grace_period]
        while rungs[-1] < epochs:
            rungs.append(rungs[-1] * self.early_stopping.reduction_factor)
        return tuple(rungs[:-1])

    def option(self, name: str) -> Any:
        """The value of a training option that all trials share."""
        return self.space.constants[name]

    def base_config(self, **extra: Any) -> TrainConfig:
        """The default recipe, as far as it lies in the space: trial 0, and what all trials share."""
        return self.train_config(self.space.stand_ins(), **extra)

    def train_config(self, values: dict[str, Any], **extra: Any) -> TrainConfig:
        """The recipe of a trial: what is fixed, overlaid by its values, overlaid by extra."""
        common = {**self.train, "metric": self.study.metric, "seed": self.study.seed}
        return make_config({**common, **values, **extra})


@dataclass(frozen=True)
class Source:
    """Values read from YAML, and where each key is written: its line, or None for --set."""

    name: str
    values: dict[str, Any]
    lines: dict[KeyPath, int | None]

    def place(self, path: KeyPath) -> tuple[int, str]:
        """Where a key, or else the nearest one above it, is written: a line to sort by, and words."""
        while path and path not in self.lines:
            path = path[:-1]
        line = self.lines.get(path, 1)
        return (line, f"{self.name}:{line}") if line else (10**9, f"--set {'.'.join(map(str, path))}")

    def override(self, text: str) -> Source:
        """With `section.key=value` in place; null drops the key."""
        dotted, equals, given = text.partition("=")
        section, _, key = dotted.strip().partition(".")
        if not equals or not key:
            raise InputError(f"--set {text}: expected section.key=value, such as train.epochs=3")
        if section not in StudyConfig.model_fields:
            raise InputError(
                f"--set {text}: unknown section {section!r}{nearest(section, list(StudyConfig.model_fields))}"
            )
        keys = self.values.get(section) or {}
        if not isinstance(keys, dict):
            return self  # make_study refuses the section
        value, _ = _parse(f"--set {dotted}", given)
        if value is None and key not in keys:
            raise InputError(f"--set {text}: there is no {section}.{key} to drop{nearest(key, list(map(str, keys)))}")
        keys = {**keys, key: value} if value is not None else {k: v for k, v in keys.items() if k != key}
        lines = {path: line for path, line in self.lines.items() if path[:2] != (section, key)}
        return replace(self, values={**self.values, section: keys}, lines={**lines, (section, key): None})


def load_study(path: Path | str, overrides: Sequence[str] = ()) -> StudyConfig:
    """The study of a YAML file or a shipped one's bare name, overridden; InputError places every problem found."""
    source = _read(*_find(Path(path)))
    for text in overrides:
        source = source.override(text)
    try:
        return make_study(source.values)
    except Problems as error:
        placed = sorted((source.place(where), sentence) for where, sentence in error.found)
        raise InputError("\n".join(f"{place}: {sentence}" for (_, place), sentence in placed)) from None


def make_study(values: dict[str, Any]) -> StudyConfig:
    """The study of a mapping of sections, or Problems."""
    given = {name: section for name, section in values.items() if section is not None}
    found: list[Problem] = []
    for name in [name for name in StudyConfig.model_fields if not isinstance(given.get(name, {}), dict)]:
        found.append(((name,), f"{name} is {given.pop(name)!r}; expected `key: value` lines"))
    searched = given.get("space", {})
    if not searched:
        found.append((("space",), "space is empty; expected an option to search, such as lr"))
    fixed, wrong = _fixed(given.get("train", {}), searched)
    found += wrong
    space = Space((), fixed)
    try:
        space = read_space(searched, fixed)
    except Problems as error:
        found += error.found
    try:
        study = StudyConfig.model_validate({**given, "train": fixed, "space": space})
    except ValidationError as error:
        raise Problems(*found, *_wrong_sections(error)) from None
    if found := [*found, *_clashes(study)]:
        raise Problems(*found)
    return study


def dump(study: StudyConfig) -> str:
    """YAML that load_study reads back as an equal study."""
    values = {**study.model_dump(mode="json"), "space": study.space.plain()}
    return yaml.dump(values, Dumper=NumberDumper, sort_keys=False, default_flow_style=None, width=120)


class NumberDumper(yaml.SafeDumper):
    """Quotes the strings that NumberLoader would take for numbers, such as the commit 12e4567."""

    yaml_implicit_resolvers = NumberLoader.yaml_implicit_resolvers


def _find(path: Path) -> tuple[str, str]:
    """Name and text of a file, or of a space shipped with voxtune."""
    files = resources.files("search_spaces").iterdir()
    shipped = {file.name.removesuffix(".yaml"): file for file in files if file.name.endswith(".yaml")}
    bare = path.name.removesuffix(".yaml")
    try:
        if not path.is_file() and len(path.parts) == 1 and bare in shipped:
            return f"search_spaces/{bare}.yaml", shipped[bare].read_text(encoding="utf-8")
        return str(path), path.read_text(encoding="utf-8")
    except FileNotFoundError:
        close = nearest(bare, list(shipped))
        raise InputError(f"{path}: no such file{close}; shipped are {', '.join(sorted(shipped))}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read as text: {error}") from None


def _parse(place: str, text: str) -> tuple[Any, yaml.Node | None]:
    """The value of a YAML text and its node; place names it in an error."""
    try:
        loader = NumberLoader(text)
        node = loader.get_single_node()
        return None if node is None else loader.construct_document(node), node
    except (yaml.YAMLError, ValueError) as error:
        mark, what = getattr(error, "problem_mark", None), getattr(error, "problem", None) or error
        raise InputError(f"{place}:{mark.line + 1 if mark else 1}: cannot be read as YAML: {what}") from None


def _read(name: str, text: str) -> Source:
    """The values in a YAML text and their lines."""
    values, node = _parse(name, text)
    if not isinstance(values, dict):
        raise InputError(f"{name}:1: expected the sections {', '.join(StudyConfig.model_fields)}")
    lines: dict[KeyPath, int | None] = {}
    twice = []
    for path, line in _lines(node):
        if path in lines:
            twice.append(f"{name}:{line}: {'.'.join(path)} is written twice, first in line {lines[path]}; keep one")
        lines.setdefault(path, line)
    if twice:
        raise InputError("\n".join(twice))
    return Source(name, values, lines)


def _lines(node: yaml.Node | None, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], int]]:
    """Each key of the mappings in a document and its line, as deep as a study goes."""
    if isinstance(node, yaml.MappingNode) and len(path) < 4:
        for key, value in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value != "<<":
                yield (*path, key.value), key.start_mark.line + 1
                yield from _lines(value, (*path, key.value))


def _fixed(raw: dict[str, Any], searched: dict[str, Any]) -> tuple[dict[str, Any], list[Problem]]:
    """The options of `train:` as plain values, without those that are wrong, and what is wrong."""
    found: list[Problem] = [
        (("train", name), f"train.{name} is {raw[name]!r}; expected no {name} here, {ELSEWHERE[name]}")
        for name in raw.keys() & ELSEWHERE.keys()
    ]
    raw = {name: value for name, value in raw.items() if name not in ELSEWHERE}
    stand_in = {name: value for name, value in STAND_IN.items() if name in searched and name not in raw}
    try:
        config = TrainConfig.model_validate({**stand_in, **raw})
    except ValidationError as error:
        wrong = set()
        for path, sentence in problems(error):
            key = str(path[0] if path else sentence.split()[0])
            wrong.add(key)
            prefix = "train." if sentence.startswith(key) else f"train.{key}: "
            found.append((("train", key), prefix + sentence))
        rest = {name: value for name, value in raw.items() if str(name) not in wrong}
        fixed, more = _fixed(rest, searched) if len(rest) < len(raw) else ({}, [])
        return fixed, found + more
    given = config.model_fields_set - stand_in.keys()
    return {name: value for name, value in plain(config).items() if name in given}, found


def _wrong_sections(error: ValidationError) -> Iterator[Problem]:
    """Each problem of the other sections."""
    for item in error.errors():
        path: KeyPath = item["loc"]
        dotted = ".".join(map(str, path))
        section: Any = StudyConfig if len(path) == 1 else StudyConfig.model_fields[str(path[0])].annotation
        fields = section.model_fields
        if item["type"] == "extra_forbidden":
            close = nearest(str(path[-1]), list(fields))
            yield path, f"{dotted} is unknown{close}; expected one of {', '.join(fields)}"
        else:
            wanted = re.sub("^(Value error, |Input should be )", "", item["msg"])
            wanted = wanted.replace("greater than or equal to", "a number >=").replace("greater than", "a number >")
            close = nearest(str(item["input"]), re.findall(r"'(\w+)'", wanted))
            meaning = fields[path[-1]].description if path[-1] in fields else ""
            yield path, f"{dotted} is {item['input']!r}; expected {wanted}{close}. {meaning}"


def _clashes(study: StudyConfig) -> Iterator[Problem]:
    """Sections that do not go together."""
    stopping, val_freq, epochs = study.early_stopping, study.option("val_freq"), study.option("epochs")
    path, said = ("early_stopping", "grace_period"), f"early_stopping.grace_period is {stopping.grace_period}; expected"
    if stopping.type != "none" and stopping.grace_period % val_freq:
        yield path, f"{said} a multiple of train.val_freq ({val_freq}), for a rung compares validated epochs"
    if stopping.type != "none" and stopping.grace_period > epochs:
        yield path, f"{said} at most train.epochs ({epochs})"
    if study.study.gpu_hours is not None and not study.resources.gpu:
        yield ("study", "gpu_hours"), "study.gpu_hours would never be spent, since resources.gpu is 0; use time_budget"
