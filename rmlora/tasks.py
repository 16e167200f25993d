"""The supported tasks, one object each, made of a kind of inputs and a kind of outputs.

To add a task, add an object to :data:`TASKS`; if it needs a new kind of inputs or outputs, add a subclass of
:class:`rmlora.inputs.Inputs` or :class:`rmlora.outputs.Outputs`. Nothing else in the toolkit distinguishes tasks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rmlora.answered_text import AnsweredText
from rmlora.errors import ConfigError
from rmlora.generated_text import GeneratedText
from rmlora.image_vector import ImageVector
from rmlora.inputs import ImageInputs, Inputs, TextInputs
from rmlora.outputs import ClassScores, Outputs, SentenceVector
from rmlora.prompt_inputs import PromptInputs
from rmlora.question_inputs import QuestionInputs
from rmlora.single_text_inputs import SingleTextInputs
from rmlora.span_scores import SpanScores
from rmlora.token_inputs import TokenInputs
from rmlora.token_labels import TokenLabels

__all__ = ["OTHER_TASKS", "TASKS", "Task", "get_task", "recorded_task"]


@dataclass(frozen=True)
class Task:
    """What a model takes and returns, and which classes build it."""

    name: str
    """Name of the task as in Hugging Face's pipelines and Optimum."""
    inputs: Inputs
    """How rows are read, preprocessed and batched."""
    outputs: Outputs
    """Head, labels, and how two outputs are compared."""
    auto_class: str
    """Name of the transformers Auto class that builds the model."""
    peft_task_type: str | None
    """PEFT's task type, with which PEFT also saves the head; None if PEFT has none for this task."""
    not_exported: str | None = None
    """Why adapters for this task are not exported, and what to do instead; None if they are."""

    @property
    def train_settings(self) -> frozenset[str]:
        """Settings of a training run that not all tasks have."""
        return self.inputs.train_settings | self.outputs.train_settings


TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task(
            "text-classification", TextInputs(), ClassScores(), "AutoModelForSequenceClassification", "SEQ_CLS"
        ),
        Task("image-classification", ImageInputs(), ClassScores(), "AutoModelForImageClassification", None),
        Task("feature-extraction", SingleTextInputs(), SentenceVector(), "AutoModel", "FEATURE_EXTRACTION"),
        Task("image-feature-extraction", ImageInputs(), ImageVector(), "AutoModel", None),
        Task("token-classification", TokenInputs(), TokenLabels(), "AutoModelForTokenClassification", "TOKEN_CLS"),
        Task("question-answering", QuestionInputs(), SpanScores(), "AutoModelForQuestionAnswering", "QUESTION_ANS"),
        Task("text-generation", PromptInputs(), GeneratedText(), "AutoModelForCausalLM", "CAUSAL_LM"),
        Task(
            "text2text-generation", PromptInputs(), AnsweredText(), "AutoModelForSeq2SeqLM", "SEQ_2_SEQ_LM",
            not_exported="its decoder also attends to what an encoder made of the prompt, so it takes two graphs and a second "
            "cache, which the runtime for language models does not have; merge it with  rmlora-deploy merge  and run it in "
            "transformers",
        ),
    )
}  # fmt: skip


def get_task(name: str) -> Task:
    """Return the task called ``name``.

    Raises:
        ConfigError: no such task.
    """
    if name not in TASKS:
        raise ConfigError(f"Unknown task '{name}': choose one of {', '.join(TASKS)}.")
    return TASKS[name]


OTHER_TASKS: dict[str, tuple[str | None, str | tuple[str, ...]]] = {
    "fill-mask": (None, "ForMaskedLM"),
    "multiple-choice": (None, "ForMultipleChoice"),
    "audio-classification": (None, "ForAudioClassification"),
    "object-detection": (None, "ForObjectDetection"),
    "image-segmentation": (None, "ForSemanticSegmentation"),
}
"""Tasks whose adapters are recognized, but not exported → PEFT's task type, and how the names of model classes end."""

_CLASSES: dict[str, str | tuple[str, ...]] = {
    "text-classification": "ForSequenceClassification",
    "image-classification": "ForImageClassification",
    "image-feature-extraction": ("VisionModel", "VisionModelWithProjection"),
    "token-classification": "ForTokenClassification",
    "question-answering": ("ForQuestionAnswering", "ForQuestionAnsweringSimple"),
    "text-generation": ("ForCausalLM", "LMHeadModel"),
    "text2text-generation": "ForConditionalGeneration",
}
"""Task → how the names of its model classes end. The encoders for feature-extraction, and most of those for
images, are also inside all other models."""


def recorded_task(peft_config: Mapping[str, Any]) -> str | None:
    """Return the task that ``adapter_config.json`` records; None if it records none.

    That is PEFT's task type or, where the type is not set, the class of the base, which PEFT then records.
    """
    kind, mapping = peft_config.get("task_type"), peft_config.get("auto_mapping")
    types = {task.peft_task_type: task.name for task in TASKS.values()}
    types.update((peft_type, name) for name, (peft_type, _) in OTHER_TASKS.items())
    if kind is not None:
        return types.get(str(kind))
    class_name = str(mapping.get("base_model_class")) if isinstance(mapping, Mapping) else ""
    endings = {**_CLASSES, **{name: ending for name, (_, ending) in OTHER_TASKS.items()}}
    return next((name for name, ending in endings.items() if class_name.endswith(ending)), None)
