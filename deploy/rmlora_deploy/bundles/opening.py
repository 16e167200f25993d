"""Opening a bundle that others may be changing: what is read from its files is what its manifest describes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rmlora.errors import InputError
from rmlora.file_identity import Status, path_status
from rmlora_deploy.bundles.bundle import MANIFEST_FILE, Bundle

__all__ = ["opening"]


@contextmanager
def opening(path: Path) -> Iterator[Bundle]:
    """Yield the bundle at ``path``, compared with its manifest; the block reads its graph and its processor.

    Raises:
        InputError: it is not a bundle, is incomplete or altered, or was changed while the block ran.
    """
    listed = _status(path / MANIFEST_FILE)
    bundle = Bundle.open(path, check_files=False)
    names = [*bundle.manifest.model.files, *bundle.manifest.files]
    before = [listed, *(_status(path / name) for name in names)]
    bundle.check_files()
    _ = bundle.base_config  # read now and kept: later the file may be another one, with other labels
    yield bundle
    if [_status(path / name) for name in (MANIFEST_FILE, *names)] != before:
        raise InputError(f"{path} was changed while it was opened: open it again once nobody writes to it.")


def _status(path: Path) -> Status | None:
    try:
        return path_status(path)
    except OSError:
        return None
