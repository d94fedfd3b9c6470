"""A 3D U-Net as one would draw it: a surface over all recipes that brats.yaml has had, another one for each seed."""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from search_quality.bench import DATA, Bench, Recipe, brats_as_it_was, given_by_yaml
from tune.spec.space import DEFAULTS, Space
from tune.spec.sweep_config import SweepConfig
from tune.spec.sweep_file import load_sweep_config

BEST = 0.905  # Dice of the best recipe, on each surface
NNUNET: Recipe = {  # as far as it lies in the space as it was
    "optimizer": "sgd",
    "lr": 1e-2,
    "momentum": 0.99,
    "weight_decay": 3e-5,
    "scheduler": "cosine",
    "warmup_epochs": 0,
    "base_loss": "bce",
    "loss_weights": [1.0, 1.0],
    "accumulation_steps": 1,
    "gradient_clipping": 12.0,
    "dropout": 0.0,
    "augment_strength": 1.0,
    "residual": False,
}
BELIEFS: dict[str, Any] = {  # for a space with one range of lr, the one of SGD
    "optimizer": [1, 1, 3],
    "scheduler": [1, 3, 1, 1],
    "gradient_clipping": [1, 2, 1, 1],
    "lr": (1e-2, "medium"),
    "momentum": (0.99, "low"),
    "weight_decay": (3e-5, "low"),
    "augment_strength": (1.0, "low"),
    "dropout": (0.0, "low"),
}


