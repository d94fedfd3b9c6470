"""Wall seconds of a whole sweep on one GPU, ours and the usual one's, and until a Dice was first reached.

    python benchmarks/sweep_speed.py DATA PEER [--seeds 0 1 2] [--sides usual voxtune plain] [--cpu]

DATA holds BraTS2021 cases, of which the last two by name are validated whole. PEER is the usual sweep as a script of
its own: Ray Tune, OptunaSearch, ASHA, MONAI's CacheDataset and DynUNet in fp16; called as
`PEER DATA OUT --trials 8 --epochs 6 --steps 25 --seed S`, it prints a line `best (wall, busy, Dice)` at each better
score. Both sides: 8 trials of at most 6 epochs of 25 steps of two 128^3 patches, ASHA from epoch 1 by 3, the same
options with the same ranges (but loss weights from nine pairs, since voxtune chooses those), uniform patches, flips,
scale and shift, deep supervision, mean Dice of whole volumes after each epoch. "plain" is ours with `fast: false` and a
process for each trial, which tells search and speed apart. The data are not prepared before. Seconds count from the
start of the process, imports and Ray's start included. The final Dice of all is MONAI's DiceMetric on NIfTI files that
each side's best model has written.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from rich.table import Table

from tune.progress import make_console

TRIALS, EPOCHS, STEPS, VALIDATED = 8, 6, 25, 2
PATCH, CHANNELS = 128, [32, 64, 128, 256, 320, 320]
SMALL = 32, [4, 8, 16]  # with --cpu
MARK = "best "  # begins a line of a sweep that ends with a better Dice


def run_ours(data: Path, out: Path, seed: int, *, plain: bool, cpu: bool) -> None:
    """The sweep as voxtune runs it, in this process; prints each better score as the driver hears of it."""
    from tune.cluster import Cluster
    from tune.study import make_study

    names = sorted(path.name for path in data.iterdir() if path.is_dir())
    split = {"train": names[:-VALIDATED], "val": names[-VALIDATED:], "test": []}
    out.mkdir()
    (out / "split.json").write_text(json.dumps(split))
    patch, channels = SMALL if cpu else (PATCH, CHANNELS)
    train = {
        "data_dir": str(data), "cache_dir": str(out / "cache"), "split_file": str(out / "split.json"),
        "epochs": EPOCHS, "patches_per_epoch": 2 * STEPS, "batch_size": 2, "target_shape": [patch] * 3,
        "depth": len(channels), "base_channels": channels[0], "max_channels": channels[-1],
        "deep_supervision": True, "amp": "bf16", "num_workers": 6, "fast": not plain,
        "base_loss": "focal", "focal_alpha": 0.5, "tumour_share": 0.0, "momentum": 0.99,
        "exponential_gamma": 0.9, "step_size": EPOCHS // 3, "step_gamma": 0.1,
        "rotate_prob": 0.0, "zoom_prob": 0.0, "scale_prob": 1.0, "shift_prob": 1.0,
        "gamma_prob": 0.0, "noise_prob": 0.0, "blur_prob": 0.0,
    }  # fmt: skip
    weights = [[2 * focal, dice] for focal in (0.5, 1.0, 2.0) for dice in (0.5, 1.0, 2.0)]  # focal_alpha halves it
    study = make_study(
        {
            "study": {"trials": TRIALS, "seed": seed},
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
        from tune import recorder
        from tune.sweep import launch

        print("imported", flush=True)
        best, write = -1.0, recorder.Recorder.write

        def timed(self: recorder.Recorder, number: int, result: dict[str, Any]) -> None:
            nonlocal best
            if result.get("val_dice_mean", -1) > best:
                best = result["val_dice_mean"]
                print(f"{MARK}{best:.4f}", flush=True)
            write(self, number, result)

        recorder.Recorder.write = timed  # type: ignore[method-assign]
        launch(study, out / "run", cluster=cluster)


def predict_usual(out: Path, data: Path, labels: Path) -> None:
    """Write the label maps of the usual sweep's best checkpoint."""
    import monai.transforms as mt
    import nibabel as nib
    import numpy as np
    import torch
    from monai.inferers import sliding_window_inference
    from monai.networks.nets import DynUNet

    reports = [
        (json.loads(line), path.parent)
        for path in sorted(out.glob("plain/*/result.json"))
        for line in path.read_text().splitlines()
    ]
    report, home = max(reports, key=lambda each: each[0]["dice"])
    count = len(CHANNELS)
    network = DynUNet(
        3, 4, 3, [3] * count, [1] + [2] * (count - 1), [2] * (count - 1), filters=CHANNELS,
        norm_name=("INSTANCE", {"affine": True}), deep_supervision=True, deep_supr_num=3,
    ).cuda()  # fmt: skip
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


def run_side(side: str, asked: argparse.Namespace, seed: int, out: Path) -> dict[str, Any]:
    """One sweep in a process of its own: wall seconds, (seconds, Dice) of each better score, final Dice."""
    shutil.rmtree(out, ignore_errors=True)
    command = [sys.executable, __file__, str(asked.data), str(asked.peer), "--side", side, "--out", str(out)]
    command += ["--seeds", str(seed), *["--cpu"] * asked.cpu]
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
    shutil.rmtree(out)
    return {"wall": wall, "rows": rows, "best": rows[-1][1], "final": final}


def reached(found: dict[str, Any], dice: float) -> float:
    """Seconds until a score of `dice` or more; infinite where it never came."""
    return min((seconds for seconds, score in found["rows"] if score >= dice), default=float("inf"))


def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("peer", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--sides", nargs="+", default=["usual", "voxtune", "plain"])
    parser.add_argument("--dice", type=float, help="score to reach; by default the best of the usual sweep of a seed")
    parser.add_argument("--cpu", action="store_true", help="a tiny network, to try the script")
    parser.add_argument("--side", help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    asked.data = asked.data.resolve()
    if asked.side:
        return run_ours(asked.data, asked.out, asked.seeds[0], plain=asked.side == "plain", cpu=asked.cpu)
    table = Table("seed", "sweep", "wall, s", "best Dice", "final Dice", "Dice to reach", "reached, s", box=None)
    walls: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for seed in asked.seeds:
            goal = asked.dice
            for side in asked.sides:
                found = run_side(side, asked, seed, Path(scratch) / side)
                goal = goal or found["best"]
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
