"""Tiny bases of many architectures with two adapters each, exported with branches and compared with PEFT row by row."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from peft import PeftModel
from tokenizers.pre_tokenizers import ByteLevel

from rmlora.inputs import Arrays
from rmlora.package import write_metadata
from rmlora.pooling import Pooling
from rmlora.tasks import TASKS
from rmlora_deploy.bundles.bundle import REFERENCE_FILE, Bundle
from rmlora_deploy.bundles.reference import load_reference
from rmlora_deploy.exporter.export_settings import ExportSettings
from rmlora_deploy.exporter.pipeline import export_bundle
from rmlora_deploy.runtime.graph_logits import graph_logits
from rmlora_deploy.verification.torch_outputs import torch_output
from tests.helpers.bundles import PROCESSOR
from tests.helpers.cli import tokenizer
from tests.helpers.merge_cases import IMAGE, TINY, VOCABULARY, save_adapter_for, save_noisy

T: Any = transformers  # the signatures of configurations do not show the arguments that all of them take
ROW_COUNTS = (1, 2, 3, 5)
ADAPTERS = ("one", "two")


@dataclass(frozen=True)
class BranchCase:
    """A base and the settings of its adapters."""

    name: str
    build: Callable[[], Any]
    """Returns the model to save as the base."""
    lora: dict[str, Any] = field(default_factory=lambda: {"target_modules": "all-linear"})
    """Arguments of PEFT's ``LoraConfig``."""
    task: str = "text-classification"
    labels: Sequence[int] = (3, 4)
    """Labels of each adapter; the base has three, if it has a head."""
    model_class: Any = None
    """Class that PyTorch loads; None takes the Auto class of the task."""
    tokenizer: Callable[[], Any] | None = None
    """Makes the tokenizer; None takes one with a token per word."""
    base_labels: int = 3
    """Labels of the base's own head, if it has one."""
    pooling: Pooling | None = None
    """How vectors are pooled by default; None for the usual way of the task."""
    base_error: float = 0.0
    """How far the graph without an adapter may be from the base's own, relative to the largest output."""


def make_sources(case: BranchCase, directory: Path, *, seed: int = 0) -> tuple[Path, dict[str, Path]]:
    """Save the base of ``case`` with its processor, and its adapters; return their directories."""
    torch.manual_seed(seed)
    base = save_noisy(case.build(), directory / "base")
    if TASKS[case.task].inputs.modality == "image":
        (base / "preprocessor_config.json").write_text(json.dumps({**PROCESSOR, "size": {"height": 32, "width": 32}}))
    else:
        (case.tokenizer or tokenizer)().save_pretrained(base)
    task, adapters = TASKS[case.task], {}
    for number, (name, labels) in enumerate(zip(ADAPTERS, case.labels, strict=True)):
        model = load(case, base, labels)
        torch.manual_seed(seed + 1 + number)
        lora = {"task_type": task.peft_task_type, "r": 4 - number, **case.lora}
        adapters[name] = save_adapter_for(model, directory / name, **lora)
        recorded = {"labels": [f"L{index}" for index in range(labels)]} if task.outputs.has_labels else {}
        write_metadata(adapters[name], {"task": case.task, **recorded})
    return base, adapters


def load(case: BranchCase, base: Path, labels: int) -> Any:
    """Return the model of the task, with a head of ``labels`` outputs if it has one; a new head is always the same."""
    torch.manual_seed(0)
    head = {"num_labels": labels, "ignore_mismatched_sizes": True} if TASKS[case.task].outputs.has_labels else {}
    model = (case.model_class or getattr(T, TASKS[case.task].auto_class)).from_pretrained(base, **head)
    TASKS[case.task].inputs.prepare_model(model, base)
    return model.eval()


def export_case(case: BranchCase, directory: Path, **settings: Any) -> tuple[Bundle, Path, dict[str, Path]]:
    """Export ``case`` with branches, without comparing with PyTorch; return the bundle, the base and the adapters."""
    base, adapters = make_sources(case, directory)
    options: dict[str, Any] = {"mode": "branches", "verify": False, **settings}
    bundle = export_bundle(ExportSettings(str(base), adapters, directory / "bundle", **options))
    return bundle, base, adapters


