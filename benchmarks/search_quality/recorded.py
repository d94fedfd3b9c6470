"""Benchmarks from recorded trainings: a Gaussian process from recipes to whole curves."""

from __future__ import annotations

import csv
import functools
import json
import tempfile
from collections import defaultdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_solve, cholesky
from scipy.optimize import minimize

from search_quality.bench import DATA, Bench, Recipe, brats_as_it_was, foreign, given_by_yaml, maximise, scaled
from search_quality.unet import BELIEFS, NNUNET, all_recipes
from tune.spec.kinds import Choice, LogUniform, Uniform
from tune.spec.space import DEFAULTS
from tune.spec.sweep_config import SweepConfig
from tune.spec.sweep_file import load_sweep_config

CACHE = Path(tempfile.gettempdir()) / "search_quality"
Floats = NDArray[np.float64]
SCAN_FEATURES = (
    "lr",
    "wd",
    "warmup_fraction",
    "beta1",
    "beta2",
    "eps",
    "vision_width",
    "text_width",
    "global_batch_size",
    "train_num_samples_per_epoch",
    "total_epochs",
)
SCAN_LINEAR = ("warmup_fraction", "beta1", "beta2")  # the others are taken on a logarithmic scale
REAL_EPOCHS, REAL_EVERY, REAL_PATCHES = 24, 2, 60
MAX_FITTED = 200  # trainings by which the kernel is chosen


def matern(points: Floats, others: Floats, lengths: Floats) -> Floats:
    """Return the Matern 5/2 kernel of two sets of points."""
    difference = (points[:, None] - others[None]) / lengths
    distance = np.sqrt(5 * (difference**2).sum(-1))
    return np.asarray((1 + distance + distance**2 / 3) * np.exp(-distance))


def fit_process(points: Floats, targets: Floats) -> tuple[Floats, float, Floats]:
    """Return length scales, signal variance and weights of the likeliest Gaussian process.

    Lengths are believed to be about 1.5 and the signal's variance about 1, so that few trainings are not
    extrapolated far.

    Args:
        points: (trainings, features), each feature from 0 to 1.
        targets: (trainings, outputs), standardised; all outputs have one kernel.
    """

    some = np.random.default_rng(0).permutation(len(points))[:MAX_FITTED]

    def parts(logs: Floats, rows: Any) -> tuple[Floats, Floats]:
        x = points[rows]
        kernel = np.exp(logs[-2]) * matern(x, x, np.exp(logs[:-2])) + np.exp(logs[-1]) * np.eye(len(x))
        factor = cholesky(kernel + 1e-8 * np.eye(len(x)), lower=True)
        return factor, cho_solve((factor, True), targets[rows])

    def loss(logs: Floats) -> float:
        try:
            factor, weights = parts(logs, some)
        except np.linalg.LinAlgError:
            return 1e25
        fit = 0.5 * (targets[some] * weights).sum() + targets.shape[1] * np.log(np.diag(factor)).sum()
        unlikely = ((logs[:-2] - start[:-2]) ** 2).sum() / (2 * 0.75**2) + logs[-2] ** 2 / (2 * 0.5**2)
        return float(fit + unlikely)

    start = np.array([*np.full(points.shape[1], np.log(1.5)), 0.0, np.log(0.05)])
    bounds = [(np.log(0.05), np.log(50))] * points.shape[1] + [(-5, 5), (np.log(1e-5), 1)]
    best = minimize(loss, start, bounds=bounds, method="L-BFGS-B", options={"maxiter": 25}).x
    return np.exp(best[:-2]), float(np.exp(best[-2])), parts(best, slice(None))[1]


def kept_on_disk(name: str, fit: Any) -> dict[str, Floats]:
    """Return the arrays that `fit` returns, read from a file if it has been called before."""
    path = CACHE / f"{name}.npz"
    if not path.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        np.savez(path, **fit())
    return dict(np.load(path))


