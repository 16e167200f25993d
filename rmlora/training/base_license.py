"""The license that a base's model card states, for the card of what is trained on it."""

from __future__ import annotations

from pathlib import Path

from rmlora.errors import InputError
from rmlora.json_files import read_text
from rmlora.markdown_text import one_line
from rmlora.package import CARD_FILE
from rmlora.readable import is_readable_file

__all__ = ["base_license"]

_KEYS = ("license", "license_name", "license_link")
"""Keys of the header that the hub reads; the last two go with the license ``other``."""
_MOST = 200
"""Characters of a value."""


def base_license(base: Path) -> dict[str, str]:
    """Return what the header of the card in ``base`` says of the license; empty if it says nothing, or cannot be read.

    Args:
        base: directory of the base.
    """
    import yaml

    if not is_readable_file(base / CARD_FILE):
        return {}
    try:
        text = read_text(base / CARD_FILE, what="Model card").replace("\r\n", "\n")
        start, _, rest = text.partition("---\n")
        header = yaml.safe_load(rest.partition("\n---")[0]) if not start.strip() else None
    except (InputError, yaml.YAMLError, ValueError, RecursionError):
        return {}
    found = header if isinstance(header, dict) else {}
    stated = {key: one_line(found[key])[:_MOST] for key in _KEYS if isinstance(found.get(key), str)}
    if not stated.get("license_link", "").startswith(("https://", "http://")):
        stated.pop("license_link", None)  # of a file beside the base
    return stated if stated.get("license") else {}
