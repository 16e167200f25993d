"""What a directory holds, so that a message can say it where another kind was expected."""

from __future__ import annotations

from pathlib import Path

__all__ = ["holds_adapter", "holds_model"]

_WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin")


def holds_adapter(path: Path) -> bool:
    """Return True if ``path`` holds the configuration of a PEFT adapter."""
    return (path / "adapter_config.json").is_file()


def holds_model(path: Path) -> bool:
    """Return True if ``path`` holds a configuration and weights of transformers."""
    return (path / "config.json").is_file() and any((path / name).is_file() for name in _WEIGHTS)
