"""The report: its sections and numbers, what it names, and that nothing in it can be fetched or executed."""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Sequence
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pytest
from optuna.trial import TrialState
from synthetic_run import make_synthetic_run

from trainable.core.config import TrainConfig
from trainable.core.errors import InputError
from trainable.core.locks import lock_folder
from trainable.core.option_files import save_options
from trainable.core.options import to_dict
from trainable.data.prepare import Data
from trainable.data.split import save_split
from trainable.evaluation.comparison import Comparison
from trainable.train import train
from trainable.training.training_dir import TrainingDir
from trainable.training.training_log import TrainingLog, read_rows
from tune.analysis.importance import MIN_PER_VALUE, importances
from tune.analysis.standing import comparable
from tune.confirmation.verdict import Arm, Verdict
from tune.report.option_pairs import pair_figure
from tune.report.overview import result_sentence, verdict_table
from tune.report.parallel_coordinates import coordinates_figure
from tune.report.privacy import Privacy
from tune.report.report import write_report
from tune.report.search_space import order_text, ordered_options, slice_figure
from tune.report.sweep_data import read_sweep
from tune.report.timeline import attempt_times, make_lanes, timeline_sentence, trial_spans
from tune.report.trials import trial_data
from tune.run.events import Event, EventKind, append_event
from tune.run.results import Run, read_run
from tune.spec.kinds import Choice

SECTIONS = [
    *("verdict", "recipe", "history", "trials", "rungs", "importance", "space", "cases", "timeline", "effort"),
    *("failures", "provenance"),
]
SECRETS = ("/home/alice", "alice", "ward7", "BraTS2021_0")
HEADINGS = ("h1", "h2", "h3")
HARMFUL = "RuntimeError: </script><script>alert(1)</script> /home/alice/brats/BraTS2021_00003/x.nii.gz on ward7"


class PageParser(HTMLParser):
    """What of a page the tests look at."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.headings: list[int] = []
        self.rows: dict[str, list[list[str]]] = {}
        self.scripts = 0
        self._caption, self._cell, self._open = "", False, ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        self.scripts += tag == "script"
        if tag in ("td", "th"):
            self.rows[self._caption][-1].append("")
            self._cell = True
        elif tag == "tr":
            self.rows.setdefault(self._caption, []).append([])
        elif tag == "caption":
            self._caption = ""
        elif tag in HEADINGS:
            self.headings.append(int(tag[1]))
        self._open = tag

    def handle_endtag(self, tag: str) -> None:
        self._cell &= tag not in ("td", "th")
        self._open = ""

    def handle_data(self, data: str) -> None:
        if self._cell:
            self.rows[self._caption][-1][-1] += data
        elif self._open == "span" and not self._caption:
            self._caption = data

    def table(self, caption: str) -> list[list[str]]:
        """The rows of the table whose caption begins so."""
        return next(rows for name, rows in self.rows.items() if name.strip().startswith(caption))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep with names, paths and an error in it that must not get into a report as they are."""
    overrides = ["train.data_dir=/home/alice/brats"]
    made = make_synthetic_run(
        tmp_path_factory.mktemp("report") / "night_run",
        trials=40,
        cases=6,
        gpus=3,
        failed_every=12,
        overrides=overrides,
    )
    events, journal = made / "events.jsonl", made / "journal.log"
    events.write_text(events.read_text().replace("node1", "ward7"))
    harmful = json.dumps(HARMFUL)[1:-1]
    journal.write_text(journal.read_text().replace("RuntimeError: CUDA error: unspecified launch failure", harmful))
    config = made / "study.yaml"
    note = "record:\n  note: '<script>alert(2)</script> at /home/alice/brats'\n"
    config.write_text(config.read_text().replace("record:\n", note))
    for error in made.glob("trials/*/error.txt"):
        error.write_text(f'File "/home/alice/brats/x.py", line 3\n{HARMFUL}\n')
    return made


@pytest.fixture(scope="module")
def text(folder: Path) -> str:
    return report_text(folder, anonymous=True)


@pytest.fixture(scope="module")
def run(folder: Path) -> Run:
    return read_run(folder)


def report_text(*folders: Path, anonymous: bool = True) -> str:
    """The page, without the code of plotly."""
    from plotly.offline import get_plotlyjs

    output = folders[0].parent / "page.html"
    write_report(folders, output, images="none", anonymous=anonymous, quiet=True)
    return output.read_text().replace(get_plotlyjs(), "")


