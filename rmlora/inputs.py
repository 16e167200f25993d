"""Kinds of inputs: how texts or images become a model's arrays (no torch); prompts are in :mod:`rmlora.prompt_inputs`.

Every task has one (:mod:`rmlora.tasks`). Data loading, training, export, verification and serving call its methods, so they
need not distinguish texts from images.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt

from rmlora.errors import ConfigError, InputError
from rmlora.images import open_image
from rmlora.library_calls import library_call
from rmlora.padding_token import set_padding_token
from rmlora.processors import load_image_processor, load_tokenizer, plain_image_processor
from rmlora.readable import is_readable_file
from rmlora.sample_data import SENTENCES, draw_image
from rmlora.text_pair import PAIR_COLUMNS, InputForm, TextPair, text_or_pair
from rmlora.tokenized_texts import check_texts, padding, tokenize

if TYPE_CHECKING:
    from torch import Tensor

    from rmlora.training.features import Examples

__all__ = ["Arrays", "ImageInputs", "Inputs", "TextInputs"]

Arrays = dict[str, npt.NDArray[np.generic]]
"""Input name → array."""

_NO_LIMIT = 100_000
"""Tokenizers without a length limit report a number far above this."""
_DEFAULT_LENGTH = 512
"""Tokens per text if no limit is known."""


class Inputs(ABC):
    """A kind of inputs. Instances have no state; ``processor`` is the base's tokenizer or image processor."""

    modality: ClassVar[Literal["text", "image"]]
    column_option: ClassVar[str]
    """Setting that names the data column; its flag has dashes."""
    column_names: ClassVar[tuple[str, ...]]
    """Column names recognized without the setting, the most usual first."""
    columns_compete: ClassVar[bool]
    """True if two recognized columns may be halves of one input, as a question and a sentence: one must then be chosen."""
    varies_in_length: ClassVar[bool]
    """True if rows have a length in tokens and batches are padded."""
    train_settings: ClassVar[frozenset[str]]
    """Settings of a training run that only this modality has."""
    packs_processor: ClassVar[bool]
    """True if an adapter package contains the processor used in training."""
    takes_pairs: ClassVar[bool] = False
    """True if an input may be a pair of texts."""
    form: ClassVar[InputForm | None] = None
    """The only form of inputs; None if an adapter decides it."""
    reads_whole: ClassVar[bool] = False
    """True if nothing of a long input is cut off: it has several parts instead."""
    pair_columns: ClassVar[tuple[tuple[str, str], ...]] = ()
    """Names of two columns that together are recognized as pairs of texts without the setting."""
    different_processors: ClassVar[str]
    """What two processors do differently, for the error "A and B <this> differently"."""

    # -- data -------------------------------------------------------------------------------------------------------

    @abstractmethod
    def locate(self, value: Any, source: str) -> Any:
        """Return a cell of the data file ``source`` as an input.

        Raises:
            InputError: the cell names a file that does not exist.
        """

    @abstractmethod
    def is_empty(self, value: Any) -> bool:
        """Return True if a cell contains no input."""

    @abstractmethod
    def sample(self, count: int, form: InputForm = "text") -> list[Any]:
        """Return ``count`` built-in inputs of several sizes, for verification without data; pairs of texts if so asked."""

    # -- model inputs -----------------------------------------------------------------------------------------------

    @abstractmethod
    def load_processor(self, directory: Path, *, trust_remote_code: bool = False) -> Any:
        """Return the tokenizer or image processor in ``directory``.

        Args:
            directory: of a base, an adapter or a bundle.
            trust_remote_code: run code that comes with it.

        Raises:
            CheckpointError: there is no usable one.
        """

    def load_quick_processor(self, directory: Path, *, trust_remote_code: bool = False) -> Any:
        """Return a processor with the same results as :meth:`load_processor`'s that leaves other threads more time."""
        return self.load_processor(directory, trust_remote_code=trust_remote_code)

    def parts(self, processor: Any, value: Any, length: int | None) -> list[Any]:
        """Return the inputs, one row each, that are computed for one: here itself.

        Args:
            processor: of the base.
            value: an input.
            length: tokens of a row; None for the processor's own limit.
        """
        return [value]

    @abstractmethod
    def rows(
        self, processor: Any, inputs: Sequence[Any], *, lengths: Sequence[int | None], names: Sequence[str]
    ) -> list[Arrays]:
        """Return each input as arrays without batch axis and padding.

        Args:
            processor: of the base.
            inputs: at least one.
            lengths: for each input the number of tokens to truncate it to; None for no limit.
            names: inputs of the graph; the processor's other outputs are dropped.

        Raises:
            InputError: an input is empty or unreadable, or the processor does not make an input of the graph.
        """

    @abstractmethod
    def collate(self, processor: Any, rows: Sequence[Arrays]) -> Arrays:
        """Return rows as one batch, padded if they differ in length."""

    @abstractmethod
    def tokens(self, row: Arrays) -> int:
        """Return the number of tokens in a row; 0 for inputs without tokens."""

    @abstractmethod
    def length_limit(self, processor: Any) -> int | None:
        """Return the number of tokens that the processor truncates to by default; None for inputs without tokens."""

    @abstractmethod
    def essence(self, processor: Any) -> Mapping[str, Any]:
        """Return what determines a processor's arrays: processors with equal essence are interchangeable."""

    # -- training and tracing ---------------------------------------------------------------------------------------

    @abstractmethod
    def examples(self, inputs: Sequence[Any], labels: Sequence[Any], processor: Any, max_length: int) -> Examples:
        """Return a torch dataset of ``inputs`` with a collator (needs torch)."""

    @abstractmethod
    def resize(self, processor: Any, size: int | None) -> None:
        """Make the processor return images of ``size`` × ``size`` pixels; None keeps the base's size."""

    @abstractmethod
    def explain(self, error: ValueError) -> str | None:
        """Return an error sentence if the inputs caused ``error``, raised by a model; None if they did not."""

    @abstractmethod
    def prepare_model(self, model: Any, directory: Path, *, trust_remote_code: bool = False) -> None:
        """Set what a model, freshly loaded from ``directory``, needs to process batches."""

    @abstractmethod
    def trace_tensors(
        self, task: str, config: Any, processor: Any, *, rows: int, tokens: int
    ) -> tuple[dict[str, Tensor], dict[int, str]]:
        """Return example tensors for tracing a model, and index → name of the dynamic axes (needs torch and optimum)."""


