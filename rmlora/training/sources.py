"""Opening labeled data: files, folders of images and hub datasets."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rmlora.errors import InputError, require
from rmlora.readable import check_readable
from rmlora.training.delimited import read_delimited
from rmlora.training.json_rows import read_json_rows
from rmlora.training.table import Reading, Table
from rmlora.training.text_file import read_text

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = ["open_table"]


def open_table(source: str, wanted: Collection[str], reading: Reading | None) -> Table:
    """Open one file, image folder or hub dataset (``name`` or ``name:split``).

    Args:
        source: where the data is.
        wanted: usual or chosen names of columns, in lower case; they tell which separator a csv file has.
        reading: how the user wants it read; None if the caller offers no choice.

    Raises:
        InputError: it does not exist, cannot be parsed, or is empty.
        DependencyError: it needs ``datasets``, which is not installed.
    """
    path = Path(source)
    suffix = path.suffix.lower()
    check_readable([path])
    if path.is_dir():
        return _dataset("imagefolder", source, data_dir=str(path), split="train")
    if path.is_file():
        if suffix not in (".csv", ".tsv", ".json", ".jsonl", ".parquet"):
            raise InputError(f"{source} is not a csv, tsv, json, jsonl or parquet file: convert it to one of these.")
        if path.stat().st_size == 0:
            raise InputError(f"{source} is empty: there is nothing to train on.")
        if suffix == ".parquet":
            return _dataset("parquet", source, data_files=str(path), split="train")
        text = read_text(path, reading.encoding if reading else None, flag=reading is not None)
        return read_delimited(path, wanted, text) if suffix in (".csv", ".tsv") else read_json_rows(path, text)
    if path.suffix or source.startswith((".", "/", "~")) or source.count("/") > 1:
        raise InputError(f"Data not found: {source} does not exist.")
    name, _, split = source.partition(":")
    return _dataset(name, source, split=split or "train")


class _Columns(Mapping[str, Sequence[Any]]):
    """The columns of a dataset, read when they are asked for; images stay encoded."""

    def __init__(self, dataset: Dataset, images: Collection[str]) -> None:
        self._dataset = dataset
        self._names = [str(name) for name in dataset.column_names]
        self._images = images

    def __getitem__(self, name: str) -> Sequence[Any]:
        if name not in self:  # a dataset raises another error, which `get` does not expect
            raise KeyError(name)
        cells = list(self._dataset[name][:])
        return [_encoded(cell) for cell in cells] if name in self._images else cells

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def _dataset(kind: str, source: str, **options: Any) -> Table:
    require("datasets", "train")
    import datasets

    datasets.disable_progress_bars()
    try:
        dataset = datasets.load_dataset(kind, **options)
    except (OSError, ValueError, RuntimeError, KeyError, datasets.exceptions.DatasetsError) as error:
        cause = error.__cause__ or error
        reason = (str(cause).strip() or type(cause).__name__).splitlines()[0].rstrip(".")
        raise InputError(f"{source} cannot be read as a dataset ({reason}): check its format.") from None
    images = [name for name, kind in dataset.features.items() if isinstance(kind, datasets.Image)]
    for name in images:  # decoded they would all be in memory, and a damaged one would not be named
        dataset = dataset.cast_column(name, datasets.Image(decode=False))
    kinds = {name: getattr(kind, "feature", kind) for name, kind in dataset.features.items()}  # of lists, their items'
    declared = {name: tuple(kind.names) for name, kind in kinds.items() if hasattr(kind, "int2str")}
    return Table(_Columns(dataset, images), rows=len(dataset), class_names=declared)


def _encoded(cell: Mapping[str, Any] | None) -> bytes | Path | None:
    """Return an image of a dataset as bytes, or as the path of its file; None for an empty cell."""
    if cell is None:
        return None
    content: bytes | None = cell["bytes"]
    return content if content is not None else Path(cell["path"])