def test_a_report_has_every_section_with_headings_in_order(text: str) -> None:
    page = PageParser(text)
    sections = [attrs["id"] for tag, attrs in page.tags if tag == "section"]
    assert sections == SECTIONS
    links = [attrs["href"] for tag, attrs in page.tags if tag == "a" and attrs["href"] != "#main"]
    assert links == [f"#{name}" for name in SECTIONS]
    levels = page.headings
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))
    names = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len(set(names)) == len(names)


def test_a_report_refers_to_nothing_outside_the_file(text: str) -> None:
    for tag, attrs in PageParser(text).tags:
        assert tag not in ("link", "iframe", "object", "base")
        assert all(attrs.get(name, "#").startswith(("#", "data:")) for name in ("src", "href", "srcset", "action"))
    assert "default-src 'none'" in text
    assert not re.search(r"@import|url\(", text)


def test_what_a_trial_says_cannot_become_part_of_the_page(text: str, folder: Path, tmp_path: Path) -> None:
    harmless = tmp_path / "harmless"
    shutil.copytree(folder, harmless)
    for file in (harmless / "journal.log", *harmless.glob("trials/*/error.txt")):
        file.write_text(file.read_text().replace("</script><script>alert(1)</script>", "nothing"))
    assert "alert(1)" in text
    assert "alert(2)&lt;/script&gt; at DATA" in text
    assert "<script>alert" not in text
    assert PageParser(text).scripts == PageParser(report_text(harmless)).scripts


def test_a_report_names_no_case_machine_or_folder_unless_asked(text: str, folder: Path) -> None:
    for secret in SECRETS:
        assert secret not in text
    assert "node 1, GPU 0" in text
    assert "CASE_4" in text  # BraTS2021_00003, in the error
    named = report_text(folder, anonymous=False)
    for secret in SECRETS:
        assert secret in named


def test_the_scores_and_the_recipe_are_those_of_the_winner_and_the_default(text: str, run: Run) -> None:
    page, winner, default = PageParser(text), run.best(), run.trials[0]
    rows = {row[0]: row for row in page.table("In the sweep")[1:]}
    for name, trial in ((f"trial {winner.number}", winner), ("trial 0 (default recipe)", default)):
        dice = [f"{trial.dice[region]:.4f}" for region in ("WT", "TC", "ET")]
        assert rows[name][1:5] == [*dice, f"{trial.score:.4f}"]
    defaults = run.config.space.default_values()
    changed = {name for name, value in winner.values.items() if value != defaults.get(name, value)}
    assert changed <= {row[0] for row in page.table("Options that differ")[1:]}


def test_the_rung_table_counts_every_decision(text: str, run: Run) -> None:
    rows = PageParser(text).table("The bar is")[1:]
    for row in rows:
        epoch = int(row[0].split()[1])
        decisions = [trial.rungs[epoch] for trial in run.trials if epoch in trial.rungs]
        stops = sum(decided.decision == "STOP" for decided in decisions)
        assert int(row[1]) == len(decisions)
        assert int(row[3]) == stops
    assert sum(int(row[3]) for row in rows) == sum(trial.status == "stopped early" for trial in run.trials)


def test_all_trials_are_in_the_table_and_in_the_data_of_the_curves(text: str, run: Run) -> None:
    rows = PageParser(text).table("All trials")[1:]
    assert sorted(int(row[0]) for row in rows) == list(range(len(run.trials)))
    assert rows[0][0] == str(run.best().number)
    stored = re.search(r'id="trial_data">(.*?)</script>', text)
    assert stored is not None
    data = json.loads(stored[1])
    best = data["trials"][run.best().number]
    assert max(best["v"]) == round(run.best().score or 0, 4)
    assert best["e"][best["v"].index(max(best["v"]))] == run.best().best_epoch
    options = {item["name"]: item["values"] for item in data["options"]}
    chosen = best["r"][list(options).index("optimizer")]
    assert options["optimizer"][chosen] == run.best().values["optimizer"]


def test_failures_alike_but_for_numbers_are_one_row(text: str, run: Run) -> None:
    rows = PageParser(text).table("Reasons")[1:]
    failed = [trial.number for trial in run.trials if trial.status == "failed"]
    row = next(row for row in rows if row[0] == "failed")
    assert row[1] == str(len(failed))
    assert row[3] == ", ".join(map(str, failed))


