"""Table: latency and throughput of one encoder, MiniLM with a merged adapter, in our graph and in the peers' engines.

Every contestant starts from the same merged checkpoint. Each runs in its own process on the same two cores, in alternating
order, at the settings its documentation recommends for latency. Afterwards each classifies the same real texts, so that a
fast row that computes something else shows it.

    python -m benchmarks.encoder_speed           # writes benchmarks/results/encoder_speed.json, about 15 minutes
    python -m benchmarks.encoder_speed --quick   # build/speed-quick/encoder_speed.json
    python -m benchmarks.encoder_speed --provider cuda      # on a machine with a GPU: encoder_speed_cuda.json
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import replace

from benchmarks.contest import Contestant, Table, make_parser, measure, save_table, settle, worker
from benchmarks.peers import missing, python_of
from benchmarks.speed_models import Made, SpeedModels, processor_flags
from benchmarks.worker import shape_name
from rmlora_deploy.runtime.providers import unusable

SHAPES = ((1, 32), (8, 32), (8, 128), (32, 64))
QUICK_SHAPES = ((1, 32), (8, 32))
OURS = "ours, fp32"
NOT_QUICK = {
    "ours, bf16 (OpenVINO provider)", "Optimum's export", "OpenVINO, NNCF int8, the rest in bf16", "CTranslate2, fp32",
    "PyTorch, eager attention", "PyTorch, compiled, bf16", "floor: reading the weights once", "floor: the products in bf16",
}  # fmt: skip
PROVIDERS = ("cpu", "cuda", "tensorrt")
NO_BF16 = "this processor does not compute in bf16"


def main() -> None:
    """Make the models, measure them and write the table."""
    parser = make_parser(__doc__)
    parser.add_argument("--provider", choices=PROVIDERS, default="cpu", help="what computes (default %(default)s)")
    options = settle(parser.parse_args())
    shapes = QUICK_SHAPES if options.quick else SHAPES
    models = SpeedModels(options.work)
    on_cpu = options.provider == "cpu"
    contestants = list(cpu_contestants(models, options) if on_cpu else gpu_contestants(models, options))
    contestants = [
        replace(item, job={**item.job, "seconds": options.seconds, "shapes": shapes}, quick=item.name not in NOT_QUICK)
        for item in contestants
    ]
    name = "encoder_speed" if on_cpu else f"encoder_speed_{options.provider}"
    table = Table(
        name,
        "Encoder: MiniLM-L6 with a merged adapter, one batch",
        "ms",
        OURS,
        [shape_name(*shape) for shape in shapes],
        note="Columns are rows × tokens. Tokenizing is not included.",
    )
    rows = measure(contestants, options, table, last={"check": str(models.texts("test"))})
    save_table(table, rows, options)


def cpu_contestants(models: SpeedModels, options: argparse.Namespace) -> Iterator[Contestant]:
    """Yield the contestants on the processor, and those of GPUs with the reason why they have no figures."""
    checkpoint = str(models.checkpoint())
    for precision in ("fp32", "int8"):
        job = {"bundle": str(models.bundle(precision)), "provider": "cpu"}
        yield Contestant(f"ours, {precision}", worker("encoder_ours"), job, group=precision)
    yield from openvino_provider(models)
    for name, kind, group in (
        ("Optimum's export", "plain", "fp32"), ("Optimum's export, O3", "o3", "fp32"), ("Optimum's int8", "int8", "int8"),
    ):  # fmt: skip
        yield _peer(name, "optimum", "encoder_onnx", models.optimum(kind), group)
    yield from openvino(models)
    yield from ctranslate2(models)
    yield from torch_contestants(checkpoint, "cpu")
    for floor, name in (("products", "floor: the matrix products alone"), ("bytes", "floor: reading the weights once")):
        job = {"floor": floor, "checkpoint": checkpoint}
        yield Contestant(name, worker("floors"), job, kind="floor", group="fp32")
    if _has_bf16():
        job = {"floor": "products", "checkpoint": checkpoint, "dtype": "bfloat16"}
        yield Contestant("floor: the products in bf16", worker("floors"), job, kind="floor", group="bf16")
    for provider in PROVIDERS[1:]:
        reason = f"python -m benchmarks.encoder_speed --provider {provider}  measures it on a machine with a GPU"
        yield Contestant(f"ours, {provider}", group=provider, missing=reason)


def openvino_provider(models: SpeedModels) -> Iterator[Contestant]:
    """Yield our bundle on ONNX Runtime's OpenVINO provider in bf16, in an environment with the build that has it."""
    peer = "onnxruntime-openvino"
    job = {"bundle": str(models.bundle()), "provider": "openvino?INFERENCE_PRECISION_HINT=bf16"}
    reason = missing(peer) if _has_bf16() else NO_BF16
    command = worker("encoder_ours", python=python_of(peer))
    yield Contestant("ours, bf16 (OpenVINO provider)", command, job, group="bf16", missing=reason)