def base_error(bundle: Bundle) -> float:
    """Return the largest difference, relative to the largest output, from the graph before branches were inserted."""
    batches, plain = load_reference(bundle.path / REFERENCE_FILE)
    outputs = graph_logits(bundle.session())
    kind = bundle.task.outputs
    return max(
        float(np.abs(kind.padding_zeroed(outputs(batch), batch) - want).max() / np.abs(want).max())
        for batch, want in zip(batches, plain, strict=True)
    )


def worst_row(case: BranchCase, bundle: Bundle, base: Path, adapters: dict[str, Path], *, with_base: bool) -> float:
    """Return the largest error of a row of mixed batches of several sizes, relative to PEFT's largest output for it.

    Args:
        case: of the bundle.
        bundle: to run.
        base: PyTorch's base.
        adapters: PyTorch's adapters.
        with_base: rows without an adapter are among the others, and are compared with the base.
    """
    everyone: dict[str | None, Any] = {
        name: PeftModel.from_pretrained(load(case, base, labels), str(adapters[name])).eval()
        for name, labels in zip(ADAPTERS, case.labels, strict=True)
    }
    if with_base:
        everyone[None] = load(case, base, case.base_labels)
    session, worst = bundle.adapter_session(), 0.0
    for rows in ROW_COUNTS:
        inputs = bundle.preprocessor()(TASKS[case.task].inputs.sample(rows))
        names = list(everyone)
        for chosen in [[name] * rows for name in names] + [[names[(row + 1) % len(names)] for row in range(rows)]]:
            got = session.run(inputs, chosen)
            for row, name in enumerate(chosen):
                want = expected(case, everyone[name], inputs, bundle.pooling)[row]
                one = {key: array[row : row + 1] for key, array in inputs.items()}
                given = TASKS[case.task].outputs.padding_zeroed(got[row][None], one)[0]
                assert given.shape == want.shape, (rows, chosen, given.shape, want.shape)
                worst = max(worst, float(np.abs(given - want).max() / np.abs(want).max()))
    return worst


def expected(case: BranchCase, model: Any, inputs: Arrays, pooling: Pooling | None = None) -> np.ndarray:
    """Return PyTorch's output; vectors are pooled in the task's usual way unless ``pooling`` is given."""
    outputs = TASKS[case.task].outputs
    usual = case.pooling or (Pooling(outputs.pooling_modes[0]) if outputs.pools else None)
    return torch_output(model, inputs, outputs, pooling or usual)


def _bytes() -> Any:
    """Return a tokenizer of one token per byte, for a model type that transformers gives no other kind."""
    letters = sorted(ByteLevel.alphabet())
    entries = {word: number for number, word in enumerate(["<unk>", "<pad>", "<|endoftext|>", *letters])}
    made = T.Qwen2Tokenizer(vocab=entries, merges=[], unk_token="<unk>", pad_token="<pad>")
    made.model_max_length = 32
    return made


def _causal(name: str, model: str, config: Any, targets: Sequence[str], **lora: Any) -> BranchCase:
    """Return a case of a classifier whose base is a language model, which has no such head."""
    return BranchCase(name, lambda: getattr(T, model)(config), {"target_modules": list(targets), **lora})


_SIZES: dict[str, Any] = {"vocab_size": VOCABULARY, "num_labels": 3}
_ONE: dict[str, Any] = {**TINY, "num_hidden_layers": 1}
"""One layer, for models whose relatives are tried with two: tracing takes most of the time."""
_GQA: dict[str, Any] = {**_ONE, "num_key_value_heads": 1}
_DEBERTA: dict[str, Any] = {
    **_ONE, "pad_token_id": 0, "num_labels": 3, "relative_attention": True, "position_biased_input": False,
    "type_vocab_size": 0,
}  # fmt: skip
_V3: dict[str, Any] = {
    **_DEBERTA, "pos_att_type": ["p2c", "c2p"], "share_att_key": True, "norm_rel_ebd": "layer_norm", "position_buckets": 16
}  # fmt: skip


