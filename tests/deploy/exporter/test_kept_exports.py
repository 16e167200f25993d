"""A kept graph is given only to a model and arguments that are equal in everything the exporter could look at."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import onnx_ir as ir
import pytest
import torch
from torch import nn

from tests.helpers.kept_exports import KeptExports


@dataclass
class Program:
    """What a counting stand-in for the exporter returns."""

    model: ir.Model


class Tiny(nn.Module):
    def __init__(self, *, tied: bool = True) -> None:
        super().__init__()
        self.a = nn.Linear(2, 2)
        self.b = nn.Linear(2, 2)
        self.register_buffer("c", torch.zeros(3), persistent=False)
        self.settings: dict[str, Any] = {"scale": 1.0}
        for parameter in self.parameters():
            nn.init.ones_(parameter)
        if tied:
            self.b.weight = self.a.weight


@pytest.fixture
def exported() -> list[Any]:
    return []


@pytest.fixture
def export(exported: list[Any]) -> KeptExports:
    def exporter(module: Any, **options: Any) -> Program:
        exported.append(module)
        value = ir.Value(name=f"graph {len(exported)}")
        graph = ir.Graph([value], [value], nodes=[], opset_imports={"": 20}, name="graph")
        return Program(ir.Model(graph, ir_version=10))

    return KeptExports(exporter)


def changed(change: str) -> Tiny:
    module = Tiny(tied=change != "ties")
    if change == "weight":
        module.a.weight.data[0, 0] = 2.0
    elif change == "buffer":
        module.get_buffer("c")[0] = 1.0
    elif change == "setting":
        module.settings["scale"] = 2.0
    elif change == "mode":
        module.eval()
    elif change == "method":
        module.forward = nn.Identity().forward
    return module


def options(**changes: Any) -> dict[str, Any]:
    return {"kwargs": {"x": torch.zeros(1, 2)}, "dynamo": True, "opset_version": 20, **changes}


def test_an_equal_model_gets_a_copy_of_the_graph(export: KeptExports, exported: list[Any]) -> None:
    first, second = export(Tiny(), **options()).model, export(Tiny(), **options()).model
    assert len(exported) == 1 and first is not second
    assert first.graph.inputs[0].name == second.graph.inputs[0].name == "graph 1"
    second.graph.inputs[0].name = "another"
    assert export(Tiny(), **options()).model.graph.inputs[0].name == "graph 1"


def test_what_a_partial_function_was_given_counts(export: KeptExports, exported: list[Any]) -> None:
    for number in (1, 2, 2):
        module = Tiny()
        module.settings["scale"] = partial(float, number)
        export(module, **options())
    assert len(exported) == 2


@pytest.mark.parametrize("change", ["weight", "buffer", "setting", "mode", "method", "ties"])
def test_another_model_is_exported(change: str, export: KeptExports, exported: list[Any]) -> None:
    export(Tiny(), **options())
    export(changed(change), **options())
    assert len(exported) == 2


@pytest.mark.parametrize(
    "changes",
    [{"opset_version": 23}, {"kwargs": {"x": torch.ones(1, 2)}}, {"kwargs": {"x": torch.zeros(2, 1)}}],
    ids=["operators", "values", "shape"],
)
def test_with_other_arguments_it_is_exported_again(
    changes: dict[str, Any], export: KeptExports, exported: list[Any]
) -> None:
    export(Tiny(), **options())
    export(Tiny(), **options(**changes))
    assert len(exported) == 2


def test_files_are_written_each_time(export: KeptExports, exported: list[Any]) -> None:
    for _ in range(2):
        export(Tiny(), **options(f="model.onnx"))
    assert len(exported) == 2
