"""The layers of the code: each file imports only what is below it, and Ray only in tune/driver."""

from __future__ import annotations

import ast
import functools
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# From the bottom up; folders of one line do not import each other. Those without a slash are the files in the roots.
LAYERS = (
    ("trainable/core",),
    ("trainable/cases",),
    ("trainable/data", "trainable/model"),
    ("trainable/evaluation",),
    ("trainable/training",),
    ("trainable",),
    ("trainable/bundle",),
    ("tune/spec",),
    ("tune/search",),
    ("tune/run",),
    ("tune/nodes",),
    ("tune/confirmation",),
    ("tune/planning",),
    ("tune/analysis",),
    ("tune/terminal", "tune/report", "tune/viewers"),
    ("tune/driver/cluster",),
    ("tune/driver/processes",),
    ("tune/driver/measurement",),
    ("tune/driver/launch",),
    ("tune/driver/scheduling",),
    ("tune/driver/recording",),
    ("tune/driver/training_set",),
    ("tune/driver",),
    ("tune",),
    ("voxtune",),
)
RANK = {folder: rank for rank, folders in enumerate(LAYERS) for folder in folders}
RAY_FOLDER = "tune/driver"


def folder_of(path: Path) -> str:
    """The layer's folder of a file, given relative to the checkout; the verbs in tune/cli are of the layer of tune."""
    folder = path.parent.as_posix()
    return folder if folder in RANK else "/".join(path.parent.parts[:2]).removesuffix("/cli")


@functools.cache  # most files of the trees with a planted import are those of the checkout
def imported_names(source: str) -> frozenset[str]:
    """The dotted name of each module, or of a name in it, that a file with this text imports anywhere."""
    names = set[str]()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{ast.unparse(node)}: write absolute imports"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return frozenset(names)


def import_graph(root: Path) -> dict[Path, set[Path]]:
    """For each file of trainable, tune and voxtune those that it imports, relative to the checkout."""
    files = sorted(path for name in ("trainable", "tune", "voxtune") for path in (root / name).rglob("*.py"))
    by_module = {".".join(path.relative_to(root).with_suffix("").parts): path.relative_to(root) for path in files}
    graph = {}
    for path in files:
        names = imported_names(path.read_text())
        names |= {name.rpartition(".")[0] for name in names}
        graph[path.relative_to(root)] = {by_module[name] for name in names if name in by_module}
    return graph


def imports_upwards(root: Path) -> list[str]:
    """Each import that the layers forbid."""
    found = []
    for path, targets in import_graph(root).items():
        for target in targets:
            own, other = folder_of(path), folder_of(target)
            if own != other and RANK[other] >= RANK[own]:
                found.append(f"{path} imports {target}")
        roots = {name.split(".")[0] for name in imported_names((root / path).read_text())}
        if "ray" in roots and not path.is_relative_to(RAY_FOLDER):
            found.append(f"{path} imports ray")
    return found


def circles(graph: dict[Path, set[Path]]) -> list[Path]:
    """The files that import each other in a circle, or import such files."""
    left = dict(graph)
    while free := [path for path, targets in left.items() if not targets & left.keys()]:
        for path in free:
            del left[path]
    return list(left)


def test_each_file_imports_only_what_is_below_it() -> None:
    assert imports_upwards(ROOT) == []


def test_no_files_import_each_other_in_a_circle() -> None:
    assert circles(import_graph(ROOT)) == []


@pytest.mark.parametrize(
    ("file", "line", "finding"),
    [
        ("trainable/model/losses.py", "from trainable.training.loop import fit", "imports trainable/training/loop.py"),
        ("trainable/data/cache.py", "import trainable.model.unet3d", "imports trainable/model/unet3d.py"),
        ("trainable/training/loop.py", "from tune.spec import space", "imports tune/spec/space.py"),
        (
            "tune/run/verify.py",
            "from tune.driver.processes.worker import run_trial",
            "imports tune/driver/processes/worker.py",
        ),
        ("tune/run/verify.py", "def late():\n    from ray import tune", "imports ray"),
    ],
)
def test_a_planted_import_is_found(tmp_path: Path, file: str, line: str, finding: str) -> None:
    for name in ("trainable", "tune"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    with (tmp_path / file).open("a") as source:
        source.write(f"\n{line}\n")
    assert imports_upwards(tmp_path) == [f"{file} {finding}"]


def test_a_planted_circle_is_found(tmp_path: Path) -> None:
    for name in ("trainable", "tune"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    with (tmp_path / "trainable/core/errors.py").open("a") as source:
        source.write("\nimport trainable.core.options\n")
    found = circles(import_graph(tmp_path))
    assert {Path("trainable/core/errors.py"), Path("trainable/core/options.py")} <= set(found)


def named_on_the_page(text: str) -> dict[str, set[str]]:
    """For each folder in the list of docs/code.md what its part names: files, and folders with a slash."""
    named, top, inner, folder = dict[str, set[str]](), "", "", ""
    for line in text.split("```")[1].splitlines():
        indent = len(line) - len(line.lstrip())
        first = (line.split() or [""])[0]
        if indent == 0:
            top = folder = first.rstrip("/")
        elif indent == 2:
            inner = folder = f"{top}/{first.rstrip('/')}" if first.endswith("/") else top
        elif indent == 4:
            folder = f"{inner}/{first.rstrip('/')}" if f"{inner}/{first.rstrip('/')}" in RANK else inner
        named.setdefault(folder, set()).update(re.findall(r"\w+(?:\.py|/)", line))
    return named


def missing_on_the_page(text: str) -> list[Path]:
    """Each module that docs/code.md names neither in the part of its folder nor by a folder within that."""
    named = named_on_the_page(text)
    missing = []
    for path in (path for path in import_graph(ROOT) if path.stem not in ("__init__", "__main__")):
        own = path.parent.as_posix()
        folder = own if own in RANK else "/".join(path.parts[:-1][:2])
        rest = path.relative_to(folder).parts
        word = path.name if len(rest) == 1 else f"{rest[0]}/"
        if word not in named.get(folder, set()):
            missing.append(path)
    return missing


def test_the_page_on_the_code_names_each_module() -> None:
    page = (ROOT / "docs/code.md").read_text()
    assert missing_on_the_page(page) == []
    assert missing_on_the_page(page.replace("verify.py", "...", 1)) == [Path("tune/run/verify.py")]


READERS = [
    "tune.run.verify",
    "tune.confirmation.verify",
    "tune.run.results",
    "tune.analysis.importance",
    "tune.analysis.json_output.outputs",
    "tune.cli",
    "tune.terminal.status",
    "trainable.core.options",
    "voxtune",
]


def test_what_only_reads_imports_neither_ray_nor_torch_nor_scipy() -> None:
    """They are imported one after the other; the first that imports one of these is named."""
    code = (
        "import importlib, sys\n"
        f"for module in {READERS}:\n"
        "    importlib.import_module(module)\n"
        "    found = [name for name in ('ray', 'torch', 'scipy') if name in sys.modules]\n"
        "    assert not found, f'{module} imports {found}'\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
