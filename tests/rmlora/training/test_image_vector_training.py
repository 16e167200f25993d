"""Training of vectors for images: the figure, the order of rows, whole runs on tiny data, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from rmlora.config import RMLoRAConfig
from rmlora.errors import CheckpointError, ConfigError, InputError
from rmlora.package import load_package
from rmlora.pooling import Pooling
from rmlora.training.image_groups import ImageGroups, single_images
from rmlora.training.image_vector_training import LabeledImages
from rmlora.training.label_pairs import LabelPairs
from rmlora.training.neighbor_metrics import recall_at_1
from rmlora.training.run import train
from rmlora.training.settings import TrainSettings
from tests.helpers.bundles import PROCESSOR
from tests.helpers.merge_cases import IMAGE, save_noisy

T: Any = transformers
TINY = {**IMAGE, "num_hidden_layers": 1}


def save_base(model: Any, directory: Path) -> Path:
    save_noisy(model, directory)
    (directory / "preprocessor_config.json").write_text(json.dumps({**PROCESSOR, "size": {"height": 32, "width": 32}}))
    return directory


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    return save_base(T.Dinov2Model(T.Dinov2Config(**TINY)), tmp_path_factory.mktemp("dinov2") / "base")


def photos(directory: Path, *, each: int = 12, labels: int = 3, seed: int = 0) -> Path:
    """Write noisy images whose left or right half is brighter, by their label."""
    rng = np.random.default_rng(seed)
    for label in range(labels):
        (directory / f"kind{label}").mkdir(parents=True)
        for number in range(each):
            pixels = rng.integers(0, 200, (32, 32, 3))
            pixels[:, label * 8 : label * 8 + 8] += 55
            Image.fromarray(pixels.astype(np.uint8)).save(directory / f"kind{label}" / f"{number}.png")
    return directory


def settings(base: Path, data: Path, output: Path, **changes: Any) -> TrainSettings:
    options: dict[str, Any] = {
        "task": "image-feature-extraction", "epochs": 4, "batch_size": 8, "learning_rate": 1e-2,
        "rmlora": RMLoRAConfig(rank=4, active_rank=4, alpha=8), "validation_fraction": 0.25,
    }  # fmt: skip
    return TrainSettings(base=str(base), train=str(data), output=output, **{**options, **changes})


def test_a_row_is_not_its_own_neighbor() -> None:
    vectors = np.array([[1.0, 0], [2.0, 0.1], [0, 1.0], [0.1, 3.0]])  # their lengths do not count
    assert recall_at_1(vectors, np.array([0, 0, 1, 1])) == 1.0
    assert recall_at_1(vectors, np.array([0, 1, 0, 1])) == 0.0
    assert recall_at_1(np.array([[1.0, 0]] * 2 + [[0, 1.0]]), np.array([0, 1, 1])) == 0.0  # nor a copy of it


def test_rows_come_two_by_two_with_the_same_label() -> None:
    labels = np.random.default_rng(0).integers(0, 20, 101)
    sampler = LabelPairs(labels.tolist(), seed=3)
    order = list(sampler)
    assert sorted(order) == list(range(101)) and order == list(LabelPairs(labels.tolist(), seed=3))
    pairs = sum(count // 2 for count in np.bincount(labels))
    assert all(labels[order[2 * number]] == labels[order[2 * number + 1]] for number in range(pairs))
    sampler.set_epoch(1)
    assert list(sampler) != order


def test_the_loss_is_the_mean_over_triplets_that_break_the_margin() -> None:
    vectors = torch.nn.functional.normalize(torch.randn(6, 4, generator=torch.Generator().manual_seed(0)), dim=1)
    labels = torch.tensor([0, 0, 1, 1, 2, 2])
    cosines = vectors @ vectors.T
    broken = [
        0.2 - float(cosines[a, p]) + float(cosines[a, n])
        for a in range(6)
        for p in range(6)
        for n in range(6)
        if a != p and labels[a] == labels[p] != labels[n] and cosines[a, p] - cosines[a, n] < 0.2
    ]
    found: Any = LabeledImages().loss()
    assert float(found.compute_loss_from_embeddings([vectors], labels)) == pytest.approx(np.mean(broken), rel=1e-5)


def test_single_images_are_named() -> None:
    data = ImageGroups("photos", ("1.png", "2.png", "3.png"), ("cat", "dog", "cat"))
    assert single_images(data, "train") == [
        "1 label of the train data has a single image (dog), which no other can be drawn to."
    ]
    assert single_images(data.only([0, 2]), "test") == []


def test_a_run_moves_images_of_a_label_together(base: Path, tmp_path: Path) -> None:
    test = photos(tmp_path / "test", seed=1)
    result = train(settings(base, photos(tmp_path / "photos"), tmp_path / "adapter", epochs=8, test=str(test)))
    assert result.best_metric == "recall_at_1" and set(result.metrics["test"]) == {"recall_at_1", "loss"}
    assert result.metrics["test"]["loss"] < result.details["test"]["base"]["loss"]
    adapter = load_package(result.output)
    assert adapter.task == "image-feature-extraction" and adapter.peft_config["task_type"] is None
    assert adapter.pooling == Pooling("pooler") and adapter.metadata["dimensions"] == 16
    assert adapter.metadata["training"]["settings"]["max_length"] is None  # images have no tokens
    page = (result.output / "README.md").read_text()
    assert "from transformers import Dinov2Model" in page and "SentenceTransformer" not in page
    assert "16 dimensions, pooler, normalized" in page and "labeled images" in page


def test_a_poolers_random_weights_are_not_used(tmp_path: Path) -> None:
    base = save_base(T.ViTForImageClassification(T.ViTConfig(**TINY, num_labels=3)), tmp_path / "base")
    data = photos(tmp_path / "photos", each=8)
    result = train(settings(base, data, tmp_path / "adapter", epochs=1, normalize=False))
    adapter = load_package(result.output)
    assert adapter.pooling == Pooling("cls", normalize=False) and not adapter.modules_to_save
    with pytest.raises(ConfigError, match="does not have --pooling pooler: .* or has no trained weights for that"):
        train(settings(base, data, tmp_path / "other", pooling="pooler"))


def test_what_cannot_be_trained_is_refused_first(base: Path, tmp_path: Path) -> None:
    data = photos(tmp_path / "photos", each=8)
    with pytest.raises(ConfigError, match="With --batch-size 2 labeled images teach nothing.*take 4 or more"):
        train(settings(base, data, tmp_path / "adapter", batch_size=2))
    rows = [{"image": f"photos/kind{number}/0.png", "label": "alike"} for number in range(3)]
    (tmp_path / "one.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(InputError, match="has only the label 'alike', so there is no image that another"):
        train(settings(base, tmp_path / "one.jsonl", tmp_path / "adapter"))
    with pytest.raises(InputError, match="has one image of each label .kind0, kind1, kind2., so none has another"):
        train(settings(base, photos(tmp_path / "single", each=1), tmp_path / "adapter"))
    with pytest.raises(InputError, match="The validation data of .* raise --validation-fraction or give --validation"):
        train(settings(base, data, tmp_path / "adapter", validation_fraction=0.1))
    with pytest.raises(ConfigError, match="pooling must be one of pooler, cls, mean for image-feature-extraction"):
        settings(base, data, tmp_path / "adapter", pooling="last")
    masked = save_base(T.ViTMAEModel(T.ViTMAEConfig(**TINY)), tmp_path / "masked")
    with pytest.raises(CheckpointError, match="answers the same image differently each time"):
        train(settings(masked, data, tmp_path / "adapter"))
