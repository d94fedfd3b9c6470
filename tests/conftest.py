"""A tiny set of phantoms, on the disk and in the cache, that the tests share."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if not Path("/dev/nvidiactl").exists():  # before torch, which imports Triton: without a GPU its kernels are interpreted
    os.environ["TRITON_INTERPRET"] = "1"
os.environ.setdefault("RAY_worker_niceness", "0")  # Ray's 15 lets them starve beside the tests on the other core

import pytest
import torch
from browser import PageLog, open_browser, watch

from trainable.core.config import TrainConfig
from trainable.core.logger import init_logger
from trainable.data.phantom import write_phantoms
from trainable.data.prepare import Data, prepare_data

init_logger()  # as each entry point does
# Files that take 15 to 100 s come first, so that no process ends long before the others (--no-loadscope-reorder).
LONGEST = (
    *("test_sweep", "test_storage", "test_trainings", "test_confirm", "test_ddp", "test_loop", "test_ray_compat"),
    *("test_ensemble_retrain", "test_bundle", "test_cluster", "test_cli_verbs", "test_cli", "test_postprocess"),
    *("test_training", "test_option_proofs", "test_ensemble", "test_planning", "test_cache", "test_doctor"),
)
if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

    from tune.driver.cluster.connection import Cluster
    from tune.run.results import Run

torch.set_num_threads(1)
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job, and what it starts, ignores Ctrl-C


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the tests of the longest files first."""
    place = {name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path.stem, len(place)))


@pytest.fixture(scope="session")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 8 cases of 48 x 48 x 40 voxels; the sixth has no label 4."""
    folder = tmp_path_factory.mktemp("data") / "phantoms"
    write_phantoms(folder, cases=8, shape=(48, 48, 40), workers=1)
    return folder


@pytest.fixture(scope="session")
def prepared(phantoms: Path, tmp_path_factory: pytest.TempPathFactory) -> Data:
    """The same cases in a cache of their own: 6 to train, 1 to validate, 1 to test."""
    config = TrainConfig(data_dir=phantoms, cache_dir=tmp_path_factory.mktemp("cache"))
    return prepare_data(config, quiet=True)


@pytest.fixture(scope="session")
def synthetic_sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a sweep of 40 trials of 20 options, of which some run; nothing drives it."""
    from synthetic_run import make_synthetic_run

    return make_synthetic_run(tmp_path_factory.mktemp("sweep") / "run", trials=40, running=4)


@pytest.fixture
def driven(synthetic_sweep: Path) -> Run:
    """That sweep as it is read while a process drives it."""
    from trainable.core.locks import lock_folder
    from tune.run.results import read_run

    with lock_folder(synthetic_sweep):
        return read_run(synthetic_sweep)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """One local Ray cluster for all tests of a file."""
    from tune.driver.cluster.connection import Cluster

    with Cluster() as cluster:
        cluster.wait()
        yield cluster


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 8 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if (
        os.geteuid()
        or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", folder], check=False).returncode
    ):
        pytest.skip("mounting a file system needs root")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A browser for all tests of a file; they are skipped where none is installed."""
    with open_browser() as started:
        yield started


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """An empty page of 1280 x 900 pixels, in a profile of its own."""
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    yield page
    page.close()


@pytest.fixture
def page_log(page: Page) -> PageLog:
    """The errors and the requests of `page`."""
    return watch(page)
