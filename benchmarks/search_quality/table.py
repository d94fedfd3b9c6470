"""The results as a table: one line per arm and budget."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import numpy as np
from scipy.stats import binomtest

from search_quality.arms import ARMS, AS_IT_WAS, BENCHES

Key = tuple[str, int, str, int]  # bench, workers, arm, seed
Results = dict[Key, dict[str, Any]]
Block = dict[str, dict[int, dict[str, Any]]]  # arm, or arm and reading -> seed -> what was reached
HEAD = (
    f"{'arm':38} {'seeds':>5} {'regret: median [quartiles] mean':>32} {'tried':>6} {'kept':>6} {'<default':>8}"
    f" {'epochs':>6} {'began':>5} {'whole':>5} {'killed':>6} {'top k.':>6} {'gain':>14} {'won':>6} {'p':>8}"
)


def blocks_of(results: Results) -> dict[tuple[str, int, int], Block]:
    """Return the results by bench, workers and budget."""
    blocks: dict[tuple[str, int, int], Block] = defaultdict(lambda: defaultdict(dict))
    for (bench, workers, arm, seed), record in results.items():
        for label, reached in record["marks"].items():
            budget, _, reading = label.partition(" ")
            block = blocks[bench, workers, int(budget)]
            block[f"{arm} / {reading}" if reading else arm][seed] = reached
            if arm == AS_IT_WAS:
                block["(the default recipe)"][seed] = {"regret": record["default"]}
                block["(the start recipe)"][seed] = {"regret": record["start"]}
    return blocks


def table_lines(results: Results, readings: Iterable[str] = ()) -> list[str]:
    """Return the table, a block per bench, workers and budget.

    readings: the other ways of naming the winner that are shown; all if it has "all".
    """
    lines = []
    blocks = blocks_of(results)
    order = list(BENCHES)
    for key in sorted(blocks, key=lambda key: (order.index(key[0]), -key[1], key[2])):
        bench, workers, budget = key
        lines += ["", f"{bench}, {workers} worker{'s' * (workers > 1)}, budget of {budget} trainings", HEAD]
        lines += block_lines(blocks[key], set(readings))
    return lines


def block_lines(block: Block, readings: set[str]) -> list[str]:
    """Return the lines of one bench, number of workers and budget."""
    ours = {seed: reached["regret"] for seed, reached in block.get(AS_IT_WAS, {}).items()}
    names = [name for name in block if " / " not in name or readings & {"all", name.partition(" / ")[2]}]
    names.sort(key=lambda name: (list(ARMS).index(base) if (base := name.partition(" / ")[0]) in ARMS else -1, name))
    compared = {name: compare(ours, block[name]) for name in names}
    tests = {
        name: found["p"]
        for name, found in compared.items()
        if found["p"] is not None and name != AS_IT_WAS and name[0] != "("
    }
    sure = holm(tests)
    return [line_of(name, block[name], compared[name], name in sure) for name in names]


def compare(ours: dict[int, float], reached: dict[int, dict[str, Any]]) -> dict[str, Any]:
    """Return the gain over voxtune as it was on the seeds that both have, and the sign test."""
    seeds = sorted(reached.keys() & ours.keys())
    gain = np.array([ours[seed] - reached[seed]["regret"] for seed in seeds])
    won, lost = int((gain > 1e-9).sum()), int((gain < -1e-9).sum())
    return {"gain": gain, "won": won, "lost": lost, "p": binomtest(won, won + lost).pvalue if won + lost else None}


def line_of(name: str, reached: dict[int, dict[str, Any]], compared: dict[str, Any], sure: bool) -> str:
    """Return one line. sure: whether Holm's correction leaves its p below 0.05."""
    regret = np.array([each["regret"] for each in reached.values()])
    middle, low, high = np.percentile(regret, [50, 25, 75])
    text = f"{name:38} {len(regret):5} {middle:9.2f} [{low:5.2f}, {high:6.2f}] {regret.mean():6.2f}"
    text += f" {mean(reached, 'tried'):>6} {mean(reached, 'kept'):>6} {mean(reached, 'below', 100, 0, ' %'):>8}"
    text += f" {mean(reached, 'used', 1, 1):>6} {mean(reached, 'began', 1, 1):>5} {mean(reached, 'whole', 1, 1):>5}"
    text += f" {mean(reached, 'killed', 100, 0, ' %'):>6} {mean(reached, 'top_killed', 100, 0, ' %'):>6}"
    gain, won, lost = compared["gain"], compared["won"], compared["lost"]
    if name != AS_IT_WAS and len(gain) > 1:
        error = gain.std(ddof=1) / len(gain) ** 0.5
        text += f" {gain.mean():+6.2f} +-{error:5.2f} {won:3}/{won + lost:<3}"
        text += f" {compared['p']:7.4f}{'*' if sure else ' '}" if compared["p"] is not None else ""
    return text.rstrip()


def mean(reached: dict[int, dict[str, Any]], key: str, unit: float = 1, digits: int = 2, suffix: str = "") -> str:
    """Return the mean over the seeds that have it, as text."""
    values = [each[key] for each in reached.values() if each.get(key) is not None and not math.isnan(each[key])]
    return f"{unit * np.mean(values):.{digits}f}{suffix}" if values else ""


def holm(tests: dict[str, float], level: float = 0.05) -> set[str]:
    """Return the names that Holm's step-down procedure leaves."""
    sure: set[str] = set()
    for rank, name in enumerate(sorted(tests, key=tests.__getitem__)):
        if tests[name] > level / (len(tests) - rank):
            break
        sure.add(name)
    return sure
