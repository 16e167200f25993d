"""Tiny encoders for embeddings, adapters for them, and PEFT's vectors, computed text by text without padding."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from peft import PeftModel
from transformers import AutoModel, AutoTokenizer

from tests.helpers.cli import run, tokenizer
from tests.helpers.models import ARCHITECTURES, adapt, build, encoder_of, lora_config, save_adapter, save_base

RANKS = {"near": 2, "far": 4}
"""Adapter → its rank."""

TEXTS = ["w1 w5 w3", "w2", "w9 w9 w4 w1 w7 w8 w2", "w3 w6"]


def make_encoder(name: str, directory: Path, *, ranks: dict[str, int] | None = None) -> Path:
    """Save a tiny encoder without a head as ``directory / "base"`` and adapters for it in ``directory``; return the base.

    BERT's adapters also change its pooler, as ``all-linear`` does, although no vector depends on it.
    """
    base = save_base(encoder_of(build(name)), directory / "base")
    tokenizer().save_pretrained(base)
    for label, rank in (RANKS if ranks is None else ranks).items():
        targets = [*ARCHITECTURES[name].targets, *(["pooler.dense"] if name == "bert" else [])]
        config = lora_config(name, r=rank, target_modules=targets, modules_to_save=None, task_type="FEATURE_EXTRACTION")
        save_adapter(adapt(AutoModel.from_pretrained(base), config, size=0.3, seed=rank), directory / label)
    return base


def make_embedded(directory: Path) -> Path:
    """Export a tiny encoder and two adapters as the bundle ``directory / "vectors"``; return ``directory``."""
    base = make_encoder("bert", directory)
    flags = [part for name in RANKS for part in ("-a", directory / name)]
    done = run("export", base, "--mode", "branches", *flags, "-o", directory / "vectors")
    assert done.code == 0, done.stderr
    return directory


def write_modules(directory: Path, pooling: dict[str, object], *, more: Sequence[str] = ()) -> Path:
    """Write the files that tell sentence-transformers how to pool; ``more`` names modules after the pooling."""
    kinds = ["Transformer", "Pooling", *more]
    modules = [
        {"idx": number, "path": f"{number}_{kind}" if number else "", "type": f"sentence_transformers.models.{kind}"}
        for number, kind in enumerate(kinds)
    ]
    (directory / "1_Pooling").mkdir(parents=True, exist_ok=True)
    (directory / "modules.json").write_text(json.dumps(modules))
    (directory / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": 16, **pooling}))
    return directory


def peft_vectors(
    base: Path, adapter: Path | None, texts: Sequence[str], *, mode: str = "mean", normalize: bool = True
) -> np.ndarray:
    """Return PyTorch's vectors, ``[texts, width]``; each text is computed by itself."""
    model = AutoModel.from_pretrained(base).eval()
    model = PeftModel.from_pretrained(model, adapter).eval() if adapter is not None else model
    tokens = AutoTokenizer.from_pretrained(base)
    rows = []
    with torch.inference_mode():
        for text in texts:
            inputs = tokens(text, return_tensors="pt")
            inputs.pop("token_type_ids", None)
            hidden = model(**inputs).last_hidden_state[0].numpy()
            rows.append({"mean": hidden.mean(0), "cls": hidden[0], "last": hidden[-1]}[mode])
    vectors = np.stack(rows)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True) if normalize else vectors
