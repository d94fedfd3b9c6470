"""The benchmarks and the arms by name, and what is run in which order."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

from search_quality import peer_arms
from search_quality.bench import ETA, Bench
from search_quality.cases import Cases
from search_quality.recorded import Real, Scan
from search_quality.simulator import Arm
from search_quality.synthetic import Hartmann, Line
from search_quality.unet import UNet
from search_quality.voxtune_arms import as_it_is, as_it_was, third

BENCHES: dict[str, Callable[[int], Bench]] = {
    "unet": UNet,
    "unet_calm": functools.partial(UNet, noise=0.003),
    "unet_far": functools.partial(UNet, far=True),
    "scan": Scan,
    "real": Real,
    "cases": Cases,
    "hartmann_good": functools.partial(Hartmann, bias=2.5, noise=2.0),
    "hartmann_bad": functools.partial(Hartmann, bias=3.5, noise=4.0),
    "line": Line,
}


def first_rung_left_out(bench: Bench, seed: int) -> Arm:
    """Return voxtune as it was without the first of its rungs."""
    return as_it_was(bench, seed, grace=ETA * bench.was.early_stopping.grace_period)


def one_rung(bench: Bench, seed: int, *, start: bool = False) -> Arm:
    """Return voxtune as it was with one rung only, at a third of the epochs."""
    return as_it_was(bench, seed, grace=third(bench), start=start)


AS_IT_WAS, AS_IT_IS = "voxtune as it was", "voxtune"
ARMS: dict[str, Callable[[Bench, int], Arm]] = {
    AS_IT_WAS: as_it_was,
    "random, no stopping": functools.partial(peer_arms.Ray, random=True, asha=False),
    "random + ASHA (Ray)": functools.partial(peer_arms.Ray, random=True),
    "Optuna TPE + ASHA (Ray)": peer_arms.Ray,
    "Optuna TPE + MedianPruner": peer_arms.PlainOptuna,
    "Optuna TPE, no stopping": functools.partial(peer_arms.PlainOptuna, pruner=False),
    "NePS PriorBand, same prior": peer_arms.PriorBand,
    "Syne Tune CQR, no stopping": peer_arms.Cqr,
    "was, no stopping": functools.partial(as_it_was, stopping="none"),
    "was, median rule": functools.partial(as_it_was, stopping="median"),
    "was, one rung at R/3": one_rung,
    "was, no first rung": first_rung_left_out,
    "was, searcher random": functools.partial(as_it_was, searcher="random"),
    "was, GP of Optuna": functools.partial(as_it_was, searcher="gp"),
    "was, default not first": functools.partial(as_it_was, default=False),
    "was, start recipe": functools.partial(as_it_was, start=True),
    AS_IT_IS: as_it_is,
    "is, no priors": functools.partial(as_it_is, priors=False),
    "is, no start recipe": functools.partial(as_it_is, start=False),
    "is, neither": functools.partial(as_it_is, priors=False, start=False),
    "is, misleading priors": functools.partial(as_it_is, misleading=True, start=False, short=True),
    "is, priors in short trainings too": functools.partial(as_it_is, short=True),
    "is, even points only": functools.partial(as_it_is, startup=10**6),
    "is, model from trial 8": functools.partial(as_it_is, startup=8),
    "is, TPE": functools.partial(as_it_is, searcher="tpe", startup=12),
    "is, recent value": functools.partial(as_it_is, stopping={"value": "recent"}),
    "is, half a margin": functools.partial(as_it_is, stopping={"margin": "auto"}),
    "is, one rung at R/3": functools.partial(as_it_is, stopping={"grace_period": "third"}),
}


@dataclass(frozen=True)
class Stage:
    """A part of the work: arms on a benchmark, with a number of workers, at budgets in whole trainings."""

    bench: str
    workers: int
    budgets: tuple[int, ...]
    arms: tuple[str, ...]


SMALL = (8, 16, 32)
CORE = ("unet", "cases", "scan", "hartmann_good", "real", "unet_far")
PEERS = ("random + ASHA (Ray)", "Optuna TPE + ASHA (Ray)", "random, no stopping", "NePS PriorBand, same prior")
RULES = ("was, one rung at R/3", "was, start recipe", "was, no stopping", "was, searcher random")
KNOWING = ("is, no priors", "is, no start recipe", "is, neither", "is, even points only", "is, TPE")
STAGES: tuple[Stage, ...] = (
    *(Stage(bench, 4, SMALL, (AS_IT_WAS, AS_IT_IS)) for bench in CORE),
    *(Stage(bench, 4, SMALL, KNOWING) for bench in CORE),
    *(Stage(bench, 4, SMALL, PEERS[:2]) for bench in CORE),
    *(Stage(bench, 4, SMALL, RULES) for bench in CORE),
    *(Stage(bench, 4, SMALL, PEERS[2:]) for bench in CORE),
    *(Stage(bench, 4, (64,), (AS_IT_WAS, AS_IT_IS, "is, misleading priors")) for bench in ("unet_far", "unet")),
    *(Stage(bench, 1, (8, 16), (AS_IT_WAS, AS_IT_IS, *PEERS[:2])) for bench in ("unet",)),
)
