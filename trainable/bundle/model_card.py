"""The model card of a bundle, docs/README.md: what the model is, by which scores, and where it must not be trusted."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from scipy.special import stdtrit

from trainable.bundle.configs import RESEARCH_ONLY, VERSION, label_values
from trainable.bundle.recorded_scores import DICE, RecordedScores
from trainable.cases.grid import spacing_text
from trainable.cases.labels import LabelConvention
from trainable.core.config import TrainConfig
from trainable.core.counted import counted
from trainable.core.option_files import dump_yaml
from trainable.evaluation.prediction_setting import PredictionSetting
from trainable.postprocess_record import Record

FEW_CASES = 20  # below which the card says what their mean tells


@dataclass(frozen=True)
class ModelFacts:
    """What a model card says of a model.

    Attributes:
        name: of the model.
        config: that it predicts with.
        labels: of its predictions.
        networks: how many are averaged.
        spacing: voxel size in mm of the cases that it was trained on.
        resampled: whether cases of another voxel size were resampled to it.
        recipe: the options of the training, without paths; of several networks those of the first.
        differing: names of the options of the recipe in which the other networks differ from the first.
        parts: number of cases in train, val and test, as seen by any network.
        data: hash of the images and labels of each part, without names.
        splits: hashes of the splits of the networks.
        scores: see recorded_scores.
        postprocess: how the clean-up was chosen; None if it was not.
        confirmed: what the confirmation says of the recipe, in words; "" if there is none.
        versions: of the packages that trained it.
        exporter: version of voxtune that exports it.
        pretrained: the weights that the training started from, in words; "" if there were none.
        stride: the sides of a patch are multiples of it.
        with_case_names: the bundle names the cases that were scored.
    """

    name: str
    config: TrainConfig
    labels: LabelConvention
    networks: int
    spacing: Sequence[float]
    resampled: bool
    recipe: Mapping[str, Any]
    differing: Sequence[str]
    parts: Mapping[str, int]
    data: Mapping[str, str]
    splits: Sequence[str]
    scores: Sequence[RecordedScores]
    postprocess: Record | None
    confirmed: str
    versions: Mapping[str, str]
    exporter: str
    pretrained: str
    stride: int
    with_case_names: bool


def model_card(facts: ModelFacts) -> str:
    """Return the card as Markdown."""
    parts = [_head(facts), _use(facts), _data(facts), _scores(facts), _postprocessing(facts), _limits(facts)]
    versions = ", ".join(f"{name} {version}" for name, version in facts.versions.items())
    others = f"; the others differ in {', '.join(facts.differing)}" if facts.differing else ""
    which = f"Of the first of {facts.networks} networks{others}.\n\n" if facts.networks > 1 else ""
    parts.append(
        f"## Recipe\n\n{which}```yaml\n{dump_yaml(dict(facts.recipe))}```\n\nTrained with {versions}; "
        f"exported by voxtune {facts.exporter}."
    )
    parts.append(
        "## Files\n\n`voxtune.json` has the SHA-256 of every file: `voxtune verify BUNDLE` compares them, and with "
        "`--data DIR` scores the cases of DIR that are on record again. docs/license.txt and docs/data_license.txt say "
        "what is known of licences."
    )
    return "\n\n".join(parts) + "\n"


def _head(facts: ModelFacts) -> str:
    """Return the title and what the model is."""
    kind = "a 3D U-Net" if facts.networks == 1 else f"the mean of the probabilities of {facts.networks} 3D U-Nets"
    return (
        f"# {facts.name}\n\nSegments brain tumours (whole tumour WT, tumour core TC, enhancing tumour ET) in four MRI "
        f"modalities in BraTS's layout: {kind}, trained by voxtune. Version {VERSION}.\n\n"
        f"**Intended use.** {RESEARCH_ONLY}"
    )


def _use(facts: ModelFacts) -> str:
    """Return how to run it, and what it reads and writes."""
    core, around, enhancing = label_values(facts.labels)
    background = facts.config.background
    air = "of one value, found in each image" if background == "auto" else f"of {background:g}"
    return (
        '## Use\n\nMONAI runs it, without voxtune: `pip install "monai[nibabel,fire,jsonschema]" scipy`, then in this '
        "folder\n\n```\npython -m monai.bundle run --config_file configs/inference.json --dataset_dir DATA "
        "--output_dir OUT\n```\n\n"
        "DATA has one folder per case, CASE/CASE_{flair,t1,t1ce,t2}.nii.gz (BraTS 2021) or "
        "CASE/CASE-{t2f,t1n,t1c,t2w}.nii.gz (2023). OUT/CASE.nii.gz has the labels "
        f"{core} (TC without ET), {around} (WT without TC) and {enhancing} (ET) on the case's own grid.\n\n"
        f"The images of a case are skull-stripped on a background {air}, registered onto one grid, with voxels of "
        f"{spacing_text(facts.spacing)} (up to 10 % more or less); anything else is refused. They are turned to LPS, "
        "cropped to the brain and "
        "normalised to z-scores of their non-zero voxels. models/model.ts is TorchScript: normalised patches (N, 4, X, "
        f"Y, Z), with sides that are multiples of {facts.stride}, to logits of WT, TC and ET."
    )


def _data(facts: ModelFacts) -> str:
    """Return what it was trained on, without names."""
    rows = [f"| {part} | {count} | {f'`{facts.data[part]}`' if count else ''} |" for part, count in facts.parts.items()]
    overlap = (
        ""
        if len(facts.splits) == 1
        else " The networks have different splits: a case that one was trained on may validate another, and is counted "
        "in both parts."
    )
    known = "by hashes, and the scored ones by name in docs/cases.csv" if facts.with_case_names else "by hashes only"
    start = f"\n\nThe training started from the weights in {facts.pretrained}." if facts.pretrained else ""
    return (
        "## Data\n\n| part | cases | hash of images and labels |\n| --- | --- | --- |\n"
        + "\n".join(rows)
        + f"\n\nLabels: {facts.labels}. Hash of the split by names: {', '.join(f'`{s}`' for s in facts.splits)}."
        f"{overlap} Cases are known here {known}; hashes do not tell the images.{start}"
    )


def _scores(facts: ModelFacts) -> str:
    """Return the scores on record, each with its deviation over cases, and what the confirmation says."""
    if not facts.scores:
        table = "There are no scores on record."
    else:
        names = " | ".join(f"Dice {name.removeprefix('dice_')}" for name in DICE)
        table = f"| part | cases | {names} |\n| --- | --- |{' --- |' * len(DICE)}\n"
        table += "\n".join(_score_row(scores) for scores in facts.scores)
        lines = [f"- {scores.part}: {scores.source}; {_predicted_with(scores, facts)}" for scores in facts.scores]
        table += "\n\nMean and standard deviation over cases. Dice is computed per case over whole volumes; two empty "
        table += "masks count 1, one empty mask 0.\n\n" + "\n".join(lines)
    confirmed = facts.confirmed or (
        "none on record, so it is not known how another training of this recipe scores, nor whether another recipe is "
        "better"
    )
    return f"## Scores\n\n{table}\n\n**Confirmation of the recipe:** {confirmed}."


def _predicted_with(scores: RecordedScores, facts: ModelFacts) -> str:
    """Return the setting that a part was scored with, and whether the bundle predicts so."""
    same = scores.setting == PredictionSetting.of_config(facts.config)
    other = "" if same else ", which is not how this bundle predicts, see Prediction"
    return f"predicted with {scores.setting}{other}"


def _score_row(scores: RecordedScores) -> str:
    """Return the row of one part: mean and deviation of each score."""
    cells = [f"{scores.means[name]:.4f} ± {scores.deviations[name]:.4f}" for name in DICE]
    return f"| {scores.part} | {len(scores.cases)} | {' | '.join(cells)} |"


def _postprocessing(facts: ModelFacts) -> str:
    """Return the options of a prediction, and how they were chosen."""
    config = facts.config
    text = (
        f"## Prediction\n\nWindows of {' x '.join(map(str, config.target_shape))} voxels, overlap {config.overlap:g}, "
        f"blended by a Gaussian; mirrored: {'yes' if config.mirror else 'no'}; precision on a GPU: "
        f"{'float32' if config.amp == 'off' else config.amp}. {_cleaning(config)}"
    )
    record = facts.postprocess
    if record is None:
        return f"{text} These options are those of the training; no other was chosen by validation cases."
    gain = record.gain[record.metric]
    interval = "" if gain["low"] is None else f" [{gain['low']:+.4f}, {gain['high']:+.4f}]"
    return (
        f"{text} Chosen on {counted(len(record.scores), 'validation case')} among {len(record.tried)} candidates: "
        f"{record.chosen.changes(record.before)}; {record.metric} {gain['difference']:+.4f}{interval} on the cases "
        "that chose, so rather less on others."
    )


def _cleaning(config: TrainConfig) -> str:
    """Return what is done with a predicted label map, in sentences."""
    small, few = config.min_component, config.et_threshold
    removed = f"Tumours of fewer than {small} voxels are removed" if small else "No tumour is removed for its size"
    return f"{removed}; " + (f"if fewer than {few} voxels are ET, all become TC." if few else "no ET becomes TC.")


def _few_cases(scores: RecordedScores) -> str:
    """Return what a mean over few cases tells: Student's interval of the mean over cases like these."""
    count = len(scores.cases)
    if count == 1:
        return "One test case does not tell how others are segmented."
    mean, deviation = scores.means["dice_mean"], scores.deviations["dice_mean"]
    half = float(stdtrit(count - 1, 0.975)) * deviation / math.sqrt(count)
    low, high = max(mean - half, 0), min(mean + half, 1)
    return (
        f"{count} test cases are few: by their deviation, the mean Dice over many cases like them is between "
        f"{low:.2f} and {high:.2f}, at 95 %."
    )


def _limits(facts: ModelFacts) -> str:
    """Return what the scores do not tell."""
    lines = [
        "Scores are of the data above. Other scanners, protocols, ages, tumours, stages of treatment or ways of "
        "skull-stripping may be segmented worse, and nothing in a prediction says so.",
        "Cases with missing modalities, lesions that are no glioma, and heads without a tumour were not looked at "
        "unless they are among the cases above.",
        "A case of another voxel size is refused here"
        + ("; `voxtune predict` resamples it as the training did." if facts.resampled else "; resample it first."),
        "MONAI computes the statistics of a case in float32 and voxtune in float64, so single voxels on a border may "
        "differ from `voxtune predict`.",
    ]
    few = [scores for scores in facts.scores if scores.part == "test" and len(scores.cases) < FEW_CASES]
    lines = [_few_cases(scores) for scores in few] + lines
    if not any(scores.part == "test" for scores in facts.scores):
        lines.insert(0, "The model has not been scored on cases that nothing was selected by.")
    return "## Limits\n\n" + "\n".join(f"- {line}" for line in lines)
