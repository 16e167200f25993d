"""Changing a bundle so that a kill at any moment leaves a valid one, and the next change removes what was left behind.

Before files of a bundle are written or deleted, their names go to ``.pending.json``. A file that stands there and that the
manifest does not list belongs to an adapter that was not completely added, or is being removed. It is deleted when the change
ends, or, if the process was killed, when the next one begins.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from rmlora.errors import InputError
from rmlora.readable import is_readable_file
from rmlora.storage import check_changeable, locked, read_json, write_json
from rmlora.workplace import clean_abandoned
from rmlora_deploy.bundles.bundle import MANIFEST_FILE, MODEL_FILE, REFERENCE_FILE, Bundle

__all__ = ["PENDING_FILE", "announce", "changing"]

PENDING_FILE = ".pending.json"


@contextmanager
def changing(bundle: Bundle) -> Iterator[None]:
    """Hold the lock of ``bundle`` while the block changes it; its manifest is read again first.

    Raises:
        InputError: the manifest cannot be read any more.
        OutputError: the bundle cannot be written.
    """
    with locked(bundle.path):
        bundle.reload()
        _settle(bundle)
        try:
            yield
        finally:
            _settle(bundle)


def announce(bundle: Bundle, files: Iterable[str]) -> None:
    """Record files that will be written before the manifest lists them, or deleted after it no longer does.

    Raises:
        OutputError: the record cannot be written, or files cannot be written or deleted where they are.
    """
    files = list(files)
    for directory in {bundle.file(name).parent for name in files}:
        check_changeable(directory)
    write_json(bundle.path / PENDING_FILE, sorted(files))


def _settle(bundle: Bundle) -> None:
    """Delete the announced files that the manifest does not list, and the workplaces that killed writers left."""
    pending = bundle.path / PENDING_FILE
    for target in (pending, bundle.path / MANIFEST_FILE):
        clean_abandoned(target)
    if not is_readable_file(pending):
        return
    files = read_json(pending, what="List of unfinished changes")
    if not isinstance(files, list):
        raise InputError(f"{pending} is not a list of files: delete it.")
    kept = {MANIFEST_FILE, MODEL_FILE, REFERENCE_FILE, *Bundle.open(bundle.path, check_files=False).files}
    for name in files:
        file = bundle.file(name)
        clean_abandoned(file)
        if name not in kept and file.is_file():
            file.unlink()
    pending.unlink()