def test_a_sweep_that_nothing_drives_is_interrupted_and_one_without_trials_has_a_report(tmp_path: Path) -> None:
    going = make_synthetic_run(tmp_path / "going", trials=12, cases=2, gpus=3, running=2)
    assert "interrupted" in report_text(going)
    (going / "events.jsonl").unlink()  # as in a run of an older version
    page = PageParser(report_text(going))
    assert "timeline" not in [attrs.get("id") for tag, attrs in page.tags if tag == "section"]
    begun = make_synthetic_run(tmp_path / "begun", trials=1, cases=2, gpus=1, running=1)
    assert "No trial has" in report_text(begun)


def test_the_report_that_a_driver_has_written_at_its_end_is_of_an_ended_sweep(folder: Path, tmp_path: Path) -> None:
    going = make_synthetic_run(tmp_path / "going", trials=8, cases=2, gpus=3, running=2)
    with lock_folder(going):
        assert "running; this file is what was known" in report_text(going)
        append_event(going / "events.jsonl", Event(2e9, EventKind.SWEEP_ENDED, "the budget is spent"))
        text = report_text(going)
    assert "interrupted" in text
    assert "running; this file" not in text
    with lock_folder(folder):
        assert "<dd>ended</dd>" in report_text(folder)


def test_a_sweep_with_a_cost_shows_the_pareto_front(tmp_path: Path) -> None:
    folder = make_synthetic_run(tmp_path / "run", trials=12, cases=2, gpus=2, failed_every=0)
    config = folder / "study.yaml"
    config.write_text(config.read_text().replace("metric: val_dice_mean", "metric: [val_dice_mean, gpu_seconds]", 1))
    text, front = report_text(folder), read_run(folder).pareto_front()
    assert f"On the Pareto front: {', '.join(f'trial {trial.number}' for trial in front)}." in text
    assert "cost: gpu_seconds" in PageParser(text).table("All trials")[0]


def test_spans_end_with_their_attempt_and_idle_time_is_that_of_the_places_in_it(run: Run) -> None:
    def event(time: float, kind: EventKind, trial: int | None = None, gpus: tuple[int, ...] = ()) -> Event:
        return Event(time, kind, "", trial, "ward7" if gpus else "", gpus)

    events = [
        event(0, EventKind.SWEEP_STARTED),
        event(0, EventKind.TRIAL_STARTED, 0, (0,)),
        event(0, EventKind.TRIAL_STARTED, 1, (1,)),
        event(10, EventKind.TRIAL_ENDED, 0),
        event(20, EventKind.NEW_BEST, 1),  # the last sign of life before a kill
        event(100, EventKind.SWEEP_STARTED),
        event(100, EventKind.TRIAL_STARTED, 1, (0,)),
        event(110, EventKind.TRIAL_ENDED, 1),
    ]
    spans = trial_spans(events)
    assert [(span.trial, span.start, span.end) for span in spans] == [(0, 0, 10), (1, 0, 20), (1, 100, 110)]
    lanes = make_lanes(read_sweep(run, anonymous=True), spans)
    assert [lane.place for lane in lanes] == ["node 1, GPU 0", "node 1, GPU 1"]
    assert attempt_times(events) == [(0, 20), (100, 110)]
    assert timeline_sentence(spans, attempt_times(events)) == (
        "2 trials at once at most, over 30 s in 2 attempts; places for trials were idle 20 % of that time."
    )


def test_a_trial_at_a_time_on_changing_gpus_is_one_place_that_was_never_idle() -> None:
    events = [Event(0, EventKind.SWEEP_STARTED, "")]
    for number, (host, gpus) in enumerate([("a", (0, 1)), ("a", (1, 2)), ("b", (0, 1))]):
        events.append(Event(10.0 * number, EventKind.TRIAL_STARTED, "", number, host, gpus))
        events.append(Event(10.0 * number + 10, EventKind.TRIAL_ENDED, "", number))
    assert timeline_sentence(trial_spans(events), attempt_times(events)) == (
        "1 trial at once at most, over 30 s; places for trials were idle 0 % of that time."
    )


