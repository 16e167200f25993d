"""The runs that are done, one JSON object a line, so that a campaign goes on where it stopped."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from benchmarks.quality.study import RunSpec
from rmlora.errors import InputError

__all__ = ["RunStore"]


class RunStore:
    """Records by spec, in memory and in a file that is only ever appended to.

    A line that a kill cut short is dropped when the file is opened.

    Raises:
        InputError: a line in the middle of the file is not a record.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._records: dict[RunSpec, Mapping[str, Any]] = {}
        if not path.exists():
            return
        whole = path.read_bytes()
        kept = whole[: whole.rfind(b"\n") + 1]
        if len(kept) < len(whole):
            os.truncate(path, len(kept))
        for number, line in enumerate(kept.decode().splitlines(), 1):
            try:
                record = json.loads(line)
                self._records[RunSpec.from_dict(record)] = record
            except (ValueError, KeyError, TypeError) as error:
                raise InputError(f"Line {number} of {path} is not a run of this study: remove it ({error}).") from None

    def __contains__(self, spec: RunSpec) -> bool:
        return spec in self._records

    def __len__(self) -> int:
        return len(self._records)

    def __iter__(self) -> Iterator[RunSpec]:
        return iter(self._records)

    def __getitem__(self, spec: RunSpec) -> Mapping[str, Any]:
        return self._records[spec]

    def get(self, spec: RunSpec) -> Mapping[str, Any] | None:
        """Return the record of a run, or None if it is not done."""
        return self._records.get(spec)

    def add(self, spec: RunSpec, result: Mapping[str, Any]) -> None:
        """Append a record and write it through to the disk."""
        record = {**spec.to_dict(), **result}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self._records[spec] = record
