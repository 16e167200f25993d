"""One table of execution providers; a requested provider is never silently replaced by another."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace

import onnxruntime as ort
import pytest

from rmlora.errors import ConfigError, InputError, ProviderError
from rmlora_deploy.bundles.bundle import MODEL_FILE
from rmlora_deploy.runtime import providers
from rmlora_deploy.runtime.device_libraries import missing_library, remedy
from rmlora_deploy.runtime.providers import PROVIDERS, available, create_session, get_provider, run_error
from tests.helpers.handmade import word_bundle


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return word_bundle(tmp_path_factory.mktemp("providers") / "words") / MODEL_FILE


@pytest.fixture
def pretend_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """An ONNX Runtime built with CUDA, on a machine with CUDA's libraries and without a GPU."""
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"])
    monkeypatch.setattr(providers, "missing_library", lambda name: None)


def test_a_provider_has_our_name_and_onnx_runtimes() -> None:
    assert get_provider("cuda") is get_provider("CUDAExecutionProvider") is get_provider("CUDA")
    assert len({item.name for item in PROVIDERS}) == len({item.ort_name for item in PROVIDERS}) == len(PROVIDERS)
    with pytest.raises(ConfigError, match="Unknown provider 'gpu': choose one of cpu, cuda"):
        get_provider("gpu")


def test_onnx_runtime_knows_every_provider_of_the_table() -> None:
    # ROCm's left ONNX Runtime with 1.23; older builds still have it.
    assert {item.ort_name for item in PROVIDERS} - {"ROCMExecutionProvider"} <= set(ort.get_all_providers())


def test_available_lists_what_the_build_has() -> None:
    found = available()
    assert found["cpu"] is True
    assert list(found) == [item.name for item in PROVIDERS]


def test_a_session_has_the_requested_provider_and_threads(model: Path) -> None:
    session = create_session(model, "cpu", threads=1)
    assert session.get_providers() == ["CPUExecutionProvider"]
    assert session.get_session_options().intra_op_num_threads == 1
    assert create_session(model.read_bytes()).get_outputs()[0].name == "logits"


def test_an_absent_provider_is_an_error_that_names_the_extra(model: Path) -> None:
    absent = next(name for name, there in available().items() if not there and name != "cpu")
    with pytest.raises(ProviderError, match=f"Provider '{absent}' .*pip install 'onnxruntime-gpu"):
        create_session(model, absent)


def test_a_provider_that_onnx_runtime_drops_is_an_error(
    model: Path, pretend_cuda: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    dropped = SimpleNamespace(get_providers=lambda: ["CPUExecutionProvider"])
    monkeypatch.setattr(ort, "InferenceSession", lambda *_, **__: dropped)
    with pytest.raises(ProviderError, match="'cuda' did not start on this machine"):
        create_session(model, "cuda")


def test_a_provider_that_fails_to_start_is_an_error(
    model: Path, pretend_cuda: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("CUDA failure 100: no CUDA-capable device\nand a stack")

    monkeypatch.setattr(ort, "InferenceSession", fail)
    with pytest.raises(ProviderError, match=re.escape("no CUDA-capable device.") + "$"):
        create_session(model, "cuda")


def test_models_that_cannot_be_loaded_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="ONNX model not found"):
        create_session(tmp_path / "none.onnx")
    (tmp_path / "bad.onnx").write_bytes(b"not a model")
    with pytest.raises(InputError, match="bad.onnx cannot be read as an ONNX model"):
        create_session(tmp_path / "bad.onnx")


def test_what_a_provider_lacks_is_said(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "capi").mkdir()
    for name in ("shared", "cuda"):
        (tmp_path / "capi" / f"libonnxruntime_providers_{name}.so").write_bytes(b"")  # the loader refuses them
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"])
    monkeypatch.setattr(ort, "__file__", str(tmp_path / "__init__.py"))
    missing_library.cache_clear()
    try:
        with pytest.raises(ProviderError, match="'cuda' cannot start on this machine: .*file too short.* --provider"):
            create_session(model, "cuda")
        assert "file too short" in str(providers.unusable("cuda"))
        assert providers.unusable("coreml") == "not in the installed ONNX Runtime"
        assert providers.unusable("cpu") is None
    finally:
        missing_library.cache_clear()


@pytest.mark.parametrize(
    ("missing", "todo"),
    [
        ("libcuda.so.1: cannot open shared object file", "install NVIDIA's driver"),
        ("libcublasLt.so.13: cannot open shared object file", "onnxruntime-gpu[cuda,cudnn]"),
        ("libcudnn.so.9: cannot open shared object file", "onnxruntime-gpu[cuda,cudnn]"),
        ("libnvrtc.so.13: cannot open shared object file", "onnxruntime-gpu[cuda,cudnn]"),
        ("libnvinfer.so.10: cannot open shared object file", "install TensorRT 10"),
        ("libamdhip64.so.6: cannot open shared object file", "install what it lacks"),
    ],
)
def test_every_missing_library_has_its_remedy(missing: str, todo: str) -> None:
    assert todo in remedy(missing)


def test_tensorrt_leaves_what_it_cannot_run_to_cuda() -> None:
    assert get_provider("tensorrt").others == ("cuda", "cpu")
    assert [item.name for item in PROVIDERS if item.device == "cuda"] == ["cuda", "tensorrt"]


CUDA_ERROR = (
    "[ONNXRuntimeError] : 1 : FAIL : std::conditional_t<THRW, void, common::Status> onnxruntime::CudaCall(ERRTYPE, const char*) "
    "[with ERRTYPE = cudaError; bool THRW = true] CUDA failure 100: no CUDA-capable device is detected ; GPU=-1 ; hostname=vm ; "
    "file=/onnxruntime_src/onnxruntime/core/providers/cuda/cuda_execution_provider.cc ; line=355"
)
NO_MEMORY = (
    "[ONNXRuntimeError] : 1 : FAIL : /onnxruntime_src/onnxruntime/core/framework/bfc_arena.cc:360 void* "
    "onnxruntime::BFCArena::AllocateRawInternal(size_t, bool, onnxruntime::Stream*) Available memory of 1047296 is smaller than "
    "requested bytes of 32768000"
)
"""Both as an H200 gave them."""


def test_a_failure_of_the_device_is_not_the_inputs_fault_and_is_said_in_one_sentence(
    model: Path, pretend_cuda: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed = run_error(RuntimeError(CUDA_ERROR))
    assert isinstance(failed, ProviderError)
    assert (
        str(failed) == "The graph cannot be run on these inputs: CUDA failure 100: no CUDA-capable device is detected."
    )
    short = run_error(RuntimeError(NO_MEMORY))
    assert isinstance(short, ProviderError)
    assert "not enough memory (Available memory of 1047296 is smaller than requested bytes of 32768000)." in str(short)
    assert isinstance(run_error(RuntimeError("indices element out of data bounds")), InputError)

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError(CUDA_ERROR)

    monkeypatch.setattr(ort, "InferenceSession", fail)
    with pytest.raises(ProviderError, match=r"model.onnx: CUDA failure 100: no CUDA-capable device is detected\.$"):
        create_session(model, "cuda")
