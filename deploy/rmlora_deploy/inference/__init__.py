"""Asking a bundle: labels for inputs, entities in texts, answers to questions, vectors for texts, or text that continues prompts."""

from pathlib import Path
from typing import Any

from rmlora_deploy.bundles.bundle import Bundle
from rmlora_deploy.inference.answerer import Answerer, FoundAnswer
from rmlora_deploy.inference.classifier import Classifier
from rmlora_deploy.inference.embedder import Embedder
from rmlora_deploy.inference.entity_spans import EntitySpan, Tagging
from rmlora_deploy.inference.generator import Generated, Generator
from rmlora_deploy.inference.prediction import Prediction
from rmlora_deploy.inference.tagger import Tagger

__all__ = [
    "Answerer",
    "Classifier",
    "Embedder",
    "EntitySpan",
    "FoundAnswer",
    "Generated",
    "Generator",
    "Prediction",
    "Tagger",
    "Tagging",
    "open_bundle",
]


def open_bundle(
    path: Path | str, *, provider: str = "cpu", trust_remote_code: bool = False, **options: Any
) -> Classifier | Tagger | Answerer | Embedder | Generator:
    """Open a bundle of any kind with the class for its task; arguments and errors as those of the classes."""
    kind = _KINDS[Bundle.open(path, check_files=False).task.outputs.kind]
    return kind.open(path, provider=provider, trust_remote_code=trust_remote_code, **options)


_KINDS: dict[str, type[Classifier] | type[Tagger] | type[Answerer] | type[Embedder] | type[Generator]] = {
    "scores": Classifier,
    "tokens": Tagger,
    "spans": Answerer,
    "vector": Embedder,
    "text": Generator,
}
"""Kind of a task's outputs → the class that asks for them."""
