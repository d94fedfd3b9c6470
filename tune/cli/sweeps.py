"""The verbs of a sweep: check a space, launch, resume, look at it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from trainable.core.console import make_console
from trainable.core.errors import InputError
from trainable.core.idle_options import idle_text
from trainable.core.logger import logger, outlive_reader
from trainable.core.options import format_value
from trainable.core.storage import place_of_data
from tune.analysis.json_output.best import best_output
from tune.analysis.json_output.check import check_output
from tune.analysis.json_output.verify import verify_output
from tune.cli.command import Address, CacheDir, Data, Labels, RunFolder, Set, SkipBadCases, Space, Trials, app
from tune.cli.json_flag import Json, messages_on_stderr, print_json
from tune.cli.plan import Hours, data_overrides, time_to_plan_for, user_overrides, with_confirm
from tune.confirmation.export import export_recipe
from tune.confirmation.plan import ONLY_THE_DEFAULT, challengers
from tune.confirmation.status import confirmed_choice
from tune.run.expected_gain import ended_as_asked
from tune.run.results import Run, read_run
from tune.run.run_dir import confirm_command
from tune.search.sampler import first_recipes
from tune.spec.idle_parameters import idle_parameters
from tune.spec.sweep_file import load_sweep_config
from tune.terminal.outcome import print_outcome
from tune.terminal.tables import print_best, print_space, summary_line
from tune.terminal.text_lines import flow

if TYPE_CHECKING:
    from tune.driver.cluster.connection import Cluster
    from tune.spec.sweep_config import SweepConfig

NoReport = Annotated[bool, typer.Option("--no_report", help="Do not keep RUN/report.html up to date.")]
Notify = Annotated[
    str | None,
    typer.Option(
        metavar="URL",
        help="Post a JSON there when the sweep ends, its budget is spent or a trial has failed; see docs/sweeps.md. "
        "RUN does not keep the URL: give it to resume again.",
    ),
]
FIRST_TRIALS = 5  # that `check` shows


@app.command(epilog="Example: voxtune check my_space.yaml --set study.trials=100")
def check(space: Space, set_: Set = None, json_: Json = False) -> None:
    """Check a YAML; show the space as a table and the first trials of its sweep."""
    with messages_on_stderr(json_):
        config = load_sweep_config(space, set_ or [])
        for values in first_recipes(config, FIRST_TRIALS):
            config.train_config(values)
    if json_:
        print_json(check_output(config, FIRST_TRIALS))
        return
    print_space(config)
    make_console().print("\n[bold]the first trials[/]")
    given = [f"{name}:" for name, _ in config.given_recipes]
    for number, values in enumerate(first_recipes(config, FIRST_TRIALS)):
        options = [
            f"{number}:",
            *given[number : number + 1] * (number > 0),
            *(f"{name}={format_value(value)}" for name, value in values.items()),
        ]
        logger.info("\n".join(flow(options, make_console().width, between=" ", indent="   ")))
    logger.info(f"\ntrial 0: {config.space.describe_defaults()}")
    if idle := idle_text(idle_parameters(config.space)):
        logger.warning(f"\n{idle}")
    logger.info("\nok")


@app.command(epilog="Example: voxtune launch brats --data DIR --out RUN --trials 64")
def launch(
    space: Space,
    data: Data,
    out: Annotated[Path, typer.Option(metavar="RUN", help="Folder of the sweep, new.")],
    trials: Trials = None,
    hours: Hours = None,
    address: Address = None,
    storage: Annotated[
        str | None,
        typer.Option(
            help="Where Ray keeps checkpoints: a shared folder, or a URI such as s3://bucket/sweeps, where snapshots "
            "of RUN's text files are kept too. Credentials are taken from the environment; a server other than AWS: "
            "s3://bucket/sweeps?endpoint_override=HOST:PORT&scheme=http."
        ),
    ] = None,
    cache_dir: CacheDir = None,
    labels: Labels = None,
    skip_bad_cases: SkipBadCases = False,
    warm_start: Annotated[
        list[Path] | None, typer.Option("--warm_start", metavar="RUN", help="Begin with its trials; repeatable.")
    ] = None,
    fail_fast: Annotated[bool, typer.Option("--fail_fast", help="End the sweep at the first failed trial.")] = False,
    confirm: Annotated[bool, typer.Option("--confirm", help="Confirm the winner at the end, see confirm.")] = False,
    note: Annotated[str | None, typer.Option(metavar="TEXT", help="What the sweep is for; kept in RUN.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry_run", help="Check all that a launch checks, show what would run, and write nothing.")
    ] = False,
    no_report: NoReport = False,
    notify: Notify = None,
    set_: Set = None,
) -> None:
    """Run a sweep in a new folder."""
    from tune.driver.launch.launch_arguments import check_arguments, check_notify

    check_notify(notify)
    own = user_overrides(set_, trials)
    overrides = [*data_overrides(data, cache_dir, labels, skip_bad_cases=skip_bad_cases), *own]
    overrides += ["resources.fail_fast=true"] * fail_fast
    config = with_confirm(load_sweep_config(space, overrides), confirm)
    given_time = None if hours is None else time_to_plan_for(config, hours, own)
    check_arguments(config, out.resolve())
    earlier = [folder.resolve() for folder in warm_start or []]
    with outlive_reader(f"the sweep goes on, see: voxtune status {out}"):
        print_space(config)
        logger.info(f"\n{'starting Ray' if address is None else f'connecting to Ray at {address}'}")
        from tune.driver.cluster.connection import Cluster  # after the YAML is checked: this imports Ray

        with Cluster(address) as cluster:  # which starts while torch is imported
            if dry_run:
                say_what_would_run(config, out.resolve(), hours, cluster=cluster, storage=storage, earlier=earlier)
                return
            from tune.driver.sweep import launch as launch_sweep

            run = launch_sweep(
                config, out.resolve(), cluster=cluster, storage=storage, earlier=earlier, note=note,
                report=not no_report, notify=notify, given_time=given_time,
            )  # fmt: skip
            finish(run)
            left = None if given_time is None else given_time.left()
            confirm_if_asked(run, cluster=cluster, address=address, budget=left)


def say_what_would_run(
    config: SweepConfig,
    run_dir: Path,
    hours: float | None,
    *,
    cluster: Cluster,
    storage: str | None,
    earlier: Sequence[Path],
) -> None:
    """Check what a launch checks, and print what it would run; hours: of --hours. Arguments, Raises: as dry_run."""
    from tune.driver.dry_run import dry_run

    dry_run(config, run_dir, cluster=cluster, storage=storage, earlier=earlier)
    if hours is not None:
        logger.info(f"--hours {hours:g}: a launch would measure first, and choose other trials and epochs")


@app.command(epilog="Example: voxtune resume RUN --trials 100")
def resume(
    run: RunFolder,
    trials: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="New total of trials, to extend the sweep.")
    ] = None,
    space: Annotated[
        str | None, typer.Option(help="YAML with another space to go on in; the trials in that space are imported.")
    ] = None,
    from_: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="STORAGE/NAME",
            help="First make RUN, a new folder, from the snapshot at this URI, as launch printed it. No storage can be "
            "locked: do not let two machines go on with one sweep at the same time.",
        ),
    ] = None,
    data: Annotated[
        str | None, typer.Option(metavar="DIR", help="Where the cases are now; they get a new cache.")
    ] = None,
    address: Address = None,
    report: Annotated[
        bool | None,
        typer.Option("--report/--no_report", help="Keep RUN/report.html up to date; by default as chosen before."),
    ] = None,
    notify: Notify = None,
    set_: Set = None,
) -> None:
    """Continue a sweep that was interrupted, or extend it: more trials, another budget or target."""
    from tune.driver.launch.launch_arguments import check_notify

    check_notify(notify)
    from tune.driver.sweep import resume as resume_sweep
    from tune.run.snapshot import restore_snapshot

    overrides = user_overrides(set_, trials)
    run, place = run.resolve(), None if data is None else place_of_data(data)
    if from_ is not None:
        restore_snapshot(from_, run)
    with outlive_reader(f"the sweep goes on, see: voxtune status {run}"):
        result = resume_sweep(
            run, address=address, overrides=overrides, space=space, data_dir=place, report=report, notify=notify
        )
        finish(result)
        confirm_if_asked(result, address=address)


def finish(run: Run) -> None:
    """Print the counts of a sweep's trials and the winner; exit with code 1 if no trial has a score."""
    print_outcome(run, steps=run.config.confirm is None)  # a confirmation says itself what is next
    if not run.ranking:
        raise typer.Exit(1)