class TextInputs(Inputs):
    """Texts and pairs of texts, tokenized and padded to the longest row of the batch."""

    modality = "text"
    column_option = "text_column"
    column_names: ClassVar[tuple[str, ...]] = ("text", "sentence", "question", "content", "message", "review", "input")
    columns_compete = True
    takes_pairs = True
    pair_columns: ClassVar[tuple[tuple[str, str], ...]] = PAIR_COLUMNS
    varies_in_length = True
    train_settings = frozenset({"text_column", "max_length"})
    packs_processor = False
    different_processors = "split texts"
    pads_right: ClassVar[bool] = False
    """True if batches are padded on the right whatever the tokenizer says."""
    marks: ClassVar[tuple[str, ...]] = ()
    """Arrays of a row that say what its tokens are, and are no inputs of a graph."""

    def locate(self, value: Any, source: str) -> Any:
        """Return the text in the cell, or the pair if it is a list of two texts."""
        return text_or_pair(value)

    def is_empty(self, value: Any) -> bool:
        """Return True unless ``value`` is a text with a character other than white space, or a pair of such texts."""
        value = self.locate(value, "")
        if isinstance(value, TextPair):
            return not (value.first.strip() and value.second.strip())
        return not (isinstance(value, str) and value.strip())

    def sample(self, count: int, form: InputForm = "text") -> list[Any]:
        """Return sentences of one to twenty words, or pairs of them."""
        texts = [SENTENCES[number % len(SENTENCES)] for number in range(count)]
        if form == "text":
            return texts
        return [TextPair(text, SENTENCES[(5 * number + 3) % len(SENTENCES)]) for number, text in enumerate(texts)]

    def load_processor(self, directory: Path, *, trust_remote_code: bool = False) -> Any:
        """Return the tokenizer in ``directory``."""
        return load_tokenizer(directory, trust_remote_code=trust_remote_code)

    def rows(
        self, processor: Any, inputs: Sequence[Any], *, lengths: Sequence[int | None], names: Sequence[str]
    ) -> list[Arrays]:
        """Return int64 arrays ``[tokens]`` for each text or pair of texts."""
        texts = [self.locate(value, "") for value in inputs]
        check_texts(texts)
        return list(tokenize(processor, texts, lengths, names))

    def collate(self, processor: Any, rows: Sequence[Arrays]) -> Arrays:
        """Return int64 arrays ``[rows, tokens]`` for a graph, padded on the tokenizer's padding side."""
        longest = max(self.tokens(row) for row in rows)
        left = not self.pads_right and getattr(processor, "padding_side", "right") == "left"
        batch: Arrays = {}
        for name in (name for name in rows[0] if name not in self.marks):
            batch[name] = np.full((len(rows), longest), padding(processor, name), np.int64)
            for number, row in enumerate(rows):
                part = slice(longest - len(row[name]), None) if left else slice(len(row[name]))
                batch[name][number, part] = row[name]
        return batch

    def tokens(self, row: Arrays) -> int:
        """Return the length of the row's arrays."""
        return len(next(iter(row.values())))

    def length_limit(self, processor: Any) -> int | None:
        """Return the tokenizer's limit, or 512 if it has none."""
        limit = getattr(processor, "model_max_length", None)
        return int(limit) if limit and limit < _NO_LIMIT else _DEFAULT_LENGTH

    def essence(self, processor: Any) -> Mapping[str, Any]:
        """Return the vocabulary."""
        with library_call(lambda reason: InputError(f"The tokenizer has no usable vocabulary ({reason}).")):
            return dict(processor.get_vocab())

    def examples(self, inputs: Sequence[Any], labels: Sequence[Any], processor: Any, max_length: int) -> Examples:
        """Return the texts, tokenized once."""
        from rmlora.training.features import TextExamples

        return TextExamples(inputs, labels, processor, max_length)

    def resize(self, processor: Any, size: int | None) -> None:
        """Do nothing: texts have no size."""

    def explain(self, error: ValueError) -> str | None:
        """Return None: no such error is known for texts."""
        return None

    def prepare_model(self, model: Any, directory: Path, *, trust_remote_code: bool = False) -> None:
        """Let the model know the token that batches are padded with."""
        set_padding_token(model, directory, trust_remote_code=trust_remote_code)

    def trace_tensors(
        self, task: str, config: Any, processor: Any, *, rows: int, tokens: int
    ) -> tuple[dict[str, Tensor], dict[int, str]]:
        """Return token ids and masks without padding, from Optimum's generator."""
        from optimum.utils import DummyTextInputGenerator, NormalizedTextConfig

        generator = DummyTextInputGenerator(task, NormalizedTextConfig(config), batch_size=rows, sequence_length=tokens)
        names = [name for name in processor.model_input_names if name in generator.SUPPORTED_INPUT_NAMES]
        tensors = {name: generator.generate(name, framework="pt") for name in names}
        if "attention_mask" in tensors:
            tensors["attention_mask"] = tensors["attention_mask"].new_ones(tensors["attention_mask"].shape)
        return tensors, {0: "batch", 1: "sequence"}