def _seq(name: str) -> Callable[[Any], Callable[[], Any]]:
    return lambda config: lambda: getattr(T, f"{name}ForSequenceClassification")(config)


TEXTS = [
    BranchCase("bert", _seq("Bert")(T.BertConfig(**TINY, num_labels=3))),
    BranchCase("roberta", _seq("Roberta")(T.RobertaConfig(**_ONE, num_labels=3))),
    BranchCase("distilbert", _seq("DistilBert")(T.DistilBertConfig(**_SIZES, dim=32, hidden_dim=48, n_layers=1, n_heads=2, pad_token_id=1)), {"target_modules": ["q_lin", "v_lin", "lin1"]}),
    BranchCase("albert", _seq("Albert")(T.AlbertConfig(**TINY, embedding_size=16, num_labels=3))),
    BranchCase("electra", _seq("Electra")(T.ElectraConfig(**_ONE, embedding_size=16, num_labels=3))),
    BranchCase("mpnet", _seq("MPNet")(T.MPNetConfig(**_ONE, num_labels=3))),
    BranchCase("deberta-v3", _seq("DebertaV2")(T.DebertaV2Config(**{**_V3, "num_hidden_layers": 2}))),
    BranchCase("deberta-v2", _seq("DebertaV2")(T.DebertaV2Config(**_DEBERTA, pos_att_type=["c2p", "p2c"], share_att_key=False))),
    BranchCase("deberta-v1", _seq("Deberta")(T.DebertaConfig(**_DEBERTA, pos_att_type=["c2p", "p2c"], max_relative_positions=16))),
    BranchCase("modernbert", _seq("ModernBert")(T.ModernBertConfig(**_ONE, num_labels=3))),
    BranchCase("xlnet", _seq("XLNet")(T.XLNetConfig(**_SIZES, d_model=32, n_layer=1, n_head=2, d_inner=48, pad_token_id=1)), {"target_modules": ["layer_1", "layer_2"]}, labels=(3, 3)),
    BranchCase("xlnet-headless", lambda: T.XLNetModel(T.XLNetConfig(vocab_size=VOCABULARY, d_model=32, n_layer=1, n_head=2, d_inner=48, pad_token_id=1)), {"target_modules": ["layer_1"], "modules_to_save": ["sequence_summary", "logits_proj"]}),
    BranchCase("camembert", _seq("Camembert")(T.CamembertConfig(**_ONE, num_labels=3))),
    BranchCase("xlm-roberta", _seq("XLMRoberta")(T.XLMRobertaConfig(**_ONE, num_labels=3))),
    BranchCase("convbert", _seq("ConvBert")(T.ConvBertConfig(**_ONE, num_labels=3, embedding_size=32))),
    BranchCase("mobilebert", _seq("MobileBert")(T.MobileBertConfig(**{**_ONE, "num_attention_heads": 2}, embedding_size=32, intra_bottleneck_size=16, true_hidden_size=16, num_labels=3))),
    BranchCase("squeezebert", _seq("SqueezeBert")(T.SqueezeBertConfig(**_ONE, embedding_size=32, num_labels=3, q_groups=1, k_groups=1, v_groups=1, post_attention_groups=1, intermediate_groups=1, output_groups=1))),
    BranchCase("bigbird", _seq("BigBird")(T.BigBirdConfig(**_ONE, num_labels=3, attention_type="original_full"))),
    BranchCase("nystromformer", _seq("Nystromformer")(T.NystromformerConfig(**_ONE, num_labels=3, segment_means_seq_len=9, num_landmarks=9))),
    BranchCase("esm", _seq("Esm")(T.EsmConfig(**_ONE, num_labels=3, position_embedding_type="rotary", mask_token_id=4))),
    BranchCase("rembert", _seq("RemBert")(T.RemBertConfig(**_ONE, input_embedding_size=16, num_labels=3))),
    _causal("gpt2-causal", "GPT2LMHeadModel", T.GPT2Config(vocab_size=VOCABULARY, n_embd=32, n_layer=1, n_head=2, pad_token_id=1), ["c_attn", "c_fc"], fan_in_fan_out=True),
    _causal("llama-causal", "LlamaForCausalLM", T.LlamaConfig(**TINY, num_key_value_heads=1), ["q_proj", "v_proj"]),
    _causal("mistral-causal", "MistralForCausalLM", T.MistralConfig(**_GQA), ["q_proj", "v_proj"]),
    BranchCase("qwen2-causal", lambda: T.Qwen2ForCausalLM(T.Qwen2Config(**{**_GQA, "vocab_size": 270})), {"target_modules": ["q_proj", "v_proj", "down_proj"]}, tokenizer=_bytes),
    _causal("gemma2-causal", "Gemma2ForCausalLM", T.Gemma2Config(**_GQA, head_dim=16), ["q_proj", "o_proj"]),
    _causal("phi-causal", "PhiForCausalLM", T.PhiConfig(**_ONE), ["q_proj", "v_proj", "fc1"]),
    BranchCase("t5-encoder", lambda: T.T5EncoderModel(T.T5Config(vocab_size=VOCABULARY, d_model=32, d_kv=16, d_ff=48, num_layers=1, num_heads=2)), {"target_modules": ["q", "v", "wo"]}, "feature-extraction", model_class=T.T5EncoderModel),
    BranchCase("bert-vectors", lambda: T.BertModel(T.BertConfig(**TINY)), task="feature-extraction"),
    BranchCase("deberta-v3-vectors", lambda: T.DebertaV2Model(T.DebertaV2Config(**_V3)), task="feature-extraction"),
]  # fmt: skip