def confirm_if_asked(
    run: Run,
    *,
    cluster: Cluster | None = None,
    address: str | None = None,
    budget: float | None = None,
) -> None:
    """Confirm the winner of a sweep that has ended, if it was asked for and is not done; arguments as for confirm.

    RUN/report.html is brought up to date then, if it is kept. budget: seconds after which it stops, to go on later.

    A sweep whose budget is spent has trials left, so that its winner may change: then the command is printed, unless
    the time was planned with --hours, which keeps some for the confirmation.
    """
    if run.config.confirm is None or confirmed_choice(run) is not None:
        return
    if not run.best().finished:
        logger.info("no trial has trained to its end, so the winner cannot be confirmed")
    elif not challengers(run):
        logger.info(f"the winner is not confirmed: {ONLY_THE_DEFAULT}")
    elif run.unfinished and not ended_as_asked(run) and run.config.record.plan is None:
        command = confirm_command(run.folder, address=address)
        logger.info(f"the winner is not confirmed, since trials are left; confirm it now with: {command}")
    else:
        from tune.confirm import confirm

        confirm(run.folder, budget=budget, cluster=cluster, address=address)
        if run.config.record.report:
            from tune.driver.recording.report_keeper import write_last_report

            write_last_report(read_run(run.folder))


@app.command(epilog="Example: voxtune verify RUN")
def verify(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a sweep, or of a bundle.")],
    data: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Of a bundle: cases, to score those on record again.")
    ] = None,
    json_: Json = False,
) -> None:
    """Audit a sweep: trials, early-stopping decisions, checkpoints, confirmation; or a bundle: its files and scores."""
    from trainable.bundle.contents import is_bundle

    if is_bundle(run):
        from tune.model_bundle import verify_bundle

        with messages_on_stderr(json_):
            checks = verify_bundle(run, data)
        finish_checks(run, checks, json_=json_)
        return
    if data is not None:
        raise InputError(f"--data is for a bundle, which {run} is not; leave it out")
    from tune.confirmation.verify import verify_confirmation
    from tune.run.verify import verify as verify_run

    with messages_on_stderr(json_):
        result = read_run(run)
        checks = verify_run(result) | verify_confirmation(result)
        logger.info(summary_line(result))
    finish_checks(run, checks, json_=json_)