def openvino(models: SpeedModels) -> Iterator[Contestant]:
    """Yield OpenVINO in every precision of its CPU plugin."""
    plain, quantized = models.optimum("plain"), models.openvino_int8()
    for name, model, precision, group in (
        ("OpenVINO, fp32", plain, "f32", "fp32"),
        ("OpenVINO, bf16", plain, "bf16", "bf16"),
        ("OpenVINO, NNCF int8", quantized, "f32", "int8"),
        ("OpenVINO, NNCF int8, the rest in bf16", quantized, "bf16", "int8"),
    ):
        item = _peer(name, "openvino", "encoder_openvino", model, group)
        if precision == "bf16" and not _has_bf16():
            item = replace(item, missing=NO_BF16)
        yield replace(item, job={**item.job, "precision": precision})


def ctranslate2(models: SpeedModels) -> Iterator[Contestant]:
    """Yield CTranslate2 in float32 and int8."""
    made = models.ctranslate2()
    encoder = Made(made.path / "encoder", made.missing)
    for group, compute_type in (("fp32", "float32"), ("int8", "int8_float32")):
        item = _peer(f"CTranslate2, {group}", "ctranslate2", "encoder_ctranslate2", encoder, group)
        yield replace(item, job={**item.job, "head": str(made.path / "head.npz"), "compute_type": compute_type})


def torch_contestants(checkpoint: str, device: str) -> Iterator[Contestant]:
    """Yield PyTorch: plain attention, SDPA, compiled, and compiled in bf16."""
    for name, attention, compiled, dtype, group in (
        ("PyTorch, eager attention", "eager", False, "float32", "fp32"),
        ("PyTorch, SDPA", "sdpa", False, "float32", "fp32"),
        ("PyTorch, compiled", "sdpa", True, "float32", "fp32"),
        ("PyTorch, compiled, bf16", "sdpa", True, "bfloat16", "bf16"),
    ):
        job = {"checkpoint": checkpoint, "attention": attention, "compiled": compiled, "dtype": dtype, "device": device}
        reason = None
        if dtype == "bfloat16" and device == "cpu" and not _has_bf16():
            reason = NO_BF16
        yield Contestant(name, worker("encoder_torch"), job, kind="peer", group=group, missing=reason)


def gpu_contestants(models: SpeedModels, options: argparse.Namespace) -> Iterator[Contestant]:
    """Yield our bundles and PyTorch on a GPU; the other peers here run on processors."""
    reason = unusable(options.provider)
    for precision in ("fp32", "fp16"):
        job = {"bundle": str(models.bundle(precision)), "provider": options.provider}
        yield Contestant(f"ours, {precision}", worker("encoder_ours"), job, group=precision, missing=reason)
    for item in torch_contestants(str(models.checkpoint()), "cuda"):
        half = {**item.job, "dtype": "float16"} if item.group == "bf16" else item.job
        name, group = item.name.replace("bf16", "fp16"), item.group.replace("bf16", "fp16")
        yield replace(item, name=name, group=group, job=half, missing=reason)


def _peer(name: str, peer: str, module: str, model: Made, group: str) -> Contestant:
    reason = missing(peer) or model.missing
    command = worker(module, python=python_of(peer))
    return Contestant(name, command, {"model": str(model.path)}, kind="peer", group=group, missing=reason)


def _has_bf16() -> bool:
    return bool(processor_flags() & {"avx512_bf16", "amx_bf16", "bf16"})


if __name__ == "__main__":
    main()
