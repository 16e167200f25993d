"""Settings of the whole test run: offline, one thread, private caches, and no deadline for Hypothesis."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

# Set before any Hugging Face library is imported, because they read these once.
os.environ.update(
    HF_HUB_OFFLINE="1",
    HF_DATASETS_OFFLINE="1",
    HF_HUB_DISABLE_TELEMETRY="1",
    TOKENIZERS_PARALLELISM="false",
    TRANSFORMERS_VERBOSITY="error",
)

import torch
from hypothesis import settings

torch.set_num_threads(1)  # tiny models, and pytest-xdist runs one process per core
settings.register_profile("project", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("project")


@pytest.fixture(scope="session", autouse=True)
def private_caches(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep converted bases, recorded directories and datasets of a test run out of the user's cache."""
    cache: Path = tmp_path_factory.getbasetemp() / "cache"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RMLORA_CACHE", str(cache / "rmlora"))
        patch.setenv("HF_DATASETS_CACHE", str(cache / "datasets"))
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
