"""The command `python train.py`: flags made from TrainConfig, then fit or test."""

from __future__ import annotations

import argparse
import csv
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

from trainable import checkpoint
from trainable.cases import save_split
from trainable.config import REGIONS, InputError, TrainConfig
from trainable.data import Data, prepare_data
from trainable.logs import RunLog, epoch_line
from trainable.loop import EpochResult, choose_device, fit, validate
from trainable.metrics import mean_scores
from trainable.options import allowed, field_facts, load_options, make_config, nearest, plain, save_options

INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run train.py; returns its exit code: 0, 1 for a loss not finite, 2 for wrong input, 130 for Ctrl-C."""
    options: dict[str, Any] = {}
    try:
        options = read_flags(sys.argv[1:] if argv is None else argv)
        config = resolve(options)
        if config.test_only:
            test(config)
        elif train(config).end_reason == "non_finite":
            return 1
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        place = options.get("output_dir") or options.get("resume") or TrainConfig().output_dir
        print(f"\nstopped; go on with: python train.py --resume {place}")
        return INTERRUPTED
    return 0


def make_parser() -> argparse.ArgumentParser:
    """One flag for each option of TrainConfig, in its groups. Values stay text: TrainConfig checks them."""
    parser = argparse.ArgumentParser(
        prog="train.py", description="Train a 3D U-Net on BraTS cases.", allow_abbrev=False
    )
    parser.add_argument("--config", type=Path, help="YAML or JSON of options; flags come before it")
    parser.add_argument(
        "--focal_loss", action="store_true", default=argparse.SUPPRESS, help="short for --base_loss focal"
    )
    groups: dict[str, Any] = {}
    for name, field in TrainConfig.model_fields.items():
        facts = field_facts(field)
        group = groups.setdefault(facts["group"], parser.add_argument_group(facts["group"]))
        keywords: dict[str, Any] = {"default": argparse.SUPPRESS, "dest": name}
        text = f"{field.description} ({allowed(name)}; default {plain_text(field.default)})"
        keywords["help"] = text.replace("%", "%%")
        arguments = [a for a in get_args(field.annotation) if a is not type(None)]
        if field.annotation is bool:
            keywords["action"] = argparse.BooleanOptionalAction
        elif name == "amp":
            keywords |= {"nargs": "?", "const": "fp16", "metavar": "KIND"}
        elif len(arguments) > 1 and all(isinstance(a, type) for a in arguments):
            keywords |= {"nargs": len(arguments), "metavar": "N"}
        else:
            keywords["metavar"] = "N" if field.annotation in (int, float) else name.upper()
        group.add_argument(f"--{name}", **keywords)
    return parser


def plain_text(value: Any) -> str:
    """A default as one would type it."""
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "none"}[value]
    if isinstance(value, tuple):
        return " ".join(map(plain_text, value))
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def read_flags(argv: Sequence[str]) -> dict[str, Any]:
    """The options given as flags, or in the file of --config."""
    parser = make_parser()
    known, unknown = parser.parse_known_args(argv)
    names = [f"--{name}" for name in [*TrainConfig.model_fields, "config", "focal_loss"]]
    for word in unknown:
        raise InputError(f"unknown argument {word!r}{nearest(word, names)}; see python train.py --help")
    flags = vars(known)
    config_file = flags.pop("config")
    options = load_options(config_file) if config_file else {}
    return {**options, **flags}


def resolve(options: dict[str, Any]) -> TrainConfig:
    """The config of this call: defaults, below the resumed checkpoint's options, below the given ones."""
    config = make_config(options, "train.py")
    if config.test_only and config.resume is None:
        raise InputError("--test_only needs a checkpoint: --resume OUTPUT_DIR/checkpoints/best_model.pth")
    if config.resume is not None:
        source = checkpoint.find_checkpoint(config.resume)
        saved = checkpoint.load_checkpoint(source)["config"]
        home = source.parent.parent if source.parent.name == "checkpoints" else source.parent
        split = {"split_file": home / "split.json"} if (home / "split.json").exists() else {}
        config = make_config({**saved, **split, "output_dir": home, "pretrained": None, **options}, "train.py")
        if config.output_dir.resolve() != home.resolve():
            refuse_used(config.output_dir)
        for name, value in plain(config).items():
            if name in options and value != saved[name] and name not in ("resume", "test_only"):
                print(f"resume: {name} is {value} now, {saved[name]} before")
    paths = {name: getattr(config, name) for name in ("data_dir", "output_dir", "cache_dir", "split_file")}
    return config.model_copy(update={name: path.resolve() for name, path in paths.items() if path is not None})


