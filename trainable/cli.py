"""The command `python train.py`: flags made from TrainConfig, then fit or test."""

from __future__ import annotations

import argparse
import errno
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import torch

from trainable import checkpoint
from trainable.cases import load_split, save_split
from trainable.config import InputError, TrainConfig
from trainable.data import Data, prepare_data
from trainable.evaluate import evaluate
from trainable.logs import RunLog, epoch_line
from trainable.loop import EpochResult, fit
from trainable.options import (
    OF_ONE_CALL,
    field_facts,
    help_text,
    load_options,
    make_config,
    nearest,
    plain,
    save_options,
)
from trainable.parallel import locked, write_whole
from trainable.training import Training, choose_device, refuse_changes

INTERRUPTED = 130
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
ROOM = ": there is no room for it; make some"
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
        return failed(error)
    except KeyboardInterrupt:
        return INTERRUPTED
    try:
        if config.test_only:
            evaluate(config)
        elif train(config).end_reason == "non_finite":
            return 1
    except InputError as error:
        return failed(error)
    except OSError as error:
        return failed(f"{error}{ROOM if error.errno in NO_ROOM else ''}{kept(config)}")
    except torch.OutOfMemoryError:
        return failed(f"{out_of_memory(config)}{kept(config)}")
    except KeyboardInterrupt:
        print(f"\nstopped{kept(config) or '; no epoch was finished yet'}")
        return INTERRUPTED
    return 0


def failed(error: object) -> int:
    """Say what the user must mend."""
    print(f"error: {error}", file=sys.stderr)
    return 2


def kept(config: TrainConfig) -> str:
    """What of an interrupted training is safe, and how to go on from it; nothing before its first checkpoint."""
    latest = config.output_dir / "checkpoints" / checkpoint.LATEST
    if config.test_only or not latest.exists():
        return ""
    folder = shlex.quote(str(config.output_dir))
    return f". The last finished epoch is kept; go on with: python train.py --resume {folder}"


def out_of_memory(config: TrainConfig) -> str:
    """What did not fit into the GPU, and what to lower."""
    free, total = torch.cuda.mem_get_info(choose_device(config))
    patch = " x ".join(map(str, config.target_shape))
    used = torch.cuda.max_memory_allocated()
    ways = []
    if config.amp == "off":
        ways.append("--amp bf16 (half the memory)")
    if config.batch_size > 1:
        same = config.batch_size * config.accumulation_steps
        steps = "" if config.test_only else f" --accumulation_steps {same} (as many patches a step)"
        ways.append(f"--batch_size 1{steps}")
    if not config.gradient_checkpointing and not config.test_only:
        ways.append("--gradient_checkpointing (the same result, slower)")
    ways.append("a smaller --target_shape")
    return (
        f"out of GPU memory with batch_size {config.batch_size}, target_shape {patch}, amp {config.amp}: of the card's "
        f"{total / 2**30:.1f} GiB this training took {used / 2**30:.1f} and {free / 2**30:.1f} are free now. "
        f"Try {', '.join(ways)}"
    )


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
        facts = field_facts(field)
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
        raise InputError(f"unknown argument {word!r}{nearest(word, names)}; see python train.py --help")
    flags = vars(known)
    config_file = flags.pop("config")
    if flags.get("focal_loss") and flags.setdefault("base_loss", "focal") == "focal":
        del flags["focal_loss"]  # with another base loss it stays, and is refused
    options = load_options(config_file) if config_file else {}
    for name in options:
        if name in OF_ONE_CALL:
            raise InputError(f"{config_file}: {name} belongs on the command line, not in a file; remove it there")
        if f"--{name}" not in names:
            close = nearest(str(name), list(TrainConfig.model_fields))
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
        source, state = checkpoint.load_last_good(checkpoint.find_checkpoint(Path(options["resume"]), wanted=wanted))
        saved = state["config"]
        home = source.parent.parent if source.parent.name == "checkpoints" else source.parent
        split = {"split_file": home / "split.json"} if (home / "split.json").exists() else {}
        kept_options = {**saved, **split, "output_dir": home, "pretrained": None}
        config = make_config({**kept_options, **options, "resume": source}, "train.py")
        refuse_changes(config, saved)
        if config.output_dir.resolve() != home.resolve():
            refuse_used(config.output_dir)
        for name, value in plain(config).items():
            if name in options and value != saved[name] and name not in OF_ONE_CALL:
                print(f"resume: {name} is {value} now, {saved[name]} before")
    paths = {name: getattr(config, name) for name in ("data_dir", "output_dir", "cache_dir", "split_file")}
    return config.model_copy(update={name: path.resolve() for name, path in paths.items() if path is not None})


