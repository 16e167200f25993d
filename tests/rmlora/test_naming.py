"""Module paths match their tensors, and no others, despite prefixes and transformers' renamed modules."""

from __future__ import annotations

import pytest

from rmlora.errors import AdapterError
from rmlora.naming import find_tensor, find_tensors, infer_prefix

VIT = {"encoder.layer.3.attention.attention.query.weight", "encoder.layer.3.output.dense.weight"}


@pytest.mark.parametrize(
    ("parameter", "names", "expected"),
    [
        ("bert.layer.query.weight", {"bert.layer.query.weight"}, "bert.layer.query.weight"),
        ("bert.layer.query.weight", {"layer.query.weight"}, "layer.query.weight"),
        ("layer.query.weight", {"bert.layer.query.weight"}, "bert.layer.query.weight"),
        ("layer.query.weight", {"a.layer.query.weight", "b.layer.query.weight"}, None),
        ("layer.query.weight", {"query.weight.layer"}, None),
        ("classifier.weight", {"weight", "bert.other.weight"}, None),
        ("vit.layers.3.attention.q_proj.weight", VIT, "encoder.layer.3.attention.attention.query.weight"),
        ("vit.layers.3.mlp.fc2.weight", VIT, "encoder.layer.3.output.dense.weight"),
        ("dinov2.encoder.layer.1.mlp.fc1.weight", {"encoder.layer.1.mlp.fc1.weight"}, "encoder.layer.1.mlp.fc1.weight"),
    ],
)
def test_find_tensor(parameter: str, names: set[str], expected: str | None) -> None:
    assert find_tensor(parameter, names) == expected


def test_prefix_of_the_model_in_memory() -> None:
    assert infer_prefix({"bert.a.weight": "a.weight"}) == "bert."
    assert infer_prefix({"vit.layers.3.mlp.fc2.weight": "encoder.layer.3.output.dense.weight"}) == "vit."
    assert infer_prefix({"a.weight": "bert.a.weight"}) == ""
    assert infer_prefix({"a.weight": "a.weight"}) == ""


def test_a_missing_module_lists_the_nearest() -> None:
    with pytest.raises(
        AdapterError, match=r"changes 'x\.query\.key\.weight', .* the nearest is y\.query\.key\.weight: "
    ):
        find_tensors(["x.query.key.weight"], {"y.query.key.weight", "other.weight"}, where="the base")