def finish_checks(path: Path, checks: Mapping[str, Sequence[str]], *, json_: bool) -> None:
    """Print each check with its findings; exit with code 1 if there is a finding. path: what was checked."""
    if json_:
        print_json(verify_output(path, checks))
    else:
        for name, findings in checks.items():
            logger.info(f"{'ok   ' if not findings else 'WRONG'}  {name}")
            for finding in findings:
                logger.info(f"         {finding}")
    if any(checks.values()):
        raise typer.Exit(1)


@app.command(epilog="Example: voxtune simulate RUN --set early_stopping.reduction_factor=4")
def simulate(run: RunFolder, set_: Set = None) -> None:
    """Replay a sweep's recorded curves under other early_stopping settings: what would be stopped, lost and saved."""
    from tune.analysis.simulate import simulate as simulate_run
    from tune.analysis.simulation_lines import simulation_lines

    result = read_run(run)
    lines = simulation_lines(simulate_run(result, set_ or []))
    logger.info("\n".join([summary_line(result), *lines]))


@app.command(epilog="Example: voxtune best RUN --export best.yaml")
def best(
    run: RunFolder,
    top: Annotated[int, typer.Option(metavar="N", min=1, help="How many trials to show.")] = 5,
    export: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the winner's recipe as YAML.")] = None,
    json_: Json = False,
) -> None:
    """List the best trials, and show where the winner's recipe differs from the default one.

    The winner has the highest mean score over the last quarter of its validations, of the trials that trained to their
    end (study.rank_by), shown as `late`; the score shown is that of its best epoch.
    """
    result = read_run(run)
    if json_:
        print_json(best_output(result, top))
    else:
        print_best(result, top)
    if export is not None:
        with messages_on_stderr(json_):
            export_recipe(result, result.best(), export)
