"""Settings of the whole test run: offline, one thread, private caches, and no deadline for Hypothesis."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

# Set before any Hugging Face library is imported, because they read these once.
os.environ.update(
    HF_HUB_OFFLINE="1",
    HF_DATASETS_OFFLINE="1",
    HF_HUB_DISABLE_TELEMETRY="1",
    OMP_NUM_THREADS="1",  # of the commands that tests start; this process has its own setting below
    TOKENIZERS_PARALLELISM="false",
    TRANSFORMERS_VERBOSITY="error",
)

import torch
from hypothesis import settings

torch.set_num_threads(1)  # tiny models, and pytest-xdist runs one process per core
settings.register_profile("project", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("project")


_LONG = ("real", "scaling", "cli", "exporter")
"""Folders of files that take minutes."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option with which ``make architectures`` selects the cases that ``make test`` leaves out."""
    parser.addoption("--all-architectures", action="store_true", help="also run tests marked 'rare'")
    parser.addoption(
        "--write-models", action="store_true", help="record what works with which model, for docs/models.md"
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect tests marked ``rare`` unless they are asked for, and put the longest files first.

    A process of pytest-xdist takes one file after the other: with a long one last, the other process would wait.
    """
    if not config.getoption("all_architectures"):
        rare = [item for item in items if item.get_closest_marker("rare")]
        config.hook.pytest_deselected(items=rare)
        items[:] = [item for item in items if not item.get_closest_marker("rare")]
    items.sort(key=lambda item: item.path.parent.name not in _LONG)  # else as they are


@pytest.fixture(scope="session", autouse=True)
def private_caches(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep converted bases, recorded directories and datasets of a test run out of the user's cache."""
    cache: Path = tmp_path_factory.getbasetemp() / "cache"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RMLORA_CACHE", str(cache / "rmlora"))
        patch.setenv("HF_DATASETS_CACHE", str(cache / "datasets"))
        yield


@pytest.fixture(scope="session", autouse=True)
def kept_builds(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Let all tests of this process share the builds of language models (see ``tests.helpers.kept_builds``)."""
    from rmlora_deploy.exporter.decoder import genai_builder
    from tests.helpers.build_server import BuildServer
    from tests.helpers.kept_builds import KeptBuilds

    with pytest.MonkeyPatch.context() as patch, closing(BuildServer()) as server:
        patch.setattr(genai_builder, "subprocess", KeptBuilds(tmp_path_factory.mktemp("builds"), server))
        yield


@pytest.fixture(scope="session", autouse=True)
def kept_exports() -> Iterator[None]:
    """Let all tests of this process share the graphs of torch's exporter (see ``tests.helpers.kept_exports``)."""
    from tests.helpers.kept_exports import KeptExports

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.onnx, "export", KeptExports(torch.onnx.export))
        yield


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Bundles to serve: name → directory (see ``tests.helpers.servers.make_served``)."""
    from tests.helpers.servers import make_served

    return make_served(tmp_path_factory.mktemp("served"))


@pytest.fixture(scope="session")
def embedded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle for embeddings, its base and its adapters (see ``tests.helpers.encoders.make_embedded``); copy it before a change."""
    from tests.helpers.encoders import make_embedded

    return make_embedded(tmp_path_factory.mktemp("embedded"))