_TOKENS = "token-classification"
TAGGERS = [
    BranchCase("bert-tokens", lambda: T.BertForTokenClassification(T.BertConfig(**_ONE, num_labels=3)), {"target_modules": ["query", "value", "dense"]}, task=_TOKENS),
    BranchCase("bert-tokens-headless", lambda: T.BertModel(T.BertConfig(**_ONE), add_pooling_layer=False), {"target_modules": ["query", "dense"]}, task=_TOKENS),
    BranchCase("deberta-v3-tokens", lambda: T.DebertaV2ForTokenClassification(T.DebertaV2Config(**{**_V3, "num_hidden_layers": 2})), {"target_modules": ["query_proj", "key_proj", "value_proj", "dense"]}, task=_TOKENS),
    BranchCase("modernbert-tokens", lambda: T.ModernBertForTokenClassification(T.ModernBertConfig(**_ONE, num_labels=3)), {"target_modules": ["Wqkv", "Wo", "Wi"]}, task=_TOKENS),
    BranchCase("xlnet-tokens", lambda: T.XLNetForTokenClassification(T.XLNetConfig(**_SIZES, d_model=32, n_layer=1, n_head=2, d_inner=48, pad_token_id=1)), {"target_modules": ["layer_1", "layer_2"]}, task=_TOKENS),
    BranchCase("llama-tokens", lambda: T.LlamaForTokenClassification(T.LlamaConfig(**TINY, num_key_value_heads=1, num_labels=3)), {"target_modules": ["q_proj", "v_proj"]}, task=_TOKENS),
]  # fmt: skip