def test_trials_that_share_a_gpu_are_in_lanes_of_their_own(run: Run) -> None:
    events = [Event(float(number), EventKind.TRIAL_STARTED, "", number, "a", (0,)) for number in range(2)]
    events += [Event(5.0, EventKind.TRIAL_ENDED, "", number) for number in range(2)]
    lanes = make_lanes(read_sweep(run, anonymous=False), trial_spans(events))
    assert [lane.place for lane in lanes] == ["a, GPU 0 (1)", "a, GPU 0 (2)"]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("cannot read /home/alice/data/scan.nii.gz", "cannot read .../scan.nii.gz"),
        ("in /home/alice", "in ..."),
        ("~/data/x.py", ".../x.py"),
        ("DATA is /data/brats and /data/brats2/x/y", "DATA is DATA and .../y"),
        ("[Errno 2] No such file: '/data/Ward 7/x.pt'", "[Errno 2] No such file: '.../x.pt'"),
        ("cannot read:/home/alice/x.pt, no file", "cannot read:.../x.pt, no file"),
        ("PATH=/home/alice/bin:/home/alice/a#1/b", "PATH=.../bin:.../b"),
        ("s3://ward/bucket?key=1 failed", "s3://... failed"),
        ("raylet at 10.0.12.7:6379, torch 2.13.0, 1.2.3.4.5", "raylet at IP:6379, torch 2.13.0, 1.2.3.4.5"),
        ("BraTS_1: BraTS_12_flair.nii.gz", "CASE_1: CASE_2_flair.nii.gz"),
        ("died on ward7.hospital", "died on node 1"),
        ("epoch 3/9, lr 1e-3, 1/2", "epoch 3/9, lr 1e-3, 1/2"),
    ],
)
def test_names_in_a_text_are_replaced(text: str, shown: str) -> None:
    privacy = Privacy(True, ("BraTS_1", "BraTS_12"), ("ward7.hospital",), {"/data/brats": "DATA"})
    assert privacy.text(text) == shown
    assert Privacy(False, ("BraTS_1",)).text(text) == text


def test_sweeps_are_compared_only_if_their_scores_can_be(folder: Path, tmp_path: Path) -> None:
    other = make_synthetic_run(tmp_path / "other", trials=12, cases=6, gpus=3, overrides=["study.seed=0"])
    alike = report_text(other, folder)
    assert "Yes: data, split, epochs" in alike
    assert "found the highest score" in alike
    longer = make_synthetic_run(tmp_path / "longer", trials=12, cases=6, gpus=3, overrides=["train.epochs=60"])
    page = report_text(other, longer)
    assert "cannot be compared" in page
    assert ["train.epochs", "100", "60"] in PageParser(page).table("What scores depend on")


def test_a_training_has_a_report_of_its_own(phantoms: Path, prepared: Data, tmp_path: Path) -> None:
    folder, split_file = tmp_path / "final", tmp_path / "split.json"
    save_split(prepared.split, split_file)
    config = TrainConfig(
        data_dir=phantoms, cache_dir=prepared.folder, split_file=split_file, output_dir=folder, epochs=2, depth=2,
        target_shape=(16, 16, 16), base_channels=2, patches_per_epoch=2, batch_size=1, device="cpu", num_workers=0,
    )  # fmt: skip
    train(config)
    scores = {"dice_WT": 0.5, "dice_TC": 0.25, "dice_ET": 0.0, "dice_mean": 0.25}
    scores |= {f"hd95_{region}": 373.1287 for region in ("WT", "TC", "ET")}
    content = {"epoch": 2, "cases": {prepared.split.names[-1]: scores}}
    (folder / "test_scores.json").write_text(json.dumps(content))
    text = report_text(folder)
    best = float(read_rows(folder / "metrics.csv")[-1]["best_score"])
    assert f"mean Dice {best:.4f} on the validation cases" in text
    assert "373.13 mm means that one of truth and prediction is empty" in text
    assert not any(name in text for name in (*prepared.split.names, str(tmp_path), str(phantoms), str(prepared.folder)))


