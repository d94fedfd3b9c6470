"""What a training of a recipe costs: measured for two recipes of a space, between them interpolated."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import optuna

from trainable.core.config import TrainConfig
from tune.spec.sweep_config import SweepConfig

SAMPLED_RECIPES = 200  # drawn from the space, to find the one that needs most memory and how much the others need


def estimate_memory(config: TrainConfig) -> float:
    """Return a number to compare the GPU memory of recipes by: it grows with that of a network's activations."""
    width = 4 if config.amp == "off" else 2
    kept = 0.4 if config.gradient_checkpointing else 1.0
    blocks = 1.2 if config.residual else 1.0
    return config.batch_size * math.prod(config.target_shape) * config.base_channels * width * kept * blocks


def sampled_recipes(config: SweepConfig) -> list[TrainConfig]:
    """Return trial 0's recipe, then SAMPLED_RECIPES drawn at random from the space, the same ones each time."""
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    drawn = [config.train_config(config.space.suggest(study.ask())) for _ in range(SAMPLED_RECIPES)]
    return [config.base_config(), *drawn]


def largest_recipe(config: SweepConfig) -> TrainConfig:
    """Return the recipe with the highest estimate_memory of sampled_recipes."""
    return max(sampled_recipes(config), key=estimate_memory)


@dataclass(frozen=True)
class RecipeCost:
    """What was measured of one recipe on one device, with as many trainings at once as a sweep would have there.

    size: its estimate_memory. patch_seconds: to train on one patch. case_seconds: to validate one case. start_seconds:
    to make the network and warm up. memory: peak bytes of the GPU, CUDA's own included; 0 on a CPU.
    """

    size: float
    patch_seconds: float
    case_seconds: float
    start_seconds: float
    memory: int = 0


@dataclass(frozen=True)
class Costs:
    """What the trainings of a space cost.

    default: of trial 0's recipe. largest: of the one with most memory that fits. sizes: estimate_memory of
    sampled_recipes. too_large: estimate_memory of recipes that were tried and did not fit, the default's among them if
    it is not measured. patches, cases: per epoch and per validation. divided_cases: train and val cases of the split,
    which a confirmation's folds divide anew. device: name of the GPU or CPU. device_memory: bytes that one training may
    use; 0 on a CPU. at_once: trainings that ran at the same time while it was measured.
    """

    default: RecipeCost
    largest: RecipeCost
    sizes: tuple[float, ...]
    patches: int
    cases: int
    divided_cases: int
    device: str
    device_memory: int = 0
    at_once: int = 1
    too_large: tuple[float, ...] = ()

    def between(self, size: float, low: float, high: float) -> float:
        """Return a value for a recipe of this size on the line through the default's and the largest's.

        low, high: the default's and the largest's value. A recipe smaller than the default has the default's.
        """
        first, last = self.default.size, self.largest.size
        if last <= first:
            return low
        return low + (high - low) * min(max((size - first) / (last - first), 0.0), 1.0)

    def epoch_seconds(self, size: float) -> float:
        """Return the seconds of the training part of an epoch of a recipe of this size."""
        return self.patches * self.between(size, self.default.patch_seconds, self.largest.patch_seconds)

    def validation_seconds(self, size: float) -> float:
        """Return the seconds of a validation of a recipe of this size."""
        return self.cases * self.between(size, self.default.case_seconds, self.largest.case_seconds)

    def start_seconds(self, size: float) -> float:
        """Return the seconds that a recipe of this size takes before its first step."""
        return self.between(size, self.default.start_seconds, self.largest.start_seconds)

    def training_seconds(self, size: float, epochs: int, val_freq: int) -> float:
        """Return the seconds of a whole training."""
        validated = self.validation_seconds(size) * math.ceil(epochs / val_freq)
        return self.start_seconds(size) + epochs * self.epoch_seconds(size) + validated

    def memory_needed(self, size: float) -> float:
        """Return the bytes of GPU memory that a recipe of this size is expected to need; 0 on a CPU.

        On the line through the two that were measured, also beyond the larger one; with one, in proportion to it.
        """
        one, two = self.default, self.largest
        if two.size <= one.size:
            return one.memory * max(1.0, size / one.size)
        return one.memory + (two.memory - one.memory) * (size - one.size) / (two.size - one.size)

    def fits(self, size: float) -> bool:
        """Return whether a recipe of this size is expected to fit into the memory of its GPU."""
        if self.too_large and size >= min(self.too_large):
            return False
        return not self.device_memory or self.memory_needed(size) <= self.device_memory

    @property
    def share_that_does_not_fit(self) -> float:
        """The share of the recipes drawn from the space that are expected not to fit."""
        return sum(not self.fits(size) for size in self.sizes[1:]) / max(1, len(self.sizes) - 1)


def by_size(recipes: Sequence[TrainConfig]) -> list[TrainConfig]:
    """Return recipes from the one with the highest estimate_memory to the lowest, one of each size."""
    return sorted({estimate_memory(recipe): recipe for recipe in recipes}.values(), key=estimate_memory, reverse=True)
