"""Bundles for vectors of images: exported, verified on labeled images, asked, described, and the ways of pooling."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from peft import PeftModel
from PIL import Image

from rmlora.package import write_metadata
from rmlora.pooling import Pooling
from rmlora.sample_data import draw_image
from rmlora.tasks import TASKS, recorded_task
from rmlora.torch_models import load_task_model
from rmlora_deploy.bundles.bundle import Bundle
from rmlora_deploy.inference.embedder import Embedder, cosines
from tests.helpers.branch_cases import IMAGE_ENCODERS, BranchCase, make_sources
from tests.helpers.cli import fails, run
from tests.helpers.merge_cases import IMAGE, save_adapter_for

T: Any = transformers
CASES = {case.name: case for case in IMAGE_ENCODERS}
TASK = TASKS["image-feature-extraction"]


def peft_vectors(model: Any, adapter: Path, images: list[Image.Image], base: Path) -> np.ndarray:
    """Return what PEFT computes: the vectors that the model pools itself, divided by their lengths."""
    pixels = TASK.inputs.load_processor(base)(images, return_tensors="pt")["pixel_values"]
    with torch.inference_mode():
        pooled = PeftModel.from_pretrained(model.eval(), str(adapter)).eval()(pixel_values=pixels).pooler_output
    return np.asarray(torch.nn.functional.normalize(pooled, dim=1))


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a directory with a tiny base, two adapters, a bundle with both, and labeled images."""
    directory = tmp_path_factory.mktemp("images")
    _, adapters = make_sources(CASES["dinov2-vectors"], directory)
    for number in range(6):
        folder = directory / "photos" / f"kind{number % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        draw_image(number).save(folder / f"{number}.png")
    flags = [part for name in adapters for part in ("-a", directory / name)]
    done = run(
        "export", directory / "base", "--mode", "branches", *flags, "--data", f"one={directory / 'photos'}",
        "-o", directory / "bundle", "--json",
    )  # fmt: skip
    assert done.code == 0, done.stderr
    return directory


def test_every_adapter_gives_pefts_vectors_alone_and_mixed(exported: Path) -> None:
    bundle = Bundle.open(exported / "bundle")
    assert bundle.manifest.pooling.to_dict() == {"mode": "pooler", "normalize": True, "source": "default"}
    images = [draw_image(number) for number in range(4)]
    expected = {
        name: peft_vectors(T.AutoModel.from_pretrained(exported / "base"), exported / name, images, exported / "base")
        for name in ("one", "two")
    }
    embedder = Embedder.open(exported / "bundle")
    for name, right in expected.items():
        np.testing.assert_allclose(embedder.embed(images, name), right, atol=2e-6)
    mixed = embedder.embed(images[:2], ["two", "one"])
    np.testing.assert_allclose(mixed, np.stack([expected["two"][0], expected["one"][1]]), atol=2e-6)


def test_recall_is_measured_on_labeled_images(exported: Path) -> None:
    measured = Bundle.open(exported / "bundle").manifest.verification.adapters["one"].evaluation
    assert (measured.metric, measured.examples) == ("recall@1", 6) and measured.onnx == measured.pytorch
    paths = sorted((exported / "photos").glob("*/*.png"))
    alike = cosines(Embedder.open(exported / "bundle").embed(paths, "one")) - 3 * np.eye(6)
    labels = np.array([path.parent.name for path in paths])
    assert measured.onnx == pytest.approx((labels[alike.argmax(1)] == labels).mean())
    fails(3, "has only the label", "verify", exported / "bundle", "--data", f"one={_alike(exported)}")


def _alike(directory: Path) -> Path:
    file = directory / "alike.jsonl"
    file.write_text("".join(json.dumps({"image": f"photos/kind0/{n}.png", "label": "a"}) + "\n" for n in (0, 2)))
    return file


def test_commands_show_and_describe_vectors(exported: Path) -> None:
    paths = sorted((exported / "photos").glob("*/*.png"))[:2]
    done = run("predict", exported / "bundle", *paths)
    assert done.code == 0 and "one: cosines" in done.stdout and "two: cosines" in done.stdout, done.stderr
    rows = json.loads(run("predict", exported / "bundle", "-a", "two", *paths, "--json").stdout)
    right = Embedder.open(exported / "bundle").embed(paths, "two")
    np.testing.assert_allclose([row["answers"]["two"] for row in rows], right, atol=1e-6)
    assert "pooler, normalized" in run("inspect", exported / "bundle").stdout
    page = run("report", exported / "bundle").stdout
    assert "pooler, normalized" in page and 'embed(["photo.jpg"], "one")' in page