def train(config: TrainConfig) -> EpochResult:
    """Train in output_dir, with its logs."""
    output = config.output_dir
    if config.resume is None:
        refuse_used(output)
    data = prepare_data(config)
    output.mkdir(parents=True, exist_ok=True)
    save_options(config, output / "training_config.json")
    save_split(data.split, output / "split.json")
    (output / "skipped_cases.txt").write_text("".join(f"{reason}\n" for reason in data.skipped))
    print(describe(config, data), flush=True)
    log = RunLog(output)

    def on_epoch_end(result: EpochResult) -> None:
        row = result.row()
        log.write(row)
        print(epoch_line(row, config.epochs), flush=True)

    try:
        result = fit(config, data, on_epoch_end)
    finally:
        log.close()
    print(ending(result, config))
    if data.skipped:
        print(f"{len(data.skipped)} bad cases were left out, see {output}/skipped_cases.txt")
    return result


def refuse_used(output: Path) -> None:
    """Raise InputError where another training's checkpoints would be written over."""
    if (output / "checkpoints" / checkpoint.LATEST).exists():
        raise InputError(
            f"{output} holds a training already; go on with --resume {output} or take another --output_dir"
        )


def describe(config: TrainConfig, data: Data) -> str:
    """What is about to be trained, in two lines."""
    parts = ", ".join(f"{len(getattr(data.split, part))} {part}" for part in ("train", "val", "test"))
    device = choose_device(config).type
    precision = "float32" if device == "cpu" or config.amp == "off" else config.amp
    return f"cases: {parts}; cache: {data.folder}\ndevice: {device}, {precision}; output: {config.output_dir}"


def ending(result: EpochResult, config: TrainConfig) -> str:
    """How a training ended, and what to do next."""
    if result.end_reason == "non_finite":
        return (
            f"stopped: the loss of epoch {result.epoch} is not finite at lr {result.stats['lr']:.2e}; "
            "lower --lr or set --gradient_clipping 1.0. latest.pth holds the epoch before"
        )
    reason = f"patience of {config.patience} validations" if result.end_reason == "patience" else "last epoch"
    score = f"best {config.metric} {result.best_score:.4f} at epoch {result.best_epoch}"
    best = result.checkpoints / checkpoint.BEST
    return (
        f"ended by {reason}; {score if result.best_epoch else 'its weights, as nothing is validated'}: {best}\n"
        f"test it: python train.py --resume {best} --test_only"
    )


def test(config: TrainConfig) -> dict[str, float]:
    """Score the test cases with the checkpoint of --resume; table, CSV and JSON."""
    assert config.resume is not None
    data = prepare_data(config)
    if not data.split.test:
        raise InputError("the split has no test cases; see --test_fraction and --split_file")
    source = checkpoint.find_checkpoint(config.resume, wanted=checkpoint.BEST)
    if checkpoint.load_checkpoint(source)["split"] != data.split.digest():
        raise InputError(
            f"the split is not that of {source}: a test case may have been trained on; restore --split_file"
        )
    network, _ = checkpoint.load_network(source, choose_device(config))
    scores = validate(network, config, data.folder, data.split.test, distances=True)
    print(f"{len(scores)} test cases, {source}")
    print(score_table(scores))
    config.output_dir.mkdir(parents=True, exist_ok=True)
    save_scores(scores, config.output_dir / "test_scores")
    return mean_scores(scores.values())


def score_table(scores: dict[str, dict[str, float]]) -> str:
    """Dice and HD95 (mm) of each case and their mean, as text."""
    width = max(len("mean"), *map(len, scores))
    names = [f"dice_{region}" for region in REGIONS] + ["dice_mean"]
    names += [name for name in next(iter(scores.values())) if name.startswith("hd95")]
    lines = ["case".ljust(width) + "".join(f"{name.replace('_', ' ').replace('dice', 'Dice'):>12}" for name in names)]
    for case, values in [*scores.items(), ("mean", mean_scores(scores.values()))]:
        lines.append(case.ljust(width) + "".join(f"{values[name]:12.{2 if 'hd95' in name else 4}f}" for name in names))
    return "\n".join(lines)


def save_scores(scores: dict[str, dict[str, float]], stem: Path) -> None:
    """Write scores as STEM.json and STEM.csv."""
    summary = {"cases": scores, "mean": mean_scores(scores.values())}
    stem.with_suffix(".json").write_text(json.dumps(summary, indent=2) + "\n")
    with stem.with_suffix(".csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["case", *next(iter(scores.values()))])
        writer.writeheader()
        writer.writerows({"case": case, **values} for case, values in scores.items())
