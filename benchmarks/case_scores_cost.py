"""Measure what scores per case cost: python benchmarks/case_scores_cost.py [--cases 188] [--epochs 250]

Prints the milliseconds of one epoch, over a whole training, in the trainer (making the rows' text, and its share of the
checkpoint) and in the driver of a sweep or the trainer's own log (writing case_scores.csv), and the size of the file.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np

from trainable.training.case_scores import SCORE_COLUMNS, CaseScoreFile, case_rows, read_case_scores


def main() -> None:
    """Write the scores of a training, epoch by epoch, and print what that took."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=188)
    parser.add_argument("--epochs", type=int, default=250)
    args = parser.parse_args()
    rng = np.random.default_rng(0)
    names = [f"BraTS2021_{index:05d}" for index in range(args.cases)]
    making, writing = [], []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "case_scores.csv"
        file = CaseScoreFile(path)
        for epoch in range(1, args.epochs + 1):
            scores = {name: dict(zip(SCORE_COLUMNS, rng.random(4).tolist(), strict=True)) for name in names}
            started = time.perf_counter()
            rows = case_rows(epoch, scores)
            made = time.perf_counter()
            file.write(epoch, rows)
            making.append(made - started)
            writing.append(time.perf_counter() - made)
        started = time.perf_counter()
        read_case_scores(path)
        reading, size = time.perf_counter() - started, path.stat().st_size
    for what, seconds in (("making the rows", making), ("writing the file", writing)):
        mean, last, worst = (1000 * value for value in (np.mean(seconds), np.mean(seconds[-10:]), max(seconds)))
        print(f"{what}: {mean:.2f} ms per epoch on average, {last:.2f} at the end, {worst:.2f} at worst")
    print(f"{args.cases} cases x {args.epochs} epochs: {size / 2**20:.1f} MiB, read in {reading:.2f} s")


if __name__ == "__main__":
    main()
