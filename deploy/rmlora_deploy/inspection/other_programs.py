"""How other programs use a bundle: over HTTP, and with onnxruntime alone."""

from __future__ import annotations

import json
from typing import Any

from rmlora_deploy.bundles.bundle import Bundle

__all__ = ["other_programs"]

_TEXT, _SECOND = "A text", "Another text"


def other_programs(bundle: Bundle, name: str, adapter: str | None) -> list[str]:
    """Return Markdown with a request to a server, and a program that needs neither this package nor torch; for texts.

    Args:
        bundle: opened.
        name: of its directory, fit for code.
        adapter: that is used; None for a merged bundle, or for the base.
    """
    if bundle.task.inputs.modality != "text" or bundle.task.outputs.kind == "text":
        return []
    pair = bundle.input_form(adapter) == "pair"
    body = json.dumps({"model": adapter or name, **_inputs(bundle.task.outputs.kind, pair)})
    lines = [
        "Over HTTP:", "", "```console", f"$ rmlora-deploy serve {name}",
        f"$ curl http://127.0.0.1:8000{bundle.task.outputs.route} -H 'content-type: application/json' -d '{body}'", "```", "",
    ]  # fmt: skip
    if (bundle.path / "tokenizer.json").is_file() and (adapter is not None or bundle.mode == "merged"):
        lines += [
            "With onnxruntime alone, which gives the outputs of the graph:",
            "",
            *_program(name, adapter, pair),
            "",
        ]
    return lines


def _inputs(kind: str, pair: bool) -> dict[str, Any]:
    """Return what a request asks, beside the name of the model."""
    if kind == "spans":
        return {"inputs": {"question": "A question", "context": "Its context"}}
    if kind == "tokens":
        return {"inputs": _TEXT}
    return {"input": [[_TEXT, _SECOND]] if pair else _TEXT}


def _program(name: str, adapter: str | None, pair: bool) -> list[str]:
    texts = f'"{_TEXT}", "{_SECOND}"' if pair else f'"{_TEXT}"'
    chosen = [
        "adapter = onnxruntime.LoraAdapter()", f'adapter.Load("{name}/adapters/{adapter}.onnx_adapter")',
        "options.add_active_adapter(adapter)",
    ]  # fmt: skip
    return [
        "```python", "import numpy", "import onnxruntime", "from tokenizers import Tokenizer", "",
        f'session = onnxruntime.InferenceSession("{name}/model.onnx")', "options = onnxruntime.RunOptions()",
        *(chosen if adapter is not None else []),
        f'text = Tokenizer.from_file("{name}/tokenizer.json").encode({texts})',
        'arrays = {"input_ids": text.ids, "attention_mask": text.attention_mask, "token_type_ids": text.type_ids}',
        "taken = {item.name for item in session.get_inputs()}",
        "inputs = {key: numpy.array([value]) for key, value in arrays.items() if key in taken}",
        "print(session.run(None, inputs, options)[0])", "```",
    ]  # fmt: skip
