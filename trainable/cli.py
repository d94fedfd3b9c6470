"""The command `python train.py`: flags made from TrainConfig, then fit or test."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import torch

from trainable.core.config import TrainConfig
from trainable.core.errors import InputError
from trainable.core.options import (
    CALL_OPTIONS,
    did_you_mean,
    field_metadata,
    help_text,
    load_options,
    make_config,
    to_dict,
)
from trainable.evaluate import evaluate
from trainable.train_run import (
    NO_ROOM,
    ROOM,
    out_of_memory,
    refuse_used,
    resume_hint,
    train,
)
from trainable.training import checkpoint
from trainable.training.state import check_resumable

INTERRUPTED = 130
USAGE = """
  python train.py --data_dir DIR --output_dir DIR [options]        a new training
  python train.py --config FILE --data_dir DIR --output_dir DIR    a new training by an exported recipe
  python train.py --resume DIR [--lr N ...]                        go on with a training
  python train.py --resume DIR --test_only [--save_predictions]    score its test cases"""
EPILOG = (
    "DIR/checkpoints holds latest.pth, to go on from, and best_model.pth; DIR/metrics.csv and TensorBoard in DIR show "
    "the epochs. Exit codes: 0 done, 1 the training diverged, 2 something to mend, 130 Ctrl-C. docs/options.md has all "
    "options as tables."
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run train.py; returns its exit code: 0, 1 for a training that diverged, 2 for what the user must mend, 130 for
    Ctrl-C."""
    try:
        config = resolve(read_flags(sys.argv[1:] if argv is None else argv))
    except (InputError, OSError) as error:
        return report_error(error)
    except KeyboardInterrupt:
        return INTERRUPTED
    try:
        if config.test_only:
            evaluate(config)
        elif train(config).end_reason == "non_finite":
            return 1
    except InputError as error:
        return report_error(error)
    except OSError as error:
        return report_error(f"{error}{ROOM if error.errno in NO_ROOM else ''}{resume_hint(config)}")
    except torch.OutOfMemoryError:
        return report_error(f"{out_of_memory(config)}{resume_hint(config)}")
    except KeyboardInterrupt:
        print(f"\nstopped{resume_hint(config) or '; no epoch was finished yet'}")
        return INTERRUPTED
    return 0


def report_error(error: object) -> int:
    """Say what the user must mend."""
    print(f"error: {error}", file=sys.stderr)
    return 2


def make_parser() -> argparse.ArgumentParser:
    """One flag for each option of TrainConfig, in its groups. Values stay text: TrainConfig checks them."""
    parser = argparse.ArgumentParser(
        prog="train.py",
        usage=USAGE,
        description="Train a 3D U-Net on BraTS cases, go on with a training, or score its held-out test cases.",
        epilog=EPILOG,
        allow_abbrev=False,
    )
    parser.add_argument("--config", type=Path, help="YAML or JSON of options; flags come before it")
    parser.add_argument(
        "--focal_loss", action="store_true", default=argparse.SUPPRESS, help="short for --base_loss focal"
    )
    groups: dict[str, Any] = {}
    for name, field in TrainConfig.model_fields.items():
        facts = field_metadata(field)
        group = groups.setdefault(facts["group"], parser.add_argument_group(facts["group"]))
        keywords: dict[str, Any] = {"default": argparse.SUPPRESS, "dest": name}
        keywords["help"] = help_text(name).replace("%", "%%")
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


def read_flags(argv: Sequence[str]) -> dict[str, Any]:
    """The options given as flags, or in the file of --config."""
    parser = make_parser()
    known, unknown = parser.parse_known_args(argv)
    names = [f"--{name}" for name in [*TrainConfig.model_fields, "config", "focal_loss"]]
    for word in unknown:
        raise InputError(f"unknown argument {word!r}{did_you_mean(word, names)}; see python train.py --help")
    flags = vars(known)
    config_file = flags.pop("config")
    if flags.get("focal_loss") and flags.setdefault("base_loss", "focal") == "focal":
        del flags["focal_loss"]  # with another base loss it stays, and is refused
    options = load_options(config_file) if config_file else {}
    for name in options:
        if name in CALL_OPTIONS:
            raise InputError(f"{config_file}: {name} belongs on the command line, not in a file; remove it there")
        if f"--{name}" not in names:
            close = did_you_mean(str(name), list(TrainConfig.model_fields))
            raise InputError(f"{config_file}: unknown option {name!r}{close}")
    return {**options, **flags}


def resolve(options: dict[str, Any]) -> TrainConfig:
    """The config of this call: defaults, below the resumed checkpoint's options, below the given ones."""
    if options.get("resume") is None:
        config = make_config(options, "train.py")
        if config.test_only:
            raise InputError("--test_only needs a checkpoint: --resume OUTPUT_DIR/checkpoints/best_model.pth")
    else:
        if options.get("pretrained") is not None:
            raise InputError("--pretrained is what a new training starts from, and --resume goes on with one; drop one")
        wanted = checkpoint.BEST if options.get("test_only") else checkpoint.LATEST
        source, state = checkpoint.load_latest_valid(checkpoint.find_checkpoint(Path(options["resume"]), wanted=wanted))
        saved = state["config"]
        home = source.parent.parent if source.parent.name == "checkpoints" else source.parent
        split = {"split_file": home / "split.json"} if (home / "split.json").exists() else {}
        kept_options = {**saved, **split, "output_dir": home, "pretrained": None}
        config = make_config({**kept_options, **options, "resume": source}, "train.py")
        check_resumable(config, saved)
        if config.output_dir.resolve() != home.resolve():
            refuse_used(config.output_dir)
        for name, value in to_dict(config).items():
            if name in options and value != saved[name] and name not in CALL_OPTIONS:
                print(f"resume: {name} is {value} now, {saved[name]} before")
    paths = {name: getattr(config, name) for name in ("data_dir", "output_dir", "cache_dir", "split_file")}
    return config.model_copy(update={name: path.resolve() for name, path in paths.items() if path is not None})
