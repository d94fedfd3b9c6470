"""What one needs to run the sweep again, or to tell whether two sweeps can be compared."""

from __future__ import annotations

import yaml

from trainable.core.counted import counted
from trainable.core.errors import InputError
from tune.report.blocks import Block, Code, Facts, Section
from tune.report.sweep_data import SweepData
from tune.report.timeline import attempt_times
from tune.spec.sweep_config import to_sections
from tune.spec.sweep_file import NumberDumper


def provenance_section(data: SweepData) -> Section:
    """Return the section: commands, versions, hashes, and the YAML as it was given."""
    run, record = data.run, data.run.config.record
    versions = record.versions
    commit = "not recorded: voxtune was installed without git" if record.commit in (None, "none") else record.commit
    pairs = [
        ("voxtune", f"{versions.get('voxtune', 'unknown version')}; commit: {commit}"),
        ("packages", ", ".join(f"{name} {version}" for name, version in versions.items() if name != "voxtune")),
        ("data", f"hash {record.data or 'unknown'}; {cases_text(data)}"),
        ("split", f"hash {record.split or 'unknown'}; equal hashes mean the same cases in the same parts"),
        ("seed", str(run.config.seed)),
        ("attempts", f"{len(attempt_times(data.events))} (launches and resumes)"),
    ]
    if record.skipped_cases:
        pairs.append(("left out", f"{counted(len(record.skipped_cases), 'bad case')}, named in study.yaml"))
    if seen := seen_text(data):
        pairs.append(("seen before", seen))
    again = "voxtune launch sweep.yaml --data DATA --out RUN"
    blocks: list[Block] = [
        Facts(pairs),
        Code("To run it again, with the YAML below as sweep.yaml", again),
        Code("The sweep as it was configured (sweep.yaml)", config_text(data), collapsed=True),
    ]
    lead = "With the same cases, seed and versions, and one trial at a time, the sweep below gives the same recipes."
    return Section("provenance", "How to reproduce it", lead, blocks)


def cases_text(data: SweepData) -> str:
    """Return how many cases each part has."""
    try:
        split = data.run.split()
    except InputError as error:
        return data.privacy.text(f"the split cannot be read: {error}")
    return f"{len(split.train)} training, {len(split.val)} validation, {len(split.test)} test cases"


def seen_text(data: SweepData) -> str:
    """Return how many of the cases that score trials the pretrained weights had seen; "" if none."""
    try:
        return data.run.seen_line()
    except InputError:
        return ""


def config_text(data: SweepData) -> str:
    """Return the sweep's YAML without what the launch recorded."""
    sections = {name: section for name, section in to_sections(data.run.config).items() if name != "record"}
    if data.privacy.anonymous:
        sections["train"] = {name: value for name, value in sections["train"].items() if name != "data_dir"}
    text = yaml.dump(sections, Dumper=NumberDumper, sort_keys=False, default_flow_style=None, width=100)
    return data.privacy.text(str(text))