_QUESTIONS: dict[str, Any] = {"task": "question-answering", "labels": (2, 2), "base_labels": 2}
ANSWERERS = [
    BranchCase("bert-answers", lambda: T.BertForQuestionAnswering(T.BertConfig(**_ONE)), {"target_modules": ["query", "dense"]}, **_QUESTIONS),
    BranchCase("roberta-answers-headless", lambda: T.RobertaModel(T.RobertaConfig(**_ONE), add_pooling_layer=False), {"target_modules": ["query", "dense"]}, **_QUESTIONS),
    BranchCase("deberta-v3-answers", lambda: T.DebertaV2ForQuestionAnswering(T.DebertaV2Config(**{**_V3, "num_labels": 2})), {"target_modules": ["query_proj", "key_proj", "value_proj"]}, **_QUESTIONS),
    BranchCase("distilbert-answers", lambda: T.DistilBertForQuestionAnswering(T.DistilBertConfig(**{**_SIZES, "num_labels": 2}, dim=32, hidden_dim=48, n_layers=1, n_heads=2, pad_token_id=1)), {"target_modules": ["q_lin", "v_lin"]}, **_QUESTIONS),
    BranchCase("electra-answers", lambda: T.ElectraForQuestionAnswering(T.ElectraConfig(**_ONE, embedding_size=16)), {"target_modules": ["query", "dense"]}, **_QUESTIONS),
    BranchCase("modernbert-answers", lambda: T.ModernBertForQuestionAnswering(T.ModernBertConfig(**_ONE)), {"target_modules": ["Wqkv", "Wo"]}, **_QUESTIONS),
    BranchCase("xlnet-answers", lambda: T.XLNetForQuestionAnsweringSimple(T.XLNetConfig(**{**_SIZES, "num_labels": 2}, d_model=32, n_layer=1, n_head=2, d_inner=48, pad_token_id=1)), {"target_modules": ["layer_1", "layer_2"]}, **_QUESTIONS),
    BranchCase("llama-answers", lambda: T.LlamaForQuestionAnswering(T.LlamaConfig(**TINY, num_key_value_heads=1)), {"target_modules": ["q_proj", "v_proj"]}, **_QUESTIONS),
]  # fmt: skip

_IMAGE: dict[str, Any] = {**IMAGE, "num_hidden_layers": 1}
_SAVED: dict[str, Any] = {"target_modules": "all-linear", "modules_to_save": ["classifier"]}
IMAGES = [
    BranchCase("vit", lambda: T.ViTForImageClassification(T.ViTConfig(**IMAGE, num_labels=3)), _SAVED, "image-classification"),
    BranchCase("beit", lambda: T.BeitForImageClassification(T.BeitConfig(**_IMAGE, num_labels=3, use_relative_position_bias=True)), _SAVED, "image-classification"),
    BranchCase("swin", lambda: T.SwinForImageClassification(T.SwinConfig(image_size=32, patch_size=4, embed_dim=16, depths=[1, 2], num_heads=[2, 2], window_size=4, num_labels=3)), _SAVED, "image-classification"),
    BranchCase("swinv2", lambda: T.Swinv2ForImageClassification(T.Swinv2Config(image_size=32, patch_size=4, embed_dim=16, depths=[1, 2], num_heads=[2, 2], window_size=4, num_labels=3)), _SAVED, "image-classification", base_error=2e-6),
    BranchCase("dinov2", lambda: T.Dinov2ForImageClassification(T.Dinov2Config(**_IMAGE, num_labels=3)), _SAVED, "image-classification"),
    BranchCase("deit", lambda: T.DeiTForImageClassification(T.DeiTConfig(**_IMAGE, num_labels=3)), _SAVED, "image-classification"),
    BranchCase("convnext", lambda: T.ConvNextForImageClassification(T.ConvNextConfig(hidden_sizes=[8, 16], depths=[1, 1], num_stages=2, patch_size=2, image_size=32, num_labels=3)), _SAVED, "image-classification"),
    BranchCase("segformer", lambda: T.SegformerForImageClassification(T.SegformerConfig(num_encoder_blocks=2, depths=[1, 1], sr_ratios=[2, 1], hidden_sizes=[8, 16], patch_sizes=[3, 3], strides=[2, 2], num_attention_heads=[1, 2], mlp_ratios=[2, 2], num_labels=3)), _SAVED, "image-classification"),
    BranchCase("siglip", lambda: T.SiglipForImageClassification(T.SiglipConfig(vision_config=_IMAGE, text_config=_ONE, num_labels=3)), _SAVED, "image-classification"),
]  # fmt: skip