def train(config: TrainConfig, data: Data | None = None) -> EpochResult:
    """Train in output_dir, with its logs. data: its cases where they are prepared."""
    output = config.output_dir
    refuse_sweep(output)
    with locked(output):
        if config.resume is None:
            refuse_used(output)
        check_files(config)
        data = data or prepare_data(config)
        log = RunLog(output)

        def on_start(training: Training) -> None:
            save_options(config, output / "training_config.json")
            save_split(data.split, output / "split.json")
            write_whole(output / "skipped_cases.txt", "".join(f"{reason}\n" for reason in data.skipped))
            print(describe(config, data), flush=True)
            if training.epoch:
                print(f"goes on after epoch {training.epoch} at lr {training.schedule.lr:.2e}", flush=True)
            if training.row and not log.has(training.epoch):  # a kill came between the last checkpoint and its row
                log.write(training.row)

        def on_epoch_end(result: EpochResult) -> None:
            row = result.row()
            log.write(row, result.pictures)
            print(epoch_line(row, config.epochs), flush=True)

        result = fit(config, data, on_epoch_end, on_start)
        print(ending(result, config))
        if data.skipped:
            print(f"{len(data.skipped)} bad cases were left out, see {output}/skipped_cases.txt")
        return result


def check_files(config: TrainConfig) -> None:
    """Raise InputError for what a training would only miss after its cases are prepared."""
    choose_device(config)
    if config.pretrained is not None:
        checkpoint.find_checkpoint(config.pretrained, wanted=checkpoint.BEST)
    if config.split_file is not None:
        load_split(config.split_file)


def refuse_sweep(output: Path) -> None:
    """Raise InputError for the folder of a sweep, or one of those that a sweep itself writes there."""
    for folder in (output, output.parent):
        if all((folder / name).exists() for name in ("study.yaml", "journal.log")):
            raise InputError(f"{output} belongs to the sweep {folder}; take another --output_dir")


def refuse_used(output: Path) -> None:
    """Raise InputError where another training's files would be written over."""
    if (output / "checkpoints" / checkpoint.LATEST).exists() or (output / "metrics.csv").exists():
        raise InputError(
            f"{output} holds a training already; go on with --resume {output} or take another --output_dir"
        )


def describe(config: TrainConfig, data: Data) -> str:
    """What is about to be trained, in two lines."""
    parts = ", ".join(f"{len(getattr(data.split, part))} {part}" for part in ("train", "val", "test"))
    if 0 < config.val_cases < len(data.split.val):
        parts += f", {config.val_cases} of val validated each time"
    device = choose_device(config).type
    precision = "float32" if device == "cpu" or config.amp == "off" else config.amp
    return f"cases: {parts}; cache: {data.folder}\ndevice: {device}, {precision}; output: {config.output_dir}"


def ending(result: EpochResult, config: TrainConfig) -> str:
    """How a training ended, and what to do next."""
    if result.end_reason == "non_finite":
        return (
            f"stopped: {result.note}. Lower --lr, or set --gradient_clipping 1.0 or --amp bf16; look at those cases. "
            f"Nothing was learnt from these steps{kept(config) or '; no epoch was finished before'}"
        )
    reason = f"patience of {config.patience} validations" if result.end_reason == "patience" else "last epoch"
    score = f"best {config.metric} {result.best_score:.4f} at epoch {result.best_epoch}"
    best = result.checkpoints / checkpoint.BEST
    return (
        f"ended by {reason}; {score if result.best_epoch else 'its weights, as nothing is validated'}: {best}\n"
        f"test it: python train.py --resume {shlex.quote(str(best))} --test_only"
    )
