"""Table: recipes of int8 for MiniLM with a merged adapter: their speed, and what they cost in accuracy and exactness.

Every recipe starts from the same merged adapter and is calibrated, if it is, on the same validation texts. In the last round
each contestant classifies the messages of the test set, and computes vectors with a second graph made by its recipe.

    python -m benchmarks.int8           # writes benchmarks/results/int8.json, about 5 minutes
    python -m benchmarks.int8 --quick   # build/speed-quick/int8.json
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from benchmarks.contest import Contestant, Table, make_parser, measure, save_table, settle, worker
from benchmarks.encoder_speed import openvino
from benchmarks.int8_recipes import ONNXRUNTIME, OURS, Int8Models
from benchmarks.speed_models import SpeedModels
from benchmarks.worker import shape_name

SHAPES = ((8, 32), (8, 128), (32, 64))
QUICK_SHAPES = SHAPES[:2]
FLOAT32 = "ours, fp32"


def main() -> None:
    """Make the graphs, measure them and write the table."""
    options = settle(make_parser(__doc__).parse_args())
    shapes = QUICK_SHAPES if options.quick else SHAPES
    models = Int8Models(SpeedModels(options.work))
    contestants = [
        replace(item, job={**item.job, "seconds": options.seconds, "shapes": shapes}) for item in contestants_of(models)
    ]
    table = Table(
        "int8",
        "int8: MiniLM-L6 with a merged adapter, one batch",
        "ms",
        FLOAT32,
        [shape_name(*shape) for shape in shapes],
        note="Columns are rows × tokens. onnxruntime's recipes start from our float32 graph and run as ours do, so that only the "
        "recipe differs; NNCF's starts from Optimum's export.",
    )
    checks = {"check": str(models.models.texts("test")), "check_vectors": str(models.vectors())}
    save_table(table, measure(contestants, options, table, last=checks), options)


def contestants_of(models: Int8Models) -> Iterator[Contestant]:
    """Yield our float32 graph, our recipes and onnxruntime's in our sessions, and OpenVINO in float32 and with NNCF's recipe."""
    floats = {"bundle": str(models.models.bundle()), "vectors": {"bundle": str(models.vectors_bundle())}}
    yield Contestant(FLOAT32, worker("encoder_ours"), {**floats, "provider": "cpu"}, group="fp32")
    for name in (*OURS, *ONNXRUNTIME):
        classifier, vectors = map(str, models.graphs(name))
        job = {"model": classifier, "vectors": {"model": vectors}, "provider": "cpu"}
        yield Contestant(name, worker("encoder_ours"), job, kind="ours" if name in OURS else "peer", group="int8")
    yield from (item for item in openvino(models.models) if item.job["precision"] == "f32")


if __name__ == "__main__":
    main()