@pytest.mark.parametrize(
    ("validated", "best", "expected"),
    [
        ((4, 6), 6, "3 epochs (4 to 6) in 3 s; the best is epoch 6: mean Dice 0.6000 on the validation cases"),
        ((4, 6), 1, "the best, epoch 1 with val_dice_ET 0.7000, is of the folder that it was resumed from"),
        ((4,), 0, "3 epochs (4 to 6) in 3 s; none was validated since it was resumed."),
        ((), 0, "3 epochs (4 to 6) in 3 s; none was validated."),
    ],
)
def test_a_training_that_was_resumed_elsewhere_or_diverged_has_a_report(
    tmp_path: Path, validated: Sequence[int], best: int, expected: str
) -> None:
    save_options(TrainConfig(output_dir=tmp_path, metric="val_dice_ET"), TrainingDir(tmp_path).config)
    log = TrainingLog(tmp_path)
    for epoch in (4, 5, 6):
        row = {"epoch": epoch, "best_score": 0.7, "best_epoch": best, "avg_total_loss": math.nan, "lr": 1e-3}
        dice = {f"val_dice_{region}": epoch / 10 for region in ("WT", "TC", "ET", "mean")}
        log.write({**row, "epoch_time": 1.0, **(dice if epoch in validated else {})})
    text = report_text(tmp_path)
    assert expected in text
    assert ("Validation Dice by region" in text) == bool(validated)


def test_what_is_no_run_and_what_cannot_be_written_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nothing there to report on"):
        write_report([tmp_path])
    with pytest.raises(InputError, match="no such folder; expected the folder of a sweep"):
        write_report([folder, tmp_path / "none"], tmp_path / "x.html")
    with pytest.raises(InputError, match="no such folder; make it"):
        write_report([folder], tmp_path / "none" / "x.html")
    with pytest.raises(InputError, match="give -o the name of a file"):
        write_report([folder], tmp_path)


def test_a_trial_outside_a_changed_space_is_shown_with_its_own_recipe(run: Run) -> None:
    default = run.recipe(run.trials[0])
    recipe = {**to_dict(default), "lr": 0.5, "depth": default.depth + 1}
    outside = replace(
        run.trials[1],
        state=TrialState.FAIL,
        outside_space="lr is 0.5",
        values={},
        recipe=recipe,
        imported_from="/a/b 1",
    )
    data = read_sweep(replace(run, trials=[run.trials[0], outside]), anonymous=True)
    assert data.changes(outside) == {"lr": 0.5, "depth": default.depth + 1}
    shown = trial_data(data)
    at = [option["name"] for option in shown["options"]].index("lr")
    assert shown["options"][at]["values"][shown["trials"][1]["r"][at]] == "0.5"


def test_why_a_confirmation_dropped_a_recipe_names_nobody() -> None:
    means = {f"dice_{name}": 0.5 for name in ("WT", "TC", "ET", "mean")}
    failed = Arm("trial_0012", 1, {}, {}, "failed: cannot read /home/alice/BraTS_1/BraTS_1_flair.nii.gz")
    verdict = Verdict(
        "validation",
        "dice_mean",
        "",
        "default",
        "",
        "",
        {},
        (Arm("default", 2, means, dict.fromkeys(means, 0.1)), failed),
        "",
    )
    table = verdict_table("validation", verdict, Privacy(True, ("BraTS_1",)))
    assert table.rows[0] == ["default", "2", *["0.500 \N{PLUS-MINUS SIGN} 0.100"] * 4, ""]
    assert table.rows[1][0] == "trial\N{NO-BREAK SPACE}12"
    assert table.rows[1][-1] == "failed: cannot read .../CASE_1_flair.nii.gz"
    assert len(table.columns) == len(table.align) == len(table.rows[0])


def test_an_interval_of_a_confirmation_is_printed_within_the_differences_that_two_dice_can_have() -> None:
    names = [f"dice_{name}" for name in ("WT", "TC", "ET", "mean")]
    wide, unknown = Comparison(0.5, -1.2, 1.4, 0.94, 2, None), Comparison(0.5, *[math.nan] * 3, None, None)
    found = dict(zip(names, (wide, unknown, wide, wide), strict=True))
    verdict = Verdict("validation", "dice_mean", "trial_0012", "default", "", "", found, (), "")
    rows = {row[0]: row[2:] for row in verdict_table("validation", verdict, Privacy()).rows}
    assert rows["its 95 % interval"][:2] == ["-1.000 to +1.000"] * 2
    assert rows["likely to be better"] == ["94 %", "94 %", "\N{EN DASH}", "94 %"]


@pytest.mark.parametrize(
    ("driven", "start"),
    [(True, "40 of 40 trials have started; trial {} is the best so far: "), (False, "Of 40 trials, ")],
)
def test_the_best_trial_of_a_running_sweep_is_the_best_so_far(run: Run, driven: bool, start: str) -> None:
    data = read_sweep(run, anonymous=True)
    sentence = result_sentence(replace(data, run=replace(data.run, driven=driven)))
    assert sentence.startswith(start.format(run.best().number))


