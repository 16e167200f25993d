"""Verifying a language model's graph that an adapter was merged into, against PyTorch with PEFT's layers."""

from __future__ import annotations

from pathlib import Path

from rmlora.adapter import Adapter
from rmlora.errors import InputError
from rmlora.torch_models import load_adapted
from rmlora.training.data import Columns
from rmlora_deploy.bundles.report import Comparison
from rmlora_deploy.bundles.text_codec import TextCodec
from rmlora_deploy.runtime.decoder.decoder_layout import GENAI_CONFIG, DecoderLayout
from rmlora_deploy.runtime.decoder.decoder_session import DecoderSession
from rmlora_deploy.verification.decoder_prompts import decoder_samples
from rmlora_deploy.verification.logit_errors import LogitErrors
from rmlora_deploy.verification.torch_decoder import TorchDecoder

__all__ = ["compare_merged_text"]


def compare_merged_text(
    graph: Path, base: Path, adapter: Adapter, *, task: str, allow_base_mismatch: bool
) -> tuple[Comparison, list[list[int]]]:
    """Return how far the graph's logits are from PyTorch's, and the shapes of the prompts that both read.

    Args:
        graph: ONNX file with the adapter in its weights, with its ``genai_config.json`` in the same directory.
        base: checkpoint that the graph was built from.
        adapter: the adapter that was merged.
        task: of the adapter.
        allow_base_mismatch: compare although the adapter was made for another base.

    Raises:
        InputError: the graph was not built for ONNX Runtime GenAI, or cannot be run here; or PyTorch itself gives NaN.
    """
    if not (graph.parent / GENAI_CONFIG).is_file():
        raise InputError(
            f"there is no {GENAI_CONFIG} beside the graph, so nothing says how its keys and values are called; export a bundle to "
            "have it compared"
        )
    layout = DecoderLayout.read(graph.parent)
    session = DecoderSession(graph, layout)
    codec = TextCodec.open(base)
    samples = decoder_samples(codec, None, Columns(), context_length=layout.context_length, new_tokens=0)
    model, _ = load_adapted(base, Path(adapter.source), task=task, allow_base_mismatch=allow_base_mismatch)
    torch, errors = TorchDecoder(model, "the adapter"), LogitErrors()
    for prompt in samples.prompts:
        got = session.logits(prompt)
        errors.add(torch.logits(prompt)[-len(got) :], got)  # a graph may have been built to give only the last logits
    return errors.comparison(), [[1, len(prompt)] for prompt in samples.prompts]
