"""Wall seconds of a whole sweep on one GPU, ours and the usual one's, and until a Dice was first reached.

    python benchmarks/sweep_speed.py DATA PEER [--seeds 0 1 2] [--sides usual voxtune recipes longer plain]
                                     [--keep FOLDER] [--dice DICE] [--cpu]

DATA holds BraTS2021 cases, of which the last two by name are validated whole. PEER is the usual sweep as a script of
its own: Ray Tune, OptunaSearch, ASHA, MONAI's CacheDataset and DynUNet in fp16; called as
`PEER DATA OUT --trials 8 --epochs 6 --steps 25 --seed S`, it prints a line `best (wall, busy, Dice)` at each better
score. Both sides: 8 trials of at most 6 epochs of 25 steps of two 128^3 patches, ASHA from epoch 1 by 3, the same
options with the same ranges (but loss weights from nine pairs, since voxtune chooses those), uniform patches, flips,
scale and shift, deep supervision, mean Dice of whole volumes after each epoch. The data are not prepared before.
Seconds count from the start of the process, imports and Ray's start included. The final Dice of all is MONAI's
DiceMetric on NIfTI files that each side's best model has written.

TPE learns from ten trials on, so that each side draws its own eight. Three more sides tell search and speed apart:
recipes  ours with the very recipes that the usual sweep drew
longer   ours with up to 64 trials, until one has the usual sweep's best Dice
plain    ours with `fast: false` and a process for each trial

--keep: what each sweep has found is a file in FOLDER; those that are there are not run again.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import product
from pathlib import Path
from typing import Any

from rich.table import Table

from trainable.core.console import make_console
from tune.spec.trial_spec import Report

TRIALS, EPOCHS, STEPS, VALIDATED = 8, 6, 25, 2
PATCH, CHANNELS = 128, [32, 64, 128, 256, 320, 320]
SMALL = 32, [4, 8, 16]  # with --cpu
MARK = "best "  # begins a line of a sweep that ends with a better Dice
SIDES = "usual", "voxtune", "recipes", "longer", "plain"
LONGER = 64  # trials


def run_ours(
    data: Path,
    out: Path,
    *,
    seed: int,
    plain: bool,
    cpu: bool,
    trials: int,
    target: float | None,
    recipes: list[dict[str, Any]],
) -> None:
    """The sweep as voxtune runs it, in this process; prints each better score when it is reported.

    target: of a trial's score, at which it ends. recipes: what the trials train, instead of what voxtune draws.
    """
    from tune.driver.cluster.connection import Cluster
    from tune.spec.kinds import encode
    from tune.spec.sweep_config import make_sweep_config

    names = sorted(path.name for path in data.iterdir() if path.is_dir())
    split = {"train": names[:-VALIDATED], "val": names[-VALIDATED:], "test": []}
    out.mkdir()
    (out / "split.json").write_text(json.dumps(split))
    train = ours_train(data, out, plain=plain, cpu=cpu)
    pairs = [(recipe.pop("focal_weight"), recipe.pop("dice_weight")) for recipe in recipes]
    weights = [[2 * focal, dice] for focal, dice in pairs or product((0.5, 1.0, 2.0), repeat=2)]  # focal_alpha halves
    config = make_sweep_config(
        {
            "study": {"trials": trials, "seed": seed, "target": target},
            "early_stopping": {"type": "asha", "grace_period": 1, "reduction_factor": 3},
            "resources": {"gpu": 0 if cpu else 1, "cpu": 2 if cpu else 8, "reuse_processes": not plain},
            "train": train,
            "space": {
                "optimizer": {"choice": ["adam", "adamw", "sgd"]},
                "lr": {"loguniform": [1e-5, 1e-2]},
                "weight_decay": {"loguniform": [1e-6, 1e-2]},
                "scheduler": {"choice": ["cosine", "exponential", "step"]},
                "loss_weights": {"choice": weights},
                "accumulation_steps": {"choice": [1, 2, 4]},
            },
        }
    )
    with Cluster() as cluster:  # as `voxtune launch` does it
        from tune.driver.sweep import launch

        print("imported", flush=True)
        best = -1.0

        def print_better_score(number: int, report: Report, decision: str) -> None:
            nonlocal best
            if report.get("val_dice_mean", -1) > best:
                best = report["val_dice_mean"]
                print(f"{MARK}{best:.4f}", flush=True)

        first = [recipe | {"loss_weights": encode(pair)} for recipe, pair in zip(recipes, weights, strict=False)]
        launch(config, out / "run", cluster=cluster, params=tuple(first), on_report=print_better_score)


def ours_train(data: Path, out: Path, *, plain: bool, cpu: bool) -> dict[str, Any]:
    """What no trial changes: `train:` of the sweep as voxtune runs it."""
    patch, channels = SMALL if cpu else (PATCH, CHANNELS)
    return {
        "data_dir": str(data), "cache_dir": str(out / "cache"), "split_file": str(out / "split.json"),
        "epochs": EPOCHS, "patches_per_epoch": 2 * STEPS, "batch_size": 2, "target_shape": [patch] * 3,
        "depth": len(channels), "base_channels": channels[0], "max_channels": channels[-1],
        "deep_supervision": True, "amp": "bf16", "num_workers": 6, "fast": not plain,
        "base_loss": "focal", "focal_alpha": 0.5, "tumour_share": 0.0, "momentum": 0.99,
        "exponential_gamma": 0.9, "step_size": EPOCHS // 3, "step_gamma": 0.1,
        "rotate_prob": 0.0, "zoom_prob": 0.0, "scale_prob": 1.0, "shift_prob": 1.0,
        "gamma_prob": 0.0, "noise_prob": 0.0, "blur_prob": 0.0,
    }  # fmt: skip


def usual_recipes(out: Path) -> list[dict[str, Any]]:
    """What the trials of the usual sweep trained, in their order."""
    found = {}
    for path in out.glob("plain/*/params.json"):
        number = re.search(r"_[0-9a-f]+_(\d+)_", path.parent.name)
        assert number is not None, path
        found[int(number[1])] = json.loads(path.read_text())
    return [found[number] for number in sorted(found)]


def predict_usual(out: Path, data: Path, labels: Path) -> None:
    """Write the label maps of the usual sweep's best checkpoint."""
    import monai.transforms as mt
    import nibabel as nib
    import numpy as np
    import torch
    from monai.inferers import sliding_window_inference
    from step_throughput import monai_network

    reports = [
        (json.loads(line), path.parent)
        for path in sorted(out.glob("plain/*/result.json"))
        for line in path.read_text().splitlines()
    ]
    report, home = max(reports, key=lambda each: each[0]["dice"])
    network = monai_network()
    network.load_state_dict(torch.load(home / report["checkpoint_dir_name"] / "c.pt", weights_only=True)["model"])
    network.eval()
    names = ("flair", "t1", "t1ce", "t2")
    for case in validated(data):
        affine = nib.load(case / f"{case.name}_seg.nii.gz").affine
        files = [str(case / f"{case.name}_{name}.nii.gz") for name in names]
        image = mt.EnsureChannelFirst()(mt.LoadImage()(files))
        crop = mt.CropForeground()
        low, high = crop.compute_bounding_box(image)
        box = tuple(slice(int(first), int(last)) for first, last in zip(low, high, strict=True))
        x = mt.NormalizeIntensity(nonzero=True, channel_wise=True)(mt.SpatialPad([PATCH] * 3)(crop(image)))
        with torch.no_grad(), torch.autocast("cuda", torch.float16):
            found = sliding_window_inference(x[None].cuda(), [PATCH] * 3, 4, network, overlap=0.5, mode="gaussian")[0]
        core, whole, enhancing = (found > 0).cpu().numpy()
        label = np.zeros(whole.shape, np.uint8)
        label[whole], label[core], label[core & enhancing] = 2, 1, 4
        full = np.zeros(image.shape[1:], np.uint8)
        sizes = [part.stop - part.start for part in box]
        starts = [max(0, (have - size) // 2) for have, size in zip(label.shape, sizes, strict=True)]
        full[box] = label[tuple(slice(start, start + size) for start, size in zip(starts, sizes, strict=True))]
        nib.save(nib.Nifti1Image(full, affine), labels / f"{case.name}.nii.gz")


def validated(data: Path) -> list[Path]:
    """The folders of the cases that both sides validate on."""
    return sorted(path for path in data.iterdir() if path.is_dir())[-VALIDATED:]


def external_dice(labels: Path, data: Path) -> float:
    """Mean Dice of WT, TC and ET over the validated cases, by MONAI's DiceMetric."""
    import nibabel as nib
    import numpy as np
    import torch
    from monai.metrics import DiceMetric

    metric = DiceMetric(include_background=True, reduction="mean")
    for case in validated(data):
        masks = []
        for path in (labels / f"{case.name}.nii.gz", case / f"{case.name}_seg.nii.gz"):
            label = np.asarray(nib.load(path).dataobj)
            masks.append(torch.from_numpy(np.stack([label > 0, (label == 1) | (label == 4), label == 4]))[None].float())
        metric(*masks)
    return float(metric.aggregate().mean())


def run_side(
    side: str, asked: argparse.Namespace, seed: int, out: Path, goal: float | None, recipes: list[dict[str, Any]]
) -> dict[str, Any]:
    """One sweep in a new process.

    Returns its wall seconds, (seconds, Dice) of each better score, the best, the final Dice, the usual one's recipes.
    """
    shutil.rmtree(out, ignore_errors=True)
    if side == "recipes" and not recipes:
        raise SystemExit("recipes: those of the usual sweep are not known; name that side before this one")
    options = {
        "seed": seed,
        "plain": side == "plain",
        "cpu": asked.cpu,
        "trials": LONGER if side == "longer" else TRIALS,
        "target": goal if side == "longer" else None,
        "recipes": recipes if side == "recipes" else [],
    }
    command = [sys.executable, __file__, str(asked.data), str(asked.peer), "--ours", str(out), json.dumps(options)]
    if side == "usual":
        command = [sys.executable, str(asked.peer), str(asked.data), str(out), "--seed", str(seed)]
        command += ["--trials", str(TRIALS), "--epochs", str(EPOCHS), "--steps", str(STEPS), "--val", str(VALIDATED)]
        if asked.cpu:
            command += ["--patch", str(SMALL[0]), "--gpu", "0", "--cpu", "2", "--workers", "0"]
            command += ["--channels", *map(str, SMALL[1])]
    started = time.time()
    environment = {**os.environ, "RAY_AUTH_MODE": "disabled", "PYTHONUNBUFFERED": "1"}
    rows: list[tuple[float, float]] = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        for line in process.stdout:
            seconds = time.time() - started
            if line.startswith(MARK):
                rows.append((seconds, float(line.split()[-1].rstrip(")"))))
            print(f"{side} {seed}, {seconds:.1f} s: {line.rstrip()}", file=sys.stderr, flush=True)
    wall = time.time() - started
    if process.returncode:
        raise SystemExit(f"{side} failed with exit code {process.returncode}")
    labels = out / "labels"
    labels.mkdir()
    if side == "usual" and not asked.cpu:
        predict_usual(out, asked.data, labels)
    elif side != "usual":
        from trainable.predict import predict_cases

        predict_cases(out / "run" / "best" / "best_model.pth", validated(asked.data), labels)
    final = external_dice(labels, asked.data) if any(labels.iterdir()) else float("nan")
    recipes = usual_recipes(out)
    shutil.rmtree(out)
    return {"wall": wall, "rows": rows, "best": rows[-1][1], "final": final, "recipes": recipes}


def reached(found: dict[str, Any], dice: float) -> float:
    """Seconds until a score of `dice` or more; infinite if it was never reached."""
    return min((seconds for seconds, score in found["rows"] if score >= dice), default=float("inf"))


def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("peer", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=SIDES)
    parser.add_argument("--dice", type=float, help="score to reach; by default the best of the usual sweep of a seed")
    parser.add_argument("--keep", type=Path, help="folder of what the sweeps have found")
    parser.add_argument("--cpu", action="store_true", help="a tiny network, to try the script")
    parser.add_argument("--ours", nargs=2, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    asked.data = asked.data.resolve()
    if asked.ours:
        return run_ours(asked.data, Path(asked.ours[0]), **json.loads(asked.ours[1]))
    table = Table("seed", "sweep", "wall, s", "best Dice", "final Dice", "Dice to reach", "reached, s", box=None)
    walls: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        keep = asked.keep or Path(scratch)
        keep.mkdir(parents=True, exist_ok=True)
        for seed in asked.seeds:
            goal, recipes = asked.dice, list[dict[str, Any]]()
            for side in asked.sides:
                kept = keep / f"{side}_{seed}.json"
                if not kept.exists():
                    found = run_side(side, asked, seed, Path(scratch) / side, goal, recipes)
                    kept.write_text(json.dumps(found))
                found = json.loads(kept.read_text())
                goal, recipes = goal or found["best"], recipes or found["recipes"]
                walls.setdefault(side, []).append(found["wall"])
                figures = f"{found['wall']:.1f}", f"{found['best']:.4f}", f"{found['final']:.4f}", f"{goal:.4f}"
                table.add_row(str(seed), side, *figures, f"{reached(found, goal):.1f}")
                print(seed, side, found, file=sys.stderr, flush=True)
    print(__doc__)
    make_console().print(table)
    for side, each in walls.items():
        print(f"{side}: median wall {statistics.median(each):.1f} s")


if __name__ == "__main__":
    main()
