"""The direction of imports: tune -> trainable, and Ray in one file of trainable."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def imports(path: Path) -> set[str]:
    """Top-level names of the packages that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: write absolute imports"
            found.add((node.module or "").split(".")[0])
    return found


FILES = sorted((ROOT / "trainable").rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_trainable_knows_nothing_of_sweeps(path: Path):
    assert not imports(path) & {"tune", "optuna"}
    assert "ray" not in imports(path) or path.name == "trial.py"


def test_the_rule_sees_something():
    assert len(FILES) > 15
    assert "ray" in imports(ROOT / "trainable" / "trial.py")
    assert "trainable" in imports(ROOT / "tune" / "sweep.py")