_IMAGE_VECTORS: dict[str, Any] = {"task": "image-feature-extraction"}
_CLIP: dict[str, Any] = {"vision_config": {**_IMAGE, "projection_dim": 12}, "text_config": {**_ONE, "eos_token_id": 2}}
IMAGE_ENCODERS = [
    BranchCase("vit-vectors", lambda: T.ViTModel(T.ViTConfig(**_IMAGE)), **_IMAGE_VECTORS),
    BranchCase("dinov2-vectors", lambda: T.Dinov2Model(T.Dinov2Config(**_IMAGE)), **_IMAGE_VECTORS),
    BranchCase("dinov3-vectors", lambda: T.DINOv3ViTModel(T.DINOv3ViTConfig(**_IMAGE, num_register_tokens=2)), **_IMAGE_VECTORS),
    BranchCase("swin-vectors", lambda: T.SwinModel(T.SwinConfig(image_size=32, patch_size=4, embed_dim=16, depths=[1, 2], num_heads=[2, 2], window_size=4)), **_IMAGE_VECTORS),
    BranchCase("convnext-vectors", lambda: T.ConvNextModel(T.ConvNextConfig(hidden_sizes=[8, 16], depths=[1, 1], num_stages=2, patch_size=2, image_size=32)), **_IMAGE_VECTORS),
    BranchCase("segformer-vectors", lambda: T.SegformerModel(T.SegformerConfig(num_encoder_blocks=2, depths=[1, 1], sr_ratios=[2, 1], hidden_sizes=[8, 16], patch_sizes=[3, 3], strides=[2, 2], num_attention_heads=[1, 2], mlp_ratios=[2, 2])), pooling=Pooling("mean"), **_IMAGE_VECTORS),
    BranchCase("clip-vectors", lambda: T.CLIPModel(T.CLIPConfig(**_CLIP, projection_dim=12)), model_class=T.CLIPVisionModelWithProjection, **_IMAGE_VECTORS),
    BranchCase("siglip-vectors", lambda: T.SiglipModel(T.SiglipConfig(vision_config=_IMAGE, text_config=_ONE)), model_class=T.SiglipVisionModel, **_IMAGE_VECTORS),
]  # fmt: skip

REFUSED = [
    (BranchCase("bert-without-pooler", lambda: T.BertModel(T.BertConfig(**_ONE), add_pooling_layer=False), {"target_modules": ["query"]}), r"has no weights for 'bert.pooler.dense' and neither has the adapter"),
    (BranchCase("modernbert-half-a-head", lambda: T.ModernBertModel(T.ModernBertConfig(**_ONE)), {"target_modules": ["Wqkv"], "modules_to_save": ["classifier"]}), r"has no weights for 'head.\w+' and neither has the adapter"),
    (BranchCase("xlnet-labels", _seq("XLNet")(T.XLNetConfig(**_SIZES, d_model=32, n_layer=1, n_head=2, d_inner=48, pad_token_id=1)), {"target_modules": ["layer_1"]}), r"records 4 labels, but contains no head, and its base has 3 labels"),
    (BranchCase("modernbert-headless", lambda: T.ModernBertModel(T.ModernBertConfig(**_ONE)), {"target_modules": ["Wqkv", "Wo"], "modules_to_save": ["head", "classifier"]}), r"'head.norm.weight' in full .modules_to_save., and only linear modules can be switched: merge"),
    (BranchCase("funnel", _seq("Funnel")(T.FunnelConfig(**_SIZES, block_sizes=[1, 1], d_model=32, n_head=2, d_head=16, d_inner=48, num_decoder_layers=1, pad_token_id=1))), r"does not run on the model's own inputs.*Expected: 16"),
    (BranchCase("longformer", _seq("Longformer")(T.LongformerConfig(**_ONE, num_labels=3, attention_window=4))), r"torch.onnx cannot export LongformerForSequenceClassification: its steps depend on the values of its inputs, not only on their sizes. Give a graph"),
]  # fmt: skip
"""Cases that cannot be exported, and the reason."""

MATRIX = [
    case for case in [*TEXTS, *IMAGES, *(case for case, _ in REFUSED if case.name in ("funnel", "longformer"))]
    if not case.name.endswith(("-vectors", "-encoder", "-headless"))
] + IMAGE_ENCODERS  # fmt: skip
"""One case for each type of model in docs/models.md."""
