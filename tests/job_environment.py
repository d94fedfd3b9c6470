"""What jobs of a cluster find where they run: the programs that this checkout installs, and a sweep of some seconds."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import yaml
from helpers import SPACE, clean_environment

ROOT = Path(__file__).parents[1]


def job_environment(folder: Path) -> dict[str, str]:
    """Return an environment whose PATH has what this checkout installs, put into `folder`/bin, and Ray and Python."""
    programs = folder / "bin"
    programs.mkdir()
    (programs / "voxtune").write_text(f'#!/bin/bash\nexec {sys.executable} -m tune "$@"\n')
    (programs / "voxtune").chmod(0o755)
    (programs / "launch_or_resume.sh").symlink_to(ROOT / "cluster/launch_or_resume.sh")
    path = f"{programs}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    several = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "1"}  # which `import tune` has set to 0 in this process
    return clean_environment() | several | {"PATH": path, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def write_space(folder: Path, trials: int) -> Path:
    """Write the YAML of a sweep whose trials take some seconds on one CPU; return its path."""
    space = yaml.safe_load(SPACE)
    space["train"] |= {"patches_per_epoch": 48, "epochs": 8}
    space["study"]["trials"] = trials
    path = folder / "space.yaml"
    path.write_text(yaml.safe_dump(space))
    return path
