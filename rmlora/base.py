"""Resolving a base model given as directory, GGUF file or hub name to a directory with safetensors."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from rmlora.checkpoint import Checkpoint
from rmlora.errors import CheckpointError, ConfigError, OutputError, require, some_of
from rmlora.library_calls import library_call
from rmlora.nearest_names import nearest_beside
from rmlora.quiet import quiet_transformers
from rmlora.readable import check_readable
from rmlora.storage import atomic_directory, sha256_file

__all__ = ["cache_directory", "resolve_base"]

_HUB_FILES = ["*.json", "*.safetensors", "*.model", "*.txt", "*.tiktoken", "*.jinja", "*.py", "README.md"]
"""Patterns of what is downloaded: weights, configurations, tokenizers, code that only runs if the user trusts it, and the card,
which states the license."""
_NOT_NEEDED = ["consolidated*.safetensors"]
"""Patterns of weights that are stored a second time, as another library names them."""


def cache_directory() -> Path:
    """Return the directory for converted bases: ``$RMLORA_CACHE``, or ``~/.cache/rmlora-deploy``."""
    return Path(os.environ.get("RMLORA_CACHE") or Path.home() / ".cache" / "rmlora-deploy")


def resolve_base(base: str | Path, *, revision: str | None = None) -> Path:
    """Return a local directory with ``config.json`` and safetensors weights for ``base``.

    Args:
        base: a checkpoint directory, a ``.gguf`` file or a directory with one (dequantized once into :func:`cache_directory`;
            needs torch and gguf), or a hub name (downloaded by huggingface_hub into its own cache).
        revision: branch, tag or commit of a hub name.

    Raises:
        CheckpointError: there is no usable checkpoint.
        ConfigError: a revision is given, and the base is not on the hub.
        InputError: it may not be read.
        DependencyError: ``base`` is a GGUF file, and torch, transformers or gguf is not installed.
    """
    path = Path(base)
    check_readable([path])
    if revision is not None and path.exists():
        raise ConfigError(f"--revision {revision} is of a base on the hub, and {path} is here: leave it out.")
    if path.is_dir():
        if (gguf := _only_gguf(path)) is not None:
            return _from_gguf(gguf)
        Checkpoint(path)
        return path
    if path.is_file():
        if path.suffix.lower() != ".gguf":
            raise CheckpointError(
                f"{path} is a file, not a model directory; the only model files accepted are .gguf files."
            )
        return _from_gguf(path)
    name = str(base)
    if name.count("/") > 1 or name.startswith((".", "/", "~")) or path.suffix.lower() in (".gguf", ".safetensors"):
        near = nearest_beside(path, files=".gguf")
        raise CheckpointError(f"Base model not found: {name} does not exist{near and f'; {near}'}.")
    return _from_hub(name, revision)


def _only_gguf(directory: Path) -> Path | None:
    """Return the GGUF file of a directory that holds no safetensors; None if there is none.

    Raises:
        CheckpointError: there are several.
    """
    if any(directory.glob("*.safetensors*")):
        return None
    files = sorted(directory.glob("*.gguf"))
    if len(files) > 1:
        raise CheckpointError(
            f"{directory} holds {len(files)} GGUF files ({some_of([file.name for file in files])}): name one of them."
        )
    return files[0] if files else None


def _from_hub(name: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        path = Path(snapshot_download(name, revision=revision, allow_patterns=_HUB_FILES, ignore_patterns=_NOT_NEEDED))
    except HFValidationError:
        near = nearest_beside(Path(name), files=".gguf")
        raise CheckpointError(
            f"Base model not found: '{name}' is neither a directory nor a valid hub name{near and f'; {near}'}."
        ) from None
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        near = nearest_beside(Path(name), files=".gguf")
        raise CheckpointError(
            f"Base model '{name}' is not a local directory{near and f' ({near})'} and could not be fetched from the hub ({reason}): check the "
            "name, the network, or give a local path."
        ) from None
    Checkpoint(path)
    return path


def _from_gguf(path: Path) -> Path:
    """Dequantize ``path`` with transformers into a cache directory named after the file's hash."""
    target = cache_directory() / "gguf" / sha256_file(path)[:32]
    if target.is_dir():
        return target
    for module in ("torch", "transformers", "gguf"):
        require(module, "train")
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    def refuse(reason: str) -> CheckpointError:
        return CheckpointError(f"{path} cannot be read as a GGUF model ({reason}): fetch it again.")

    with library_call(refuse), quiet_transformers():
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            path.parent, gguf_file=path.name, dtype=torch.float32, trust_remote_code=False, output_loading_info=True
        )
        tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name, trust_remote_code=False)
    model, found = loaded
    if missing := sorted(found["missing_keys"]):  # transformers would make random ones
        parts = re.search(r"-\d+-of-\d+$", path.stem)
        advice = "it is one part of several, join them with  llama-gguf-split --merge" if parts else "fetch it again"
        raise CheckpointError(f"{path} lacks weights of its model, such as '{missing[0]}': {advice}.")
    # The weights are no longer quantized, but transformers refuses to save while it has these records.
    model.hf_quantizer = None
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    try:
        with atomic_directory(target) as directory:
            model.save_pretrained(directory)
            tokenizer.save_pretrained(directory)
    except OutputError:
        if not target.is_dir():  # else another process has converted the same file meanwhile
            raise
    return target
