"""Which processors add 8-bit products exactly, and what sessions do on the others."""

from __future__ import annotations

import platform
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest

import rmlora_deploy.runtime.int8_products as int8_products
import rmlora_deploy.runtime.providers as providers
from rmlora_converters.graph.files.model_file import save_model
from rmlora_converters.graph.passes.quantize_products import InputScale, quantize_products
from tests.converters.test_quantize_products import TOKENS, plain_product


@pytest.mark.parametrize(
    ("machine", "flags", "overflow"),
    [
        ("x86_64", "flags\t\t: fpu avx2 fma\n", True),
        ("x86_64", "flags\t\t: fpu avx2 avx512_vnni fma\n", False),
        ("AMD64", "flags\t\t: fpu avx_vnni\n", False),
        ("x86_64", None, True),  # Windows and macOS have no such file
        ("aarch64", None, False),
    ],
)
def test_the_processor_tells(
    machine: str, flags: str | None, overflow: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: machine)
    monkeypatch.setattr(int8_products, "_CPUINFO", tmp_path / "cpuinfo")
    if flags is not None:
        (tmp_path / "cpuinfo").write_text(f"processor\t: 0\n{flags}")
    assert int8_products.products_overflow() is overflow


@pytest.mark.parametrize(("bits", "replaced"), [(8, True), (7, False)])
def test_sessions_replace_weights_that_may_overflow(
    bits: int, replaced: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = plain_product()
    quantize_products(model, {"x": InputScale(-4, 4)}, bits=bits)
    save_model(model, tmp_path / "model.onnx")
    results = []
    for overflow in (False, True):
        monkeypatch.setattr(providers, "products_overflow", lambda value=overflow: value)
        options = ort.SessionOptions()
        options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
        session = providers.create_session(tmp_path / "model.onnx", options=options)
        results.append(session.run(None, {"x": TOKENS})[0])
        graph = onnx.load(tmp_path / "optimized.onnx").graph
        types = {item.name: item.data_type for item in graph.initializer}
        (weight,) = (types[item.input[1]] for item in graph.node if item.op_type == "MatMulIntegerToFloat")
        expected = overflow and replaced and platform.machine() in ("x86_64", "AMD64")  # elsewhere nothing overflows
        assert weight == (onnx.TensorProto.UINT8 if expected else onnx.TensorProto.INT8)
    np.testing.assert_array_equal(results[0], results[1])