class UNet(Bench):
    """A 3D U-Net, drawn as it is known to behave.

    Dice = best - what the recipe loses for good - what it has not learned yet - the noise of the present lr. The best
    lr depends on optimizer, momentum and batch; it lies where the winners of Auto-nnU-Net lie (SGD 1e-2, standard
    deviation 0.29 decades), and the valley is 0.3 decades wide; above it trainings start slowly and then diverge. A
    schedule that keeps lr high (cosine, poly) looks worse than one that lowers it early until the last epochs, and ends
    better. The best is that of unet_ranges.yaml.
    """

    epochs, every, noise, seed_noise = 100, 5, 0.010, 0.004
    trained = 876

    def __init__(self, seed: int, *, far: bool = False, noise: float = noise) -> None:
        """Draw a surface.

        Args:
            far: whether the best recipes lie where no prior expects them: SGD's lr ten times lower, Adam ahead.
            noise: standard deviation of one validation.
        """
        self.was, self.noise = brats_as_it_was(), noise
        self.patience = self.was.fixed("patience")
        rng = np.random.default_rng([seed, 77])
        draw = rng.normal
        shift = draw(0, 0.29, 3)  # decades
        self.best_lr = {"sgd": -2.1 + shift[0], "adam": -3.1 + shift[1], "adamw": -3.1 + shift[1] + 0.3 * shift[2]}
        self.behind = {"sgd": 0.0, "adam": 0.003 + draw(0, 0.003), "adamw": 0.0025 + draw(0, 0.003)}
        if far:
            shift = np.clip(shift, -0.3, 0.3)
            self.best_lr = {"sgd": -3.1 + shift[0], "adam": -3.5 + shift[1], "adamw": -3.5 + shift[1] + 0.3 * shift[2]}
            self.behind = {"sgd": 0.008, "adam": 0.001 + draw(0, 0.001), "adamw": 0.001 + draw(0, 0.001)}
        self.best_decay = {"sgd": -4.5 + draw(0, 0.5), "adam": -5 + draw(0, 0.5), "adamw": -3 + draw(0, 0.7)}
        self.losses = {"bce": 0.0, "focal": draw(0, 0.002), "tversky": draw(0, 0.002)}
        self.weights = {weights: draw(0, 0.001) for weights in ((1, 1), (1, 2), (2, 1), (1, 4))}
        self.batch = {1: 0.0, 2: draw(0.0005, 0.001), 4: draw(0.0015, 0.0015)}
        self.clip = {0.0: draw(0.001, 0.0005), 12.0: 0.0, 1.0: draw(0.0005, 0.0005), 0.5: draw(0.001, 0.001)}
        self.drop, self.augment, self.residual = draw(0.0010, 0.0015), draw(1.0, 0.3), draw(0.001, 0.001)
        self.no_nesterov = draw(0.0003, 0.0005)
        self.offset = 0.0
        self.default, self.start, self.beliefs = brats_default(), NNUNET, BELIEFS
        self.optimum = self.best_recipe()
        self.offset, self.best = BEST - self.final(self.optimum), BEST

    def best_recipe(self) -> Recipe:
        """Return the best of all recipes of unet_ranges.yaml, in closed form: most options act on their own.

        The checks compare it with a search.
        """
        found: Recipe = {}
        optimizer = min(self.behind, key=self.behind.__getitem__)
        steps = max(self.batch, key=lambda count: best_schedules()[count][0] - self.batch[count])
        _, off, schedule = best_schedules()[steps]
        lr = self.best_lr[optimizer] + 0.15 * math.log2(steps) + 0.3 * off
        found["optimizer"] = optimizer
        if optimizer == "sgd":
            found |= {"momentum": 0.98, "nesterov": self.no_nesterov >= 0}
            lr += 0.5 * math.log10(0.02 / 0.01)
        found |= {"lr": 10**lr, "weight_decay": 10 ** max(self.best_decay[optimizer], -6.0), **schedule}
        loss = min(self.losses, key=self.losses.__getitem__)
        found["base_loss"] = loss
        found |= {"focal": {"focal_gamma": 2.0}, "tversky": {"tversky_alpha": 0.3}}.get(loss, {})
        found["loss_weights"] = list(min(self.weights, key=self.weights.__getitem__))
        found["accumulation_steps"] = steps
        found["gradient_clipping"] = min(self.clip, key=self.clip.__getitem__)
        found |= {"dropout": 0.0, "augment_strength": 1.0, "residual": self.residual > 0}
        for name, count, step in (("dropout", 4, 0.1), ("augment_strength", 9, 0.25)):
            values = [round(index * step, 12) for index in range(count)]
            found[name] = max(values, key=lambda value: self.final({**found, name: value}))
        return found

    def shipped(self) -> SweepConfig:
        return load_sweep_config("brats")

    def given(self, config: SweepConfig) -> list[Recipe]:
        return given_by_yaml(config)

    def curve(self, values: Recipe) -> NDArray[np.float64]:
        recipe = {**DEFAULTS, **values}
        kind, steps = recipe["optimizer"], recipe["accumulation_steps"]
        best_lr = self.best_lr[kind] + 0.15 * math.log2(steps)
        if kind == "sgd":
            best_lr += 0.5 * math.log10((1 - recipe["momentum"]) / 0.01)
        off = (math.log10(recipe["lr"]) - best_lr) / 0.3
        lr = 10 ** (0.3 * off) * schedule_of(recipe, self.epochs, self.every)  # of each epoch, 1 where it is best
        learned = np.cumsum(2 * lr**0.7 / (1 + lr**0.7)) / steps**0.3  # in epochs at the best lr
        to_learn = 0.70 * np.exp(-learned / 2) + 0.05 / (1 + learned / 10)
        unrest = 0.025 * lr / (1 + lr)
        epochs = np.arange(1, self.epochs + 1)
        warm = 0.5 if recipe["scheduler"] == "cosine" and recipe["warmup_epochs"] else 1.0
        slow_start = 0.04 * warm * max(off + 0.5, 0) * np.exp(-epochs / 15)
        memorised = 0.006 * (1 - recipe["augment_strength"]) * np.exp(-epochs / 25)  # less augmentation leads at first
        score = self.offset + 0.92 - self.lost(recipe, kind, off) - to_learn - unrest - slow_start + memorised
        diverges_at = 2.3 + {0.0: 0.0, 12.0: 0.4, 1.0: 0.8, 0.5: 1.0}[recipe["gradient_clipping"]] + 0.3 * (warm < 1)
        if off > diverges_at:
            score = 0.2 + 0 * score
        found: NDArray[np.float64] = np.clip(score, 0, 1)[self.every - 1 :: self.every]
        return found

    def lost(self, recipe: Recipe, kind: str, off: float) -> float:
        """Return what a recipe is behind at its end, whatever the schedule."""
        lost = self.behind[kind] + off_lost(off)
        lost += 0.0010 * min((math.log10(recipe["weight_decay"]) - self.best_decay[kind]) ** 2, 6)
        lost += self.losses[recipe["base_loss"]] + self.weights[tuple(recipe["loss_weights"])]
        lost += 0.0006 * (recipe["focal_gamma"] - 2) ** 2 if recipe["base_loss"] == "focal" else 0
        lost += 0.02 * (recipe["tversky_alpha"] - 0.3) ** 2 if recipe["base_loss"] == "tversky" else 0
        if kind == "sgd":
            lost += 0.0008 * ((recipe["momentum"] - 0.98) / 0.04) ** 2
            lost += 0 if recipe["nesterov"] else self.no_nesterov
        lost += self.batch[recipe["accumulation_steps"]] + self.clip[recipe["gradient_clipping"]]
        lost += self.drop * recipe["dropout"] * 10 / 2 + 0.02 * max(recipe["dropout"] - 0.1, 0) ** 2 * 10
        return float(
            lost + 0.0025 * (recipe["augment_strength"] - self.augment) ** 2 - self.residual * recipe["residual"]
        )