def test_names_in_charts_are_plain_text(folder: Path, tmp_path: Path) -> None:
    odd = tmp_path / "lr<b>1 & '2'"
    shutil.copytree(folder, odd)
    stored = re.findall(r'<script type="application/json">(.*?)</script>', report_text(odd, folder), re.S)
    names = [trace["name"] for trace in json.loads(stored[0])["data"]]
    assert names == ["lr&lt;b&gt;1 &amp; '2'", "night_run"]


@pytest.mark.slow
def test_a_report_of_1000_trials_is_below_12_megabytes(tmp_path: Path) -> None:
    run = make_synthetic_run(tmp_path / "run", trials=1000)
    assert write_report([run], images="none", quiet=True).stat().st_size < 12e6


def test_a_damaged_file_of_scores_takes_its_section_out_of_the_report_and_nothing_else(
    folder: Path, run: Run, tmp_path: Path
) -> None:
    damaged = tmp_path / "damaged"
    shutil.copytree(folder, damaged)
    scores = damaged / run.dir.trial(run.best().number).case_scores.relative_to(run.folder)
    scores.write_bytes(scores.read_bytes()[:200])
    page = PageParser(text := report_text(damaged))
    assert [attrs["id"] for tag, attrs in page.tags if tag == "section"] == SECTIONS
    reason = r"case_scores\.csv: line \d+ is damaged \(expected 6 values, found \d\)"
    assert re.search(rf"Left out, as a file is damaged: RUN/trials/\d+/{reason}", text)


def test_of_options_of_which_too_few_trials_tell_no_number_is_shown(text: str, run: Run) -> None:
    found = importances(run)
    told = {option.name for option in found.options if option.verdict != "too few trials"}
    assert {option.name for option in found.options} > told
    for name, share, interval, verdict, _, good, _ in PageParser(text).table("By the")[1:]:
        untold = verdict == "too few trials".replace(" ", "\N{NO-BREAK SPACE}")
        assert untold == (name.split(" (")[0] not in told)
        assert (share == interval == good == "\N{EN DASH}") == untold


def test_options_are_in_the_order_of_the_space_but_for_those_that_matter(run: Run) -> None:
    parameters = run.config.space.parameters
    names = [parameter.name for parameter in parameters]
    assert [option.name for option in ordered_options(parameters, [])] == names
    ordered = [option.name for option in ordered_options(parameters, [names[2]])]
    assert ordered == [names[2], *names[:2], *names[3:]]
    assert "none is shown to matter" in order_text([])


def test_the_star_of_the_winner_is_at_its_value(run: Run) -> None:
    data, winner = read_sweep(run, anonymous=True), run.best()
    trials = [trial for trial in run.trials if comparable(trial)]
    parameter = next(p for p in run.config.space.parameters if isinstance(p.kind, Choice) and p.name in winner.values)
    figure = slice_figure(data, parameter, trials, dict.fromkeys((trial.number for trial in trials), 0.5))
    assert figure.spec["data"][-1]["x"] == [parameter.kind.values.index(winner.values[parameter.name])]


def test_no_tick_of_parallel_coordinates_is_beyond_its_axis(run: Run) -> None:
    trials = [trial for trial in run.trials if comparable(trial)][:5]
    parameters = run.config.space.parameters
    figure = coordinates_figure(parameters, trials, dict.fromkeys((trial.number for trial in trials), 0.5))
    for axis in figure.spec["data"][0]["dimensions"]:
        low, high = axis["range"]
        assert all(low <= value <= high for value in (*axis["values"], *axis["tickvals"]))


def test_a_pair_of_values_that_few_trials_had_is_grey(run: Run) -> None:
    trials = [trial for trial in run.trials if comparable(trial)]
    first, second = run.config.space.parameters[:2]
    figure = pair_figure(first, second, trials, dict.fromkeys((t.number for t in trials), 1.0))
    enough, few = ([text for row in trace["text"] for text in row if text] for trace in figure.spec["data"])
    assert enough
    assert few
    assert all(int(text) >= MIN_PER_VALUE for text in enough)
    assert all(0 < int(text) < MIN_PER_VALUE for text in few)
