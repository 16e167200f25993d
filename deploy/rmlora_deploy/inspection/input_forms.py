"""In words: whether a bundle's adapters read single texts or pairs."""

from __future__ import annotations

from rmlora.text_pair import InputForm
from rmlora_deploy.bundles.bundle import Bundle

__all__ = ["FORMS", "describe_forms"]

FORMS: dict[InputForm, str] = {"text": "single texts", "pair": "pairs of texts"}


def describe_forms(bundle: Bundle) -> str | None:
    """Return what the adapters were trained on; None if none of them records it."""
    if bundle.mode == "merged":
        form = bundle.input_form()
        return FORMS[form] if form is not None else None
    names = {form: [name for name in bundle.adapters if bundle.input_form(name) == form] for form in FORMS}
    said = {form: found for form, found in names.items() if found}
    if len(said) == 1 and len(next(iter(said.values()))) == len(bundle.adapters):
        return FORMS[next(iter(said))]
    return "; ".join(f"{FORMS[form]} with {', '.join(found)}" for form, found in said.items()) or None
