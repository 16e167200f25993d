"""int4 of language models, rounded by the user's texts."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from rmlora.tasks import TASKS
from rmlora.torch_models import load_task_model
from rmlora_converters.graph.locate.block_quantized import BlockQuantized, find_in_blocks
from rmlora_deploy import export, load
from rmlora_deploy.bundles.bundle import Bundle
from rmlora_deploy.exporter.decoder.calibrated_blocks import round_by_texts
from rmlora_deploy.exporter.decoder.decoder_routes import choose_route
from rmlora_deploy.inference import Generator
from tests.helpers.cli import fails, run
from tests.helpers.decoders import decoder_adapter, decoder_base

TASK = TASKS["text-generation"]


def write_texts(file: Path, count: int = 60) -> Path:
    """Write questions with answers, of about a hundred tokens each."""
    rng = np.random.default_rng(0)
    words = ["river", "bridge", "harbor", "spring", "market", "oranges", "window", "ships"]
    rows = [
        {"prompt": " ".join(rng.choice(words, 8)), "completion": " ".join(rng.choice(words, 6))} for _ in range(count)
    ]
    file.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return file


@pytest.mark.parametrize("kind", ["llama", "gpt2"])  # by the builder, and traced with Conv1D
def test_every_product_in_4_bits_comes_out_closer(kind: str, tmp_path: Path) -> None:
    import torch

    base = decoder_base(kind, tmp_path / "base")
    config = json.loads((base / "config.json").read_text())
    route = choose_route(config, base, "int4", None)
    route.make_graph(base, tmp_path / "built", task=TASK, on_progress=lambda line: None)
    model = ir.load(tmp_path / "built" / "model.onnx")
    texts = np.random.default_rng(0).integers(5, 200, (20, 220)).tolist()
    torch_model = load_task_model(base, TASK, ()).model.eval()
    modules = {
        path: module.weight.detach().numpy().T if kind == "gpt2" else module.weight.detach().numpy()
        for path, module in torch_model.named_modules()
        if type(module).__name__ in ("Linear", "Conv1D") and "lm_head" not in path
    }
    seen: dict[str, list[np.ndarray]] = {path: [] for path in modules}
    for path, module in torch_model.named_modules():
        if path in modules:
            module.register_forward_pre_hook(
                lambda _, inputs, path=path: seen[path].append(inputs[0].reshape(-1, inputs[0].shape[-1]).numpy())
            )
    with torch.inference_mode():
        for text in texts:
            torch_model(input_ids=torch.tensor([text]))

    def errors() -> dict[str, float]:
        found = {}
        for path, weight in modules.items():
            ((name, start),) = find_in_blocks(f"{path}.weight", weight, model.graph.initializers)
            stored = BlockQuantized.of(model.graph.initializers[name])
            assert stored is not None
            if stored.bits == 4:
                restored = stored.restored(slice(start, start + len(weight)))
                found[path] = float(np.linalg.norm(np.concatenate(seen[path]) @ (restored - weight).T))
        return found

    before = errors()
    rounded, weights = round_by_texts(model, base, texts, task=TASK, on_progress=lambda line: None)
    assert rounded == weights > 0
    after = errors()
    assert all(after[path] < before[path] for path in before)


def test_a_bundle_says_what_it_was_rounded_by_and_answers(tmp_path: Path) -> None:
    base = decoder_base("llama", tmp_path / "base")
    adapter = decoder_adapter(base, tmp_path / "a", seed=1)
    texts = write_texts(tmp_path / "home.jsonl")
    words = ("export", base, "-a", adapter, "--precision", "int4", "--calibration", texts)
    done = run(*words, "-o", tmp_path / "rounded")
    assert done.code == 0, done.stderr
    decoder = Bundle.open(tmp_path / "rounded").manifest.decoder
    assert decoder is not None and decoder.recipe is not None
    assert " weights in 4 bits rounded by " in decoder.recipe
    assert decoder.recipe.startswith("k_quant_mixed, ") and decoder.recipe.endswith(" tokens of home.jsonl (GPTQ)")
    export(base, adapter, tmp_path / "plain", precision="int4")
    weights = [dict(ir.load(tmp_path / name / "model.onnx").graph.initializers) for name in ("rounded", "plain")]
    different = [
        name for name, value in weights[0].items()
        if not np.array_equal(value.const_value.numpy(), weights[1][name].const_value.numpy())  # type: ignore[union-attr]
    ]  # fmt: skip
    assert different and not any("scale" in name or "zero" in name for name in different)
    generator = load(tmp_path / "rounded")
    assert isinstance(generator, Generator) and generator.generate(["river"], max_new_tokens=3)[0].tokens


def test_what_cannot_be_rounded_by_texts_is_refused_before_the_build(tmp_path: Path) -> None:
    base = decoder_base("llama", tmp_path / "base")
    adapter = decoder_adapter(base, tmp_path / "a", seed=1)
    few = write_texts(tmp_path / "few.jsonl", 3)
    words = ("export", base, "-a", adapter, "-o", tmp_path / "no", "--calibration")
    fails(2, "goes with --precision int4 and --mode merged", *words, few, "--precision", "int8")
    fails(2, "goes with --precision int4 and --mode merged", *words, few, "--precision", "int4", "--mode", "branches")
    fails(3, "tokens to round by, and at least 4096 are needed: give more texts", *words, few, "--precision", "int4")
    fails(3, "none.jsonl", *words, tmp_path / "none.jsonl", "--precision", "int4")
    assert not (tmp_path / "no").exists()