def schedule_of(recipe: Recipe, epochs: int, every: int) -> NDArray[np.float64]:
    """Return the lr of each epoch as a share of the first."""
    at, kind = np.arange(epochs), recipe["scheduler"]
    if kind == "cosine":
        warm = recipe["warmup_epochs"]
        falling = (1 + np.cos(np.pi * (at - warm) / (epochs - warm))) / 2
        return np.where(at < warm, (at + 1) / (warm + 1), falling)
    if kind == "poly":
        return np.asarray((1 - at / epochs) ** recipe["poly_power"])
    if kind == "step":
        return np.asarray(recipe["step_gamma"] ** (at // recipe["step_size"]))
    if kind == "exponential":
        return np.asarray(recipe["exponential_gamma"] ** at)
    wait = every * (recipe["plateau_patience"] + 1)  # plateau: scores stall from epoch 30 on
    return np.asarray(recipe["plateau_factor"] ** np.maximum((at - 30) // wait, 0))


def off_lost(off: float) -> float:
    """Return what a training loses for good whose lr is `off` widths of the valley from the best one."""
    return 0.0020 * off**2 / (1 + off**2 / 12)


@functools.cache
def best_schedules() -> dict[int, tuple[float, float, Recipe]]:
    """Return for each accumulation_steps the best schedule, its `off`, and what is not lost at the end."""
    schedules: list[Recipe] = [{"scheduler": "cosine", "warmup_epochs": warm} for warm in (0, 2, 5)]
    schedules += [{"scheduler": "poly", "poly_power": power} for power in np.linspace(0.5, 2, 31).tolist()]
    schedules += [{"scheduler": "exponential", "exponential_gamma": g} for g in np.linspace(0.93, 0.99, 25).tolist()]
    schedules += [
        {"scheduler": "step", "step_size": size, "step_gamma": gamma}
        for size in range(20, 46)
        for gamma in (0.1, 0.2, 0.5)
    ]
    schedules += [
        {"scheduler": "plateau", "plateau_factor": round(0.1 * tenth, 12), "plateau_patience": patience}
        for tenth in range(1, 8)
        for patience in range(1, 11)
    ]
    shares = np.array([schedule_of(schedule, UNet.epochs, UNet.every) for schedule in schedules])
    offs, found = np.linspace(-2, 3, 101), dict[int, tuple[float, float, Recipe]]()
    for steps in (1, 2, 4):
        best = (-math.inf, 0.0, Recipe())
        for off in offs.tolist():
            lr = 10 ** (0.3 * off) * shares
            learned = (2 * lr**0.7 / (1 + lr**0.7)).sum(1) / steps**0.3
            slow = 0.04 * max(off + 0.5, 0) * np.exp(-UNet.epochs / 15)
            lost = 0.70 * np.exp(-learned / 2) + 0.05 / (1 + learned / 10) + 0.025 * lr[:, -1] / (1 + lr[:, -1])
            kept = -lost - slow - off_lost(off)
            at = int(np.argmax(kept))
            best = max(best, (float(kept[at]), off, schedules[at]), key=lambda item: item[0])
        found[steps] = best
    return found


@functools.cache
def brats_default() -> Recipe:
    """Return the default recipe as it was."""
    return brats_as_it_was().space.default_values()


@functools.cache
def all_recipes() -> Space:
    """Return the space whose best recipe is a surface's best."""
    return load_sweep_config(DATA / "unet_ranges.yaml").space
