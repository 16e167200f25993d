"""Running a bundle in onnxruntime_genai."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import onnxruntime_genai as og

from rmlora_deploy.inference import Generator

__all__ = ["genai_texts_are_ours"]


def genai_texts_are_ours(ours: Generator, names: Sequence[str | None], *, new_tokens: int = 16) -> None:
    """Assert that onnxruntime_genai continues a prompt as ``ours`` does, with each adapter another way."""
    directory, prompt = Path(ours.bundle.path), "The river rises in"
    model = og.Model(str(directory))
    adapters = og.Adapters(model)
    for name in names:
        if name is not None:
            adapters.load(str(directory / "adapters" / f"{name}.onnx_adapter"), name)
    ids = ours.codec.encode(prompt, raw=True)
    assert list(og.Tokenizer(model).encode(prompt)) == ids
    texts = set()
    for name in names:
        parameters = og.GeneratorParams(model)
        parameters.set_search_options(max_length=len(ids) + new_tokens, do_sample=False)
        generator = og.Generator(model, parameters)
        if name is not None:
            generator.set_active_adapter(adapters, name)
        generator.append_tokens(ids)
        found: list[int] = []
        while not generator.is_done():
            generator.generate_next_token()
            found.append(int(generator.get_next_tokens()[0]))
        answer = ours.generate([prompt], name, max_new_tokens=new_tokens, raw=True)[0]
        assert [token for token in found if token not in ours.session.layout.end_tokens] == list(answer.tokens)
        texts.add(answer.tokens)
    assert len(texts) == len(names)
