"""The command `voxtune`, and the arguments that several of its verbs have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, cast

import typer
from typer.core import TyperCommand, TyperGroup

from trainable.core.logger import logger
from trainable.core.package_version import version
from tune.cli.completion import complete_run, complete_space

# What the verbs are for, in the order of `voxtune --help` and docs/cli.md.
PANELS = {
    "Cases": ("phantom", "convert_msd", "prepare"),
    "Search": (
        "check",
        "doctor",
        "estimate",
        "launch",
        "resume",
        "suggest",
        "confirm",
        "verify",
        "simulate",
        "demo",
    ),
    "See what came out": ("status", "show", "best", "importance", "prior", "compare", "report", "trials", "curves"),
    "Models": ("train", "retrain", "predict", "postprocess"),
    "For other tools": ("export", "schema"),
}


class VerbsInPanels(TyperGroup):
    """Lists the verbs by PANELS."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Return the names of the verbs, each with its panel noted."""
        for panel, names in PANELS.items():
            for name in names:
                cast(TyperCommand, self.commands[name]).rich_help_panel = panel
        return [name for names in PANELS.values() for name in names]


app = typer.Typer(
    cls=VerbsInPanels,
    help="Find, prove and retrain the best 3D U-Net recipe for brain-tumour MRI.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Space = Annotated[
    str,
    typer.Argument(
        metavar="SPACE",
        help="YAML of the sweep: a file, or brats, brats_long, quick, finetune, demo.",
        autocompletion=complete_space,
    ),
]
RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a sweep.", autocompletion=complete_run)]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Replace a value of the YAML; repeatable."),
]
Labels = Annotated[
    str | None,
    typer.Option(
        metavar="KIND",
        help="What the values of seg files mean: 2021, 2023, ped2024, gli2024 or a YAML file; by default "
        "the names of the cases tell it.",
    ),
]
Data = Annotated[
    str,
    typer.Option(metavar="DIR", help="Folder with one sub-folder per case; or its URI, such as s3://bucket/cases."),
]
Trials = Annotated[int | None, typer.Option(metavar="N", help="Number of trials; short for --set study.trials=N.")]
CacheDir = Annotated[
    Path | None,
    typer.Option("--cache_dir", metavar="DIR", help="Of the preprocessed cases; by default next to the data."),
]
SkipBadCases = Annotated[bool, typer.Option("--skip_bad_cases", help="Leave bad cases out.")]
Address = Annotated[str | None, typer.Option(help="Address of a Ray cluster; by default a local one is started.")]


def print_version(wanted: bool) -> None:
    """Print voxtune's version and exit with code 0 if `wanted`; else do nothing."""
    if wanted:
        logger.info(f"voxtune {version('voxtune')}")
        raise typer.Exit


@app.callback()
def voxtune(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", is_eager=True, callback=print_version)
    ] = False,
) -> None:
    """Options of voxtune itself."""
