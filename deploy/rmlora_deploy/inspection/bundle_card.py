"""The card of a bundle, ``README.md``: written with it, and again when its adapters or its verification change."""

from __future__ import annotations

from rmlora.package import CARD_FILE
from rmlora.storage import atomic_file
from rmlora_deploy.bundles.bundle import Bundle
from rmlora_deploy.inspection.bundle_report import describe_bundle
from rmlora_deploy.inspection.model_card import bundle_header, model_card

__all__ = ["write_card"]

_MARK = "<!-- Written by rmlora-deploy, and again whenever the bundle changes; without this line the file is left alone. -->"


def write_card(bundle: Bundle, *, name: str | None = None) -> None:
    """Write the card of ``bundle``, unless there is one that somebody else wrote.

    Args:
        bundle: with its manifest saved.
        name: of the bundle; None for that of its directory.

    Raises:
        OutputError: the file cannot be written.
    """
    path = bundle.path / CARD_FILE
    if path.is_symlink() or (path.exists() and _MARK not in path.read_text(encoding="utf-8", errors="replace")):
        return
    sizes = {file: size for file, size in describe_bundle(bundle)["files"].items() if file != CARD_FILE}
    with atomic_file(path) as temporary:
        page = model_card(bundle, {}, sizes, name=name)
        temporary.write_text(f"{bundle_header(bundle)}{_MARK}\n\n{page}", encoding="utf-8")
