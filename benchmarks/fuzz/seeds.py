"""The valid files that are changed: a tiny base, its adapter, graph, bundle, images and data, made without torch."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from safetensors.numpy import save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import PreTrainedTokenizerFast

from rmlora.adapter import Adapter, LoraModule
from rmlora.checkpoint import Checkpoint
from rmlora.config import RMLoRAConfig
from rmlora.fingerprint import base_fingerprint, weight_digests
from rmlora.package import save_package
from rmlora.storage import write_json
from rmlora_deploy.bundles.bundle import Bundle
from rmlora_deploy.bundles.describe import describe_model
from rmlora_deploy.exporter.export_settings import ExportSettings
from rmlora_deploy.exporter.pipeline import export_bundle

__all__ = ["make_seeds"]

_WORDS, _WIDTH, _LABELS = 60, 8, ("red", "green", "blue")
_LAYER = "bert.encoder.layer.0"
_QUERY, _DENSE = f"{_LAYER}.attention.self.query", f"{_LAYER}.attention.output.dense"
"""The adapted modules."""
_CONFIG: dict[str, Any] = {
    "architectures": ["BertForSequenceClassification"], "model_type": "bert", "vocab_size": _WORDS, "hidden_size": _WIDTH,
    "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "hidden_act": "gelu", "pad_token_id": 1,
    "max_position_embeddings": 32, "type_vocab_size": 2, "layer_norm_eps": 1e-12, "hidden_dropout_prob": 0.1,
    "attention_probs_dropout_prob": 0.1, "initializer_range": 0.02, "tie_word_embeddings": True, "dtype": "float32",
    "id2label": {str(number): label for number, label in enumerate(_LABELS)},
    "label2id": {label: number for number, label in enumerate(_LABELS)}, "problem_type": None, "use_cache": True,
}  # fmt: skip
_PEFT: dict[str, Any] = {
    "alora_invocation_tokens": None, "alpha_pattern": {"attention.output.dense": 8}, "arrow_config": None, "auto_mapping": None,
    "base_model_name_or_path": "base", "bias": "none", "corda_config": None, "ensure_weight_tying": False, "eva_config": None,
    "exclude_modules": None, "fan_in_fan_out": False, "inference_mode": True, "init_lora_weights": True, "layer_replication": None,
    "layers_pattern": None, "layers_to_transform": None, "loftq_config": {}, "lora_alpha": 16, "lora_bias": False,
    "lora_dropout": 0.0, "megatron_config": None, "megatron_core": "megatron.core", "modules_to_save": ["classifier"],
    "peft_type": "LORA", "peft_version": "0.17.0", "qalora_group_size": 16, "r": 4, "rank_pattern": {"attention.output.dense": 2},
    "revision": None, "target_modules": ["query", "attention.output.dense"], "target_parameters": None, "task_type": "SEQ_CLS",
    "trainable_token_indices": None, "use_dora": False, "use_qalora": False, "use_rslora": False,
}  # fmt: skip
_PROCESSOR = {
    "image_processor_type": "ViTImageProcessor", "size": {"height": 8, "width": 8}, "do_resize": True, "do_rescale": True,
    "do_normalize": True, "image_mean": [0.5] * 3, "image_std": [0.5] * 3, "resample": 2, "rescale_factor": 0.00392156862745098,
}  # fmt: skip
_YAML = """# Settings of a run.
base: ./no-such-directory
train: data.csv
output: adapter
task: text-classification
epochs: 2
batch-size: 16
learning_rate: 1.0e-3
rank: 8
active-rank: 4
orth-weight: 0.05
target-modules: [query, value]
modules-to-save: []
rank-pattern: [query=4, value=16]
alpha-pattern: ["query=8.5"]
rslora: false
mask-mode: gradient
text-column: text
seed: 1
"""


def make_seeds(directory: Path) -> Path:
    """Write every seed into ``directory`` and return it."""
    rng = np.random.default_rng(0)
    tensors = _base_tensors(rng)
    _write_base(directory / "base", tensors)
    _write_vocabularies(directory / "words", directory / "pieces")
    _write_adapter(directory / "adapter", directory / "base", rng)
    shutil.copytree(directory / "adapter", directory / "second")
    (directory / "graph").mkdir()
    onnx.save(_graph(tensors), directory / "graph" / "model.onnx")
    onnx.save(
        _graph(tensors), directory / "graph" / "external.onnx", save_as_external_data=True, location="model.onnx.data", size_threshold=0
    )  # fmt: skip
    settings = ExportSettings(
        str(directory / "base"), {"one": directory / "adapter"}, directory / "bundle", mode="branches",
        graph=directory / "graph" / "model.onnx", verify=False,
    )  # fmt: skip
    export_bundle(settings)
    reference = directory / "bundle" / "reference.safetensors"
    shutil.copyfile(reference, directory / "bundle" / "adapters" / "one.reference.safetensors")
    (directory / "images").mkdir()
    _write_images(directory / "images")
    (directory / "images" / "preprocessor_config.json").write_text(json.dumps(_PROCESSOR, indent=1))
    (directory / "settings").mkdir()
    (directory / "settings" / "run.yaml").write_text(_YAML)
    _write_data(directory / "data")
    _write_task_data(directory / "tasks")
    _write_others(directory / "others")
    _write_vectors(directory)
    _write_requests(directory / "requests")
    return directory


def _base_tensors(rng: np.random.Generator) -> dict[str, Any]:
    linear = {
        _QUERY: (_WIDTH, _WIDTH),
        f"{_LAYER}.attention.self.key": (_WIDTH, _WIDTH),
        f"{_LAYER}.attention.self.value": (_WIDTH, _WIDTH),
        _DENSE: (_WIDTH, _WIDTH),
        f"{_LAYER}.intermediate.dense": (16, _WIDTH),
        f"{_LAYER}.output.dense": (_WIDTH, 16),
        "bert.pooler.dense": (_WIDTH, _WIDTH),
        "classifier": (3, _WIDTH),
    }
    norms = ("bert.embeddings.LayerNorm", f"{_LAYER}.attention.output.LayerNorm", f"{_LAYER}.output.LayerNorm")
    tables = {"word_embeddings": _WORDS, "position_embeddings": 32, "token_type_embeddings": 2}
    shapes: dict[str, tuple[int, ...]] = {
        f"bert.embeddings.{name}.weight": (rows, _WIDTH) for name, rows in tables.items()
    }
    for module, shape in linear.items():
        shapes |= {f"{module}.weight": shape, f"{module}.bias": shape[:1]}
    for module in norms:
        shapes |= {f"{module}.weight": (_WIDTH,), f"{module}.bias": (_WIDTH,)}
    return {name: rng.normal(0, 0.5, shape).astype(np.float32) for name, shape in shapes.items()}


def _write_base(directory: Path, tensors: dict[str, Any]) -> None:
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(_CONFIG, indent=1))
    names, files = list(tensors), ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
    parts = {files[0]: names[:6], files[1]: names[6:]}
    for file, part in parts.items():
        save_file({name: tensors[name] for name in part}, directory / file, metadata={"format": "pt"})
    weight_map = {name: file for file, part in parts.items() for name in part}
    index = {"metadata": {"total_size": sum(array.nbytes for array in tensors.values())}, "weight_map": weight_map}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index, indent=1))
    words = ["<unk>", "<pad>", "<eos>", *(f"w{number}" for number in range(_WORDS - 3))]
    tokenizer = Tokenizer(WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))  # noqa: S106
    tokenizer.pre_tokenizer = Whitespace()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>")  # noqa: S106
    fast.model_input_names, fast.model_max_length = ["input_ids", "attention_mask"], 32
    fast.save_pretrained(directory)
    modules = [{"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
               {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"}]  # fmt: skip
    (directory / "modules.json").write_text(json.dumps(modules))
    (directory / "1_Pooling").mkdir()
    (directory / "1_Pooling" / "config.json").write_text(
        json.dumps({"word_embedding_dimension": 8, "pooling_mode_mean_tokens": True})
    )
    (directory / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 16, "do_lower_case": False}))


def _write_vocabularies(words: Path, pieces: Path) -> None:
    """Write tokenizers as older tools did, without ``tokenizer.json``: BERT's word pieces and GPT-2's byte pairs."""
    for directory, kind in ((words, "BertTokenizer"), (pieces, "GPT2Tokenizer")):
        directory.mkdir()
        settings = {"tokenizer_class": kind, "model_max_length": 32, "do_lower_case": True}
        (directory / "tokenizer_config.json").write_text(json.dumps(settings))
        (directory / "config.json").write_text(json.dumps({"model_type": "bert" if directory == words else "gpt2"}))
    special = {
        "unk_token": "[UNK]",
        "pad_token": "[PAD]",
        "cls_token": "[CLS]",
        "sep_token": "[SEP]",
        "mask_token": "[MASK]",
    }
    (words / "vocab.txt").write_text("\n".join([*special.values(), *"abcdw12345", "##1", "##n", "unknown"]) + "\n")
    (words / "special_tokens_map.json").write_text(json.dumps(special))
    (words / "added_tokens.json").write_text(json.dumps({"<extra>": 18}))
    tokens = [*"abcdw12345unko", "Ġ", "w1", "un", "unk", "Ġw1", "<|endoftext|>"]
    (pieces / "vocab.json").write_text(
        json.dumps({token: number for number, token in enumerate(dict.fromkeys(tokens))})
    )
    (pieces / "merges.txt").write_text("#version: 0.2\nw 1\nu n\nun k\nĠ w1\n")


def _write_adapter(directory: Path, base: Path, rng: np.random.Generator) -> None:
    sizes = {_QUERY: (4, 8, 8, 4.0), _DENSE: (2, 8, 8, 4.0)}
    modules = {
        path: LoraModule(
            path, "linear", rng.normal(0, 0.5, (rank, fan_in)).astype(np.float32),
            rng.normal(0, 0.5, (fan_out, rank)).astype(np.float32), scale, rank_mask=np.arange(rank) > 0,
        )
        for path, (rank, fan_in, fan_out, scale) in sizes.items()
    }  # fmt: skip
    head = {"classifier.weight": rng.normal(0, 0.5, (3, _WIDTH)), "classifier.bias": rng.normal(0, 0.5, 3)}
    checkpoint = Checkpoint(base)
    metadata = {
        "rmlora": RMLoRAConfig().to_dict(), "task": "text-classification", "labels": list(_LABELS), "base_model": "base",
        "architecture": "BertForSequenceClassification", "base_fingerprint": base_fingerprint(checkpoint, modules),
        "base_weights": weight_digests(checkpoint, modules), "metrics": {"test": {"accuracy": 0.9, "macro_f1": 0.8}},
        "training": {"settings": {"max_length": 32, "epochs": 2.0}, "steps": 10, "seconds": 1.5},
    }  # fmt: skip
    adapter = Adapter(modules, {name: array.astype(np.float32) for name, array in head.items()}, _PEFT, metadata)
    save_package(adapter, directory)


def _graph(tensors: dict[str, Any]) -> onnx.ModelProto:
    """Return the base as an ONNX model: look up words, two linear layers, sum over the words, classifier."""
    linear = [f"{module}.{part}" for module in (_QUERY, _DENSE, "classifier") for part in ("weight", "bias")]
    used = ["bert.embeddings.word_embeddings.weight", *linear]
    turned = {name: tensors[name].T.copy() if name.startswith(_LAYER) else tensors[name] for name in used}
    turned |= {"last": np.array([-1]), "words": np.array([1])}
    nodes = [
        helper.make_node("Gather", ["bert.embeddings.word_embeddings.weight", "input_ids"], ["each"]),
        helper.make_node("MatMul", ["each", f"{_QUERY}.weight"], ["q"]),
        helper.make_node("Add", ["q", f"{_QUERY}.bias"], ["query"]),
        helper.make_node("MatMul", ["query", f"{_DENSE}.weight"], ["d"]),
        helper.make_node("Add", ["d", f"{_DENSE}.bias"], ["dense"]),
        helper.make_node("Cast", ["attention_mask"], ["seen"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["seen", "last"], ["column"]),
        helper.make_node("Mul", ["dense", "column"], ["counted"]),
        helper.make_node("ReduceSum", ["counted", "words"], ["pooled"], keepdims=0),
        helper.make_node("Gemm", ["pooled", "classifier.weight", "classifier.bias"], ["logits"], transB=1),
    ]
    graph = helper.make_graph(
        nodes, "tiny",
        [helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "sequence"]) for name in ("input_ids", "attention_mask")],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 3])],
        [numpy_helper.from_array(array, name) for name, array in turned.items()],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def _write_images(directory: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (12, 10, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    for suffix in ("png", "jpg", "gif", "bmp", "tiff", "webp"):
        image.save(directory / f"image.{suffix}")
    image.convert("P").save(directory / "palette.png", transparency=0)
    image.convert("CMYK").save(directory / "cmyk.tiff", compression="tiff_lzw")
    Image.fromarray(pixels[..., 0].astype(np.uint16) * 100).save(directory / "deep.png")


def _write_data(directory: Path) -> None:
    directory.mkdir()
    rows = [(f'w{number} w{number % 7} "said", w3', _LABELS[number % 3]) for number in range(12)]
    lines = ["text,label", *('"{}",{}'.format(text.replace('"', '""'), label) for text, label in rows)]
    (directory / "data.csv").write_text("\n".join(lines) + "\n")
    (directory / "data.tsv").write_text("\n".join("\t".join(row) for row in [("text", "label"), *rows]) + "\n")
    records = [{"text": text, "label": label} for text, label in rows]
    (directory / "data.json").write_text(json.dumps(records))
    (directory / "data.jsonl").write_text("\n".join(map(json.dumps, records)) + "\n")


def _write_task_data(directory: Path) -> None:
    """Write what other tasks than classification are trained on."""
    directory.mkdir()
    words, tags = ["turn", "the", "desk", "lamp", "on"], ["O", "O", "B-thing", "I-thing", "O"]
    context = "The desk lamp is on, and the fan is off."
    answers = [{"text": "desk lamp", "answer_start": 4}]
    chat = [{"role": "user", "content": "Which lamp?"}, {"role": "assistant", "content": "The desk lamp."}]
    rows: dict[str, list[dict[str, Any]]] = {
        "tagged": [{"tokens": words, "ner_tags": tags}],
        "spans": [{"text": context, "entities": [{"start": 4, "end": 13, "label": "thing"}, [29, 32, "thing"]]}],
        "questions": [{"question": "Which lamp?", "context": context, "answers": {"text": ["desk lamp"], "answer_start": [4]}}],
        "scored": [{"sentence1": f"w{n}", "sentence2": f"w{n % 3} w4", "score": n / 2} for n in range(6)],
        "chats": [{"messages": chat}],
    }  # fmt: skip
    for name, records in rows.items():
        (directory / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in records * 3))
    (directory / "slots.conll").write_text(
        "".join(f"{word}\t{tag}\n" for word, tag in zip(words, tags, strict=True)) + "\n"
    )
    (directory / "triplets.csv").write_text(
        "anchor,positive,negative\n" + "".join(f"w{n},w{n} w1,w9\n" for n in range(6))
    )
    asked = [
        {"id": "1", "question": "Which lamp?", "answers": answers},
        {"id": "2", "question": "Who?", "answers": [], "is_impossible": True, "plausible_answers": answers},
    ]
    squad = {"version": "v2.0", "data": [{"title": "home", "paragraphs": [{"context": context, "qas": asked}]}]}
    (directory / "squad.json").write_text(json.dumps(squad))


def _write_others(directory: Path) -> None:
    """Write the small files that commands read: texts, expected answers, the state of replicas."""
    directory.mkdir()
    (directory / "texts.txt").write_text("w1 w2 w3\nw4 w5\n\nw6\n")
    answers = {"texts": ["w1", "w2"], "answers": {"one": [[0.1, 0.2, 0.7], [0.3, 0.3, 0.4]]}, "tolerance": 1e-4}
    (directory / "answers.json").write_text(json.dumps(answers))
    loaded = {
        "key": {"name": "one", "generation": 3}, "bundle": "bundle", "graph_digest": "0" * 64, "labels": list(_LABELS),
        "max_length": 32, "rank": 4, "nbytes": 1000, "created": 1,
    }  # fmt: skip
    (directory / "state.json").write_text(json.dumps({"version": 2, "loaded": [loaded], "removed": {"two": "1" * 64}}))
    (directory / "run").mkdir()
    (directory / "run" / "settings.json").write_text(
        json.dumps({"base": "base", "epochs": 2.0, "rmlora": RMLoRAConfig().to_dict(), "data": {}})
    )


def _write_vectors(directory: Path) -> None:
    """Write a merged bundle whose scores are taken as vectors, so that a server has something to embed with."""
    bundle, vectors = Bundle.open(directory / "bundle"), directory / "vectors"
    vectors.mkdir()
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(bundle.path / name, vectors / name)
    shutil.copyfile(directory / "graph" / "model.onnx", vectors / "model.onnx")
    changes = {
        "mode": "merged",
        "task": "feature-extraction",
        "labels": [],
        "adapters": {},
        "files": {},
        "model": describe_model(vectors),
    }
    write_json(vectors / "manifest.json", bundle.manifest.model_copy(update=changes).to_dict())


def _write_requests(directory: Path) -> None:
    """Write a body for every route; the file is named after the route."""
    directory.mkdir()
    tensors = [
        {"name": name, "shape": [1, 3], "datatype": "INT64", "data": [[4, 5, 6]]}
        for name in ("input_ids", "attention_mask")
    ]
    bodies = {
        "classify": {"model": "one", "input": ["w1 w2", "w3"]},
        "v1+embeddings": {"model": "vectors", "input": ["w1 w2", "w3"], "encoding_format": "float", "dimensions": None},
        "v1+load_lora_adapter": {"lora_name": "loaded", "lora_path": "adapter"},
        "v1+unload_lora_adapter": {"lora_name": "loaded"},
        "v2+models+one+infer": {
            "id": "1", "inputs": tensors, "outputs": [{"name": "logits"}], "parameters": {"adapters": ["one"]},
        },
    }  # fmt: skip
    for name, body in bodies.items():
        (directory / f"{name}.json").write_text(json.dumps(body))
