"""A decoder's graph with one adapter merged into its weights."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from rmlora.errors import ConfigError, InputError
from rmlora.file_identity import ChangedFileError
from rmlora_converters.graph.files.model_file import load_model
from rmlora_converters.graph.locate.block_quantized import BlockQuantized
from rmlora_deploy import export, load
from rmlora_deploy.inference import Generator
from rmlora_deploy.runtime import AdapterRef
from tests.helpers.decoders import decoder_adapter, decoder_base

ASKED = ["The river", "a b", "Who ?"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a directory with a base, adapters of it, and bundles with branches in three precisions."""
    directory = tmp_path_factory.mktemp("specialize")
    base = decoder_base("llama", directory / "base")
    adapters = {name: decoder_adapter(base, directory / name, seed=seed) for name, seed in (("a", 1), ("b", 2))}
    for precision in ("fp32", "int8", "int4"):
        export(base, adapters, directory / precision, precision=precision, verify=False)  # type: ignore[arg-type]
    export(base, adapters["a"], directory / "merged", precision="int8", verify=False)
    return directory


def opened(path: Path) -> Generator:
    bundle = load(path, threads=1)
    assert isinstance(bundle, Generator)
    return bundle


def test_it_gives_the_texts_of_the_branches_and_only_to_its_own_adapter(made: Path) -> None:
    bundle = opened(made / "fp32")
    before = {name: bundle.generate(ASKED, name, max_new_tokens=6) for name in ("a", "b", None)}
    mixed = bundle.generate(ASKED, ["a", "b", None], max_new_tokens=6)
    bundle.specialize("a")
    bundle.specialize(None)
    for name, answers in before.items():
        assert bundle.generate(ASKED, name, max_new_tokens=6) == answers
    assert bundle.generate(ASKED, ["a", "b", None], max_new_tokens=6) == mixed
    half = bundle.generate(ASKED, {"a": 0.5}, max_new_tokens=6)
    assert half == opened(made / "fp32").generate(ASKED, {"a": 0.5}, max_new_tokens=6)


def test_no_branch_is_left_and_the_graph_is_the_merged_one(made: Path) -> None:
    bundle = opened(made / "fp32")
    tokens = bundle.codec.encode("The river")
    branches = bundle.session.logits(tokens, AdapterRef("a"))
    bundle.specialize("a")
    graph, takes_arrays = bundle.session.session_for([AdapterRef("a")])
    assert not takes_arrays and not [item.name for item in graph.get_inputs() if "lora" in item.name]
    assert np.abs(bundle.session.logits(tokens, AdapterRef("a")) - branches).max() <= 1e-4


def test_int8_weights_are_rounded_again_and_are_as_exact_as_a_merged_bundle(made: Path) -> None:
    exact = opened(made / "fp32")
    tokens = exact.codec.encode("The river rises in the hills", raw=True)
    want = exact.session.logits(tokens, AdapterRef("a"))
    bundle, merged = opened(made / "int8"), opened(made / "merged")
    bundle.specialize("a")
    special = np.abs(bundle.session.logits(tokens, AdapterRef("a")) - want).mean()
    usual = np.abs(merged.session.logits(tokens) - want).mean()
    assert 0 < special <= 1.5 * usual


def test_four_bits_are_too_few_and_a_merged_bundle_has_nothing_to_specialize(made: Path) -> None:
    with pytest.raises(ConfigError, match="has 4 bits, and rounding to them would lose a merged update"):
        opened(made / "int4").specialize("a")
    with pytest.raises(ConfigError, match="is merged: there is nothing to specialize"):
        opened(made / "merged").specialize(None)
    with pytest.raises(InputError, match="no adapter 'x'"):
        opened(made / "fp32").specialize("x")


def test_an_adapter_that_is_unloaded_takes_its_graph_with_it(made: Path) -> None:
    session = opened(made / "fp32").session
    session.specialize("a")
    late = dict(session._specialized)
    session.unload("a")
    assert session.session_for([AdapterRef("a")])[1]
    session._specialized.update(late)  # as if the graph had been opened only after the adapter was unloaded
    session.register("a", lambda: session.adapters.stored("b"))
    assert session.session_for([AdapterRef("a")])[1]


def test_a_graph_that_changed_is_not_specialized(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made / "fp32", tmp_path / "copy")
    bundle = opened(tmp_path / "copy")
    model = tmp_path / "copy" / "model.onnx"
    model.write_bytes(model.read_bytes())
    with pytest.raises(ChangedFileError, match="has changed since it was opened"):
        bundle.specialize("a")


@pytest.mark.parametrize("zero_points", [False, True])
def test_merging_nothing_into_blocks_keeps_their_numbers(made: Path, zero_points: bool) -> None:
    model = load_model(made / "int8" / "model.onnx")
    node = next(node for node in model.graph if node.op_type == "MatMulNBits")
    blocks = BlockQuantized.of(node.inputs[1])  # type: ignore[arg-type]
    assert blocks is not None
    if zero_points:
        count, fan_in = blocks.shape
        zeros = np.random.default_rng(0).integers(100, 156, count * -(-fan_in // 32), dtype=np.uint8)
        node.resize_inputs(4)
        node.replace_input_with(3, ir.Value(name="zeros", const_value=ir.tensor(zeros, name="zeros")))
    before = blocks.restored(slice(0, blocks.shape[0]))
    blocks.merge(slice(8, 40), np.zeros((32, blocks.shape[1]), np.float32))
    after = blocks.restored(slice(0, blocks.shape[0]))
    assert np.array_equal(after[:8], before[:8]) and np.array_equal(after[40:], before[40:])
    step = np.abs(before[8:40]).max() / 127
    assert np.abs(after[8:40] - before[8:40]).max() <= step