class Scan(Bench):
    """689 real trainings of a small CLIP (scan-bench 0.2.3), of 6 to 10 epochs each, resampled to 9.

    Searched by validation loss, judged by test loss, in nat.
    """

    epochs, noise, seed_noise = 9, 0.007, 0.02  # the first is what validation and test loss differ by

    def __init__(self, seed: int) -> None:
        self.model = scan_model()
        widths = Choice((64, 128, 192, 256, 320, 384))
        self.was = foreign(
            {
                "lr": LogUniform(1e-5, 5e-2),
                "wd": LogUniform(1e-6, 0.2),
                "warmup_fraction": Uniform(0.0, 0.75),
                "beta1": Uniform(0.9, 0.99),
                "beta2": Uniform(0.95, 0.999),
                "eps": LogUniform(1e-8, 1e-6),
                "vision_width": widths,
                "text_width": widths,
            },
            self.epochs,
        )
        self.default = dict(zip(SCAN_FEATURES, (1e-3, 1e-2, 0.05, 0.9, 0.999, 1e-8, 256, 256), strict=False))
        self.start = {  # OpenCLIP's
            **self.default, "wd": 0.2, "warmup_fraction": 0.2, "beta2": 0.98, "eps": 1e-6, "lr": 5e-4,
            "vision_width": 384,
        }  # fmt: skip
        self.beliefs = {
            "lr": (5e-4, "medium"),
            "wd": (0.1, "low"),
            "warmup_fraction": (0.2, "low"),
            "vision_width": [1, 1, 2, 2, 3, 3],
            "text_width": [1, 1, 2, 2, 3, 3],
        }
        self.best = scan_best(self)

    def losses(self, values: Recipe) -> Floats:
        """Return the validation loss of each epoch, then the last one's test loss."""
        model = self.model
        x = np.array([*(values[name] for name in SCAN_FEATURES[:-3]), *model["extra"]], float)
        x = (np.where(model["logs"], np.log(x), x) - model["low"]) / (model["high"] - model["low"])
        kernel = float(model["scale"]) * matern(x[None], model["points"], model["lengths"])[0]
        return np.asarray(np.exp(kernel @ model["weights"] * model["sd"] + model["mean"]))

    def curve(self, values: Recipe) -> Floats:
        return -self.losses(values)[:-1]

    def final(self, values: Recipe) -> float:
        return -float(self.losses(values)[-1])


@functools.cache
def scan_model() -> dict[str, Floats]:
    """Return the process from recipe to curve; its fit takes minutes once."""

    def fit() -> dict[str, Any]:
        import pandas

        spec = find_spec("scan_bench")
        if spec is None or not spec.submodule_search_locations:
            raise ImportError("scan_bench")
        table = pandas.read_csv(f"{spec.submodule_search_locations[0]}/vlm/data.csv")
        logs = np.array([name not in SCAN_LINEAR for name in SCAN_FEATURES])
        rows, targets = [], []
        for _, training in table[table.total_epochs >= 6].groupby("config_id"):
            training = training.sort_values("epoch")
            total, val = int(training.total_epochs.iloc[0]), training.val_loss.to_numpy(float)
            if training.epoch_diverged.any() or len(val) < total or not np.isfinite(val).all():
                continue
            x = training[list(SCAN_FEATURES)].iloc[0].to_numpy(float)
            rows.append(np.where(logs, np.log(x), x))
            at = np.interp(np.arange(1, 10) / 9, training.epoch / total, val)
            targets.append([*at, training.test_loss.iloc[-1]])
        x, y = np.array(rows), np.log(np.array(targets))  # logarithms, so that no loss is below zero
        points, y, scaling = standardise(x, y)
        lengths, scale, weights = fit_process(points, y)
        extra = np.array([4096, np.exp(np.median(x[:, -2])), 9])  # not searched: the batch, and the length
        return {
            "logs": logs, "lengths": lengths, "points": points, "weights": weights, "scale": scale, "extra": extra,
            **scaling,
        }  # fmt: skip

    return kept_on_disk("scan", fit)


def standardise(x: Floats, y: Floats) -> tuple[Floats, Floats, dict[str, Floats]]:
    """Return features from 0 to 1, targets of mean 0 and variance 1, and what was subtracted and divided by."""
    low, high, mean, sd = x.min(0), x.max(0), y.mean(0), y.std(0)
    span = np.where(high > low, high - low, 1.0)
    return (x - low) / span, (y - mean) / sd, {"low": low, "high": low + span, "mean": mean, "sd": sd}


def scan_best(bench: Scan) -> float:
    """Return the score of the best recipe of scan, the same for all seeds."""

    def fit() -> dict[str, Any]:
        optimum = maximise(bench.space, bench.final, 0, known=(bench.default, bench.start), draws=8000, starts=10)
        return {"best": np.array(bench.final(optimum))}

    return float(kept_on_disk("scan_best", fit)["best"])