def test_the_user_chooses_the_pooling_and_int8_stays_close(exported: Path, tmp_path: Path) -> None:
    words = ("export", exported / "base", "-a", exported / "one")
    flags = ("--pooling", "mean", "--no-normalize", "--precision", "int8", "--calibration", exported / "photos")
    done = run(*words, *flags, "-o", tmp_path / "mean", "--json")
    assert done.code == 0, done.stderr
    manifest = json.loads(done.stdout)
    assert manifest["pooling"] == {"mode": "mean", "normalize": False, "source": "chosen"}
    assert manifest["verification"]["passed"] and manifest["verification"]["onnx"]["min_cosine"] > 0.95
    fails(2, "The pooling last is not for image-feature-extraction: choose --pooling pooler, cls or mean", *words, "--pooling", "last",
          "-o", tmp_path / "last")  # fmt: skip


def test_the_class_of_a_vision_tower_says_what_it_is_for() -> None:
    assert recorded_task({"auto_mapping": {"base_model_class": "CLIPVisionModelWithProjection"}}) == TASK.name
    assert recorded_task({"auto_mapping": {"base_model_class": "SiglipVisionModel"}}) == TASK.name


def test_an_adapter_without_a_record_needs_the_task(exported: Path, tmp_path: Path) -> None:
    model = T.AutoModel.from_pretrained(exported / "base")
    adapter = save_adapter_for(model, tmp_path / "adapter", task_type="FEATURE_EXTRACTION", target_modules=["q_proj"])
    words = ("export", exported / "base", "-a", adapter, "-o", tmp_path / "bundle")
    fails(3, "(Dinov2Model) reads images, and feature-extraction is for texts: pass --task image-", *words)


def test_a_pooler_that_the_base_has_no_weights_for_is_refused(tmp_path: Path) -> None:
    classifier = T.ViTForImageClassification
    lora = {"target_modules": ["q_proj", "v_proj"]}
    case = replace(CASES["vit-vectors"], build=lambda: classifier(T.ViTConfig(**IMAGE, num_labels=3)), lora=lora)
    base, adapters = make_sources(case, tmp_path)
    words = ("export", base, "--mode", "branches", "-a", adapters["one"])
    fails(2, "it pools no vector itself, or has no trained weights for that. Choose cls or mean", *words, "--pooling", "pooler",
          "-o", tmp_path / "other")  # fmt: skip


def test_models_of_more_than_images_are_refused(tmp_path: Path) -> None:
    parts: dict[str, Any] = {
        "vision_config": {**IMAGE, "num_hidden_layers": 1},
        "text_config": {"num_hidden_layers": 1},
    }
    case = BranchCase(
        "blip",
        lambda: T.BlipModel(T.BlipConfig(**parts)),
        {"target_modules": ["qkv"]},
        TASK.name,
        model_class=T.BlipModel,
    )
    base, adapters = make_sources(case, tmp_path)
    fails(
        3,
        "(BlipModel) makes no vectors of images alone",
        "export",
        base,
        "-a",
        adapters["one"],
        "-o",
        tmp_path / "bundle",
    )


@pytest.mark.parametrize("name", ["clip-vectors", "siglip-vectors"])
def test_the_half_for_images_gives_the_whole_models_vectors(name: str, tmp_path: Path) -> None:
    whole = CASES[name].build()
    if name == "clip-vectors":
        whole.config.vision_config.projection_dim = 512  # what old configurations say, whatever the weights are
    whole.save_pretrained(tmp_path)
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        right = whole.eval().get_image_features(pixel_values=pixels).pooler_output
        output = load_task_model(tmp_path, TASK, ()).model.eval()(pixel_values=pixels)
    got = TASK.outputs.of_model(output, {}, Pooling("pooler", normalize=False))
    torch.testing.assert_close(got, right)


def test_an_adapter_of_both_halves_is_refused(tmp_path: Path) -> None:
    case = replace(CASES["clip-vectors"], model_class=T.CLIPModel, lora={"target_modules": ["q_proj"]})
    base, adapters = make_sources(case, tmp_path)
    words = ("export", base, "-a", adapters["one"], "-o", tmp_path / "bundle")
    fails(3, "changes 'text_model.encoder.layers.0.self_attn.q_proj', so it was made for both halves", *words)


def test_a_merged_checkpoint_gives_the_same_vectors(exported: Path, tmp_path: Path) -> None:
    write_metadata(exported / "one", {"task": TASK.name})
    done = run("merge", exported / "base", exported / "one", "-o", tmp_path / "merged")
    assert done.code == 0, done.stderr
    images = [draw_image(number) for number in range(2)]
    right = peft_vectors(T.AutoModel.from_pretrained(exported / "base"), exported / "one", images, exported / "base")
    merged = T.pipeline("image-feature-extraction", str(tmp_path / "merged"))(images, pool=True)
    got = np.array(merged).reshape(2, -1)
    np.testing.assert_allclose(got / np.linalg.norm(got, axis=1, keepdims=True), right, atol=2e-5)