class ImageInputs(Inputs):
    """Images, cropped and scaled to one size by the base's image processor."""

    modality = "image"
    column_option = "image_column"
    column_names = ("image", "img", "picture", "file", "path")
    columns_compete = False
    varies_in_length = False
    train_settings = frozenset({"image_column", "image_size"})
    packs_processor = True
    different_processors = "crop and scale images"

    def locate(self, value: Any, source: str) -> Any:
        """Resolve an image path relative to the data file; return decoded images unchanged."""
        if not isinstance(value, str):
            return value
        path = Path(source).parent / value
        if not is_readable_file(path):
            raise InputError(f"{source} names the image {value}, which does not exist in the same folder.")
        return str(path)

    def is_empty(self, value: Any) -> bool:
        """Return True if there is no image."""
        return value is None or value == ""

    def sample(self, count: int, form: InputForm = "text") -> list[Any]:
        """Return generated images of several widths."""
        return [draw_image(number) for number in range(count)]

    def load_processor(self, directory: Path, *, trust_remote_code: bool = False) -> Any:
        """Return the image processor in ``directory``."""
        return load_image_processor(directory, trust_remote_code=trust_remote_code)

    def load_quick_processor(self, directory: Path, *, trust_remote_code: bool = False) -> Any:
        """Return the processor that does without transformers, if it knows the kind.

        Transformers copies an image to an array before it makes it smaller, and holds the interpreter's lock meanwhile.
        """
        return plain_image_processor(directory) or self.load_processor(directory, trust_remote_code=trust_remote_code)

    def rows(
        self, processor: Any, inputs: Sequence[Any], *, lengths: Sequence[int | None], names: Sequence[str]
    ) -> list[Arrays]:
        """Return float32 ``[channels, height, width]`` for each image."""
        images = [open_image(value) for value in inputs]
        with library_call(lambda reason: InputError(f"The image processor cannot process the images ({reason}).")):
            made = processor(images, return_tensors="np")
        return [{"pixel_values": pixels} for pixels in np.asarray(made["pixel_values"], dtype=np.float32)]

    def collate(self, processor: Any, rows: Sequence[Arrays]) -> Arrays:
        """Return ``[rows, channels, height, width]``."""
        return {name: np.stack([row[name] for row in rows]) for name in rows[0]}

    def tokens(self, row: Arrays) -> int:
        """Return 0: images have no tokens."""
        return 0

    def length_limit(self, processor: Any) -> int | None:
        """Return None: images have no tokens."""
        return None

    def essence(self, processor: Any) -> Mapping[str, Any]:
        """Return the processor's settings."""
        settings = processor.to_dict()
        return {
            key: item for key, item in settings.items() if not key.startswith("_") and key != "image_processor_type"
        }

    def examples(self, inputs: Sequence[Any], labels: Sequence[Any], processor: Any, max_length: int) -> Examples:
        """Return the images, decoded on access."""
        from rmlora.training.features import ImageExamples

        return ImageExamples(inputs, labels, processor)

    def resize(self, processor: Any, size: int | None) -> None:
        """Make the processor scale, and crop if it crops, to ``size`` × ``size``."""
        if size:
            processor.size = {"height": size, "width": size}
            if getattr(processor, "crop_size", None):
                processor.crop_size = processor.size

    def explain(self, error: ValueError) -> str | None:
        """Recognize the error of a base that takes images of one size only."""
        if "size" not in str(error):
            return None
        return f"The base does not take images of this size ({str(error).rstrip('.')}): leave --image-size out."

    def prepare_model(self, model: Any, directory: Path, *, trust_remote_code: bool = False) -> None:
        """Do nothing: images need no padding."""

    def trace_tensors(
        self, task: str, config: Any, processor: Any, *, rows: int, tokens: int
    ) -> tuple[dict[str, Tensor], dict[int, str]]:
        """Return images of the processor's size from Optimum's generator."""
        from optimum.utils import DummyVisionInputGenerator, NormalizedVisionConfig

        sized = copy.deepcopy(config)
        sized.image_size = _image_size(
            processor
        )  # Optimum would use the base's size, which may differ from the adapter's
        generator = DummyVisionInputGenerator(task, NormalizedVisionConfig(sized), batch_size=rows, num_channels=3)
        return {"pixel_values": generator.generate("pixel_values", framework="pt")}, {0: "batch"}


def _image_size(processor: Any) -> tuple[int, int]:
    """Return (height, width) of the images that the processor returns."""
    size = getattr(processor, "crop_size", None) if getattr(processor, "do_center_crop", False) else None
    size = size or processor.size
    edge = size.get("shortest_edge") if hasattr(size, "get") else None
    height = (size.get("height") if hasattr(size, "get") else None) or edge
    width = (size.get("width") if hasattr(size, "get") else None) or edge
    if not height or not width:
        raise ConfigError(f"The image processor has no fixed size ({dict(size)}): train with --image-size.")
    return int(height), int(width)