class Real(Bench):
    """The recorded sweep of data/real_sweep: 40 real trainings of 3D U-Nets of 24 epochs on 15 cases, 28 stopped early.

    One Gaussian process over recipe and epoch. 40 trainings say little: where none was near, the process returns to the
    mean of all, and its best is the best of what these trainings suggest. In Dice points.
    """

    epochs, every, trained = REAL_EPOCHS, REAL_EVERY, 7

    def __init__(self, seed: int) -> None:
        self.model = real_model()
        self.noise, self.seed_noise = float(self.model["noise"]), float(self.model["seed_noise"])
        was = brats_as_it_was()
        stopping = was.early_stopping.model_copy(update={"grace_period": REAL_EVERY})
        self.was = was.with_train({**was.train, "epochs": self.epochs, "val_freq": self.every}).model_copy(
            update={"early_stopping": stopping}
        )
        self.default, self.start, self.beliefs = self.space.default_values(), NNUNET, BELIEFS
        self.best = real_best(self)

    def shipped(self) -> SweepConfig:
        now = load_sweep_config("brats")
        train = {**now.train, "epochs": self.epochs, "val_freq": self.every, "patches_per_epoch": REAL_PATCHES}
        return now.with_train(train).model_copy(update={"early_stopping": scaled(now, self.was)})

    def given(self, config: SweepConfig) -> list[Recipe]:
        return given_by_yaml(config)

    def curve(self, values: Recipe) -> Floats:
        model = self.model
        features = real_features({**DEFAULTS, **values})
        epochs = np.arange(self.every, self.epochs + 1, self.every)
        points = np.array([[*features, epoch_feature(epoch)] for epoch in epochs])
        kernel = float(model["scale"]) * matern(points, model["points"], model["lengths"])
        return np.clip(kernel @ model["weights"][:, 0] * float(model["sd"]) + float(model["mean"]), 0, 1)


REAL_CHOICES = {
    "optimizer": ("adam", "adamw", "sgd"),
    "scheduler": ("plateau", "cosine", "step", "exponential", "poly"),
    "base_loss": ("bce", "focal", "tversky"),
    "gradient_clipping": (0.0, 12.0, 1.0, 0.5),
}


def epoch_feature(epoch: float) -> float:
    """Return where an epoch is between the first validation and the end, from 0 to 1, on a logarithmic scale."""
    return float(np.log(epoch / REAL_EVERY) / np.log(REAL_EPOCHS / REAL_EVERY))


def real_features(recipe: Recipe) -> list[float]:
    """Return a recipe as numbers of the order of 1; each choice has one number per value."""
    found = [
        (np.log10(recipe["lr"]) + 5) / 3.5,
        (np.log10(recipe["weight_decay"]) + 6) / 4,
        (recipe["momentum"] - 0.8) / 0.19 if recipe["optimizer"] == "sgd" else 0.0,
        np.log2(recipe["accumulation_steps"]) / 2,
        recipe["dropout"] / 0.3,
        recipe["augment_strength"] / 2,
        float(recipe["residual"]),
        np.log2(recipe["loss_weights"][1] / recipe["loss_weights"][0]) / 2,
    ]
    for name, values in REAL_CHOICES.items():
        found += [0.7 * (recipe[name] == value) for value in values]
    return found


@functools.cache
def real_model() -> dict[str, Floats]:
    """Return the process from recipe and epoch to Dice; its fit takes half a minute once."""
    return kept_on_disk("real", fit_real)


def fit_real() -> dict[str, Any]:
    """Fit the process to the recorded curves, and to nnU-Net's recipe, of which README.md there has four trainings."""
    recipes = json.loads((DATA / "real_sweep" / "recipes.json").read_text())
    curves: dict[str, list[tuple[int, float]]] = defaultdict(list)
    with (DATA / "real_sweep" / "curves.csv").open() as file:
        for row in csv.DictReader(file):
            curves[row["trial"]].append((int(row["epoch"]), float(row["dice_mean"])))
    rows = [
        ([*real_features(recipes[trial]), epoch_feature(epoch)], score)
        for trial, curve in curves.items()
        for epoch, score in curve
    ]
    whole = [[score for _, score in curve] for curve in curves.values() if curve[-1][0] == REAL_EPOCHS]
    gain_of_best = float(np.mean([max(curve) - np.mean(curve[-4:]) for curve in whole]))
    nnunet = {**DEFAULTS, **NNUNET, "scheduler": "poly"}
    rows += [
        ([*real_features(nnunet), epoch_feature(REAL_EPOCHS)], best - gain_of_best)
        for best in (0.6395, 0.6668, 0.6691, 0.6524)
    ]
    x, y = np.array([row for row, _ in rows]), np.array([[score] for _, score in rows])
    mean, sd = y.mean(), y.std()
    lengths, scale, weights = fit_process(x, (y - mean) / sd)
    healthy = [np.diff(curve[4:]) for curve in whole if max(curve) > 0.3]
    noise = float(np.std(np.concatenate(healthy)) / 2**0.5)  # of successive validations late in a training
    return {
        "points": x, "lengths": lengths, "scale": scale, "weights": weights, "mean": mean, "sd": sd, "noise": noise,
        "seed_noise": 0.007,  # of the best of a training among seeds: 0.008, 0.008 and 0.013 in the README there
    }  # fmt: skip


def real_best(bench: Real) -> float:
    """Return the score of the best recipe of all that brats.yaml has had; the same for all seeds."""

    def fit() -> dict[str, Any]:
        known = (bench.default, bench.start)
        return {"best": np.array(bench.final(maximise(all_recipes(), bench.final, 0, known=known)))}

    return float(kept_on_disk("real_best", fit)["best"])
