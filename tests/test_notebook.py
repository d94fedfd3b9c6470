"""docs/notebook.ipynb, run from its first cell to its last."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient
from synthetic_run import make_synthetic_run

from trainable.core.config import TrainConfig
from trainable.core.options import to_dict
from trainable.model.unet3d import build_network
from trainable.training.checkpoint import save_checkpoint
from tune.run.results import read_run

NOTEBOOK = Path(__file__).parents[1] / "docs/notebook.ipynb"


def outputs(cell: Any) -> str:
    """What a cell has printed or shown, as text."""
    return "".join(output.get("text", "") or output["data"].get("text/plain", "") for output in cell.get("outputs", []))


def test_it_is_committed_without_outputs() -> None:
    cells = nbformat.read(NOTEBOOK, as_version=4).cells
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in cells)


@pytest.mark.slow
def test_every_cell_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = read_run(make_synthetic_run(tmp_path / "run", trials=20, running=2, cases=4, gpus=4))
    config = TrainConfig(depth=3, base_channels=4, target_shape=(16, 16, 16))
    run.dir.best.mkdir()
    state = {"config": to_dict(config), "network": build_network(config).state_dict()}
    save_checkpoint(state, run.dir.best_model)
    monkeypatch.setenv("VOXTUNE_RUN", str(run.folder))
    monkeypatch.setenv("PYTHONPATH", str(NOTEBOOK.parents[1]))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(tmp_path)}}).execute()
    said = "\n".join(outputs(cell) for cell in notebook.cells)
    assert f"trial {run.best().number}: {run.best().score:.4f} at epoch {run.best().best_epoch}" in said
    assert "(1, 3, 16, 16, 16) logits of WT, TC and ET per voxel" in said
    assert "stopped early" in said
