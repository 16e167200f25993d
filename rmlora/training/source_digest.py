"""The digest of a file or folder of data, by which a run that is continued knows its data again."""

from __future__ import annotations

import hashlib
from pathlib import Path

from rmlora.readable import check_readable
from rmlora.storage import sha256_file

__all__ = ["source_digest"]


def source_digest(source: str) -> str | None:
    """Return the SHA-256 of a file, or of the names and contents of a folder's files; None if it is a dataset of the hub.

    Raises:
        InputError: a file cannot be read.
    """
    path = Path(source)
    check_readable([path])
    if path.is_file():
        return sha256_file(path)
    if not path.is_dir():
        return None
    digest = hashlib.sha256()
    for file in sorted(item for item in path.rglob("*") if item.is_file()):
        check_readable([file])
        digest.update(f"{file.relative_to(path).as_posix()}\0{sha256_file(file)}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()
