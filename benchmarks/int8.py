"""int8 of merged MiniLM against float32 and other recipes: time, accuracy, and how close outputs and vectors stay.

Contestants are processes of their own on the same cores and take turns; ratios are medians over rounds of the time to that of
our float32 graph in the same round. With ``--peers`` the Python of a virtual environment with openvino and nncf runs
``benchmarks/int8_peer.py``.

    python -m benchmarks.int8 [--quick] [--peers PYTHON]     # writes benchmarks/results/int8.json
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.assets import minilm
from benchmarks.demo import PROJECTIONS
from benchmarks.int8_peer import serve
from benchmarks.random_adapters import save_random_adapter
from benchmarks.realdata import write_splits
from benchmarks.results import environment, write_result
from rmlora_converters.graph.files.model_file import load_model, save_model
from rmlora_deploy.bench.machine import pin, usable_cores
from rmlora_deploy.bundles.bundle import Bundle
from rmlora_deploy.exporter.calibration import CalibrationData
from rmlora_deploy.exporter.int8 import save_in_int8
from rmlora_deploy.exporter.precision import lower_precision
from rmlora_deploy.runtime.providers import create_session

SIZES = ((8, 32), (8, 128), (32, 64))
BASELINE = "float32"
Graphs = dict[str, Path]


def main() -> None:
    """Make the graphs, measure them in turns, and write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer training rows and rounds")
    parser.add_argument("--peers", help="Python of a virtual environment with openvino and nncf")
    parser.add_argument("--rounds", type=int, help="turns of every contestant (default 12, with --quick 3)")
    parser.add_argument("--work", type=Path, help="directory to work in, kept (default a temporary one)")
    parser.add_argument(
        "--threads",
        type=int,
        default=2,
        help="with 1 the processor's time counts, which other work disturbs less (default %(default)s)",
    )
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker is not None:
        work(options.worker, options.threads)
        return
    rounds = options.rounds or (3 if options.quick else 12)
    with ExitStack() as stack:
        directory = options.work or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        tasks = {
            name: make(name, directory, 1200 if options.quick else None, peers=options.peers)
            for name in ("sms", "vectors")
        }
        result: dict[str, Any] = {"environment": environment(), "threads": options.threads, "rounds": rounds}
        for name, (graphs, bundle, inputs, labels) in tasks.items():
            workers = {
                item: stack.enter_context(start(item, path, options.peers, options.threads))
                for item, path in graphs.items()
            }
            result[name] = quality(workers, bundle, inputs, labels, directory)
            if name == "sms":
                result["speed"] = speed(workers, rounds)
    for name in ("speed", "sms", "vectors"):
        for row in result[name]:
            print(name, json.dumps(row))
    print(write_result("int8", result))


# -- graphs -------------------------------------------------------------------------------------------------------------


def make(
    name: str, directory: Path, limit: int | None, *, peers: str | None
) -> tuple[Graphs, Bundle, list[str], list[str] | None]:
    """Return the graphs of a task by contestant, its float32 bundle, the inputs to compare on, and their labels."""
    data = {item: write_splits(item, directory / "data" / item, limit=limit) for item in ("sms", "trec")}
    home = directory / name
    home.mkdir(parents=True, exist_ok=True)
    if name == "sms":
        train(data["sms"], home / "adapter")
        texts, labels = rows([data["sms"] / "test.jsonl"])
        calibration, _ = rows([data["sms"] / "train.jsonl"])
    else:
        if not (home / "adapter").is_dir():
            save_random_adapter(minilm(), "feature-extraction", home / "adapter", rank=8, seed=8)
        texts, labels = rows([folder / "test.jsonl" for folder in data.values()])[0][::2], None
        calibration, _ = rows([folder / "train.jsonl" for folder in data.values()])
    if not (home / "bundle").is_dir():
        command("export", minilm(), "--adapter", home / "adapter", "--output", home / "bundle")
    bundle = Bundle.open(home / "bundle")
    taken = CalibrationData.of("train", bundle.preprocessor(), calibration)
    graphs = {BASELINE: bundle.model_path, **our_graphs(bundle, taken, home), **onnxruntime_graphs(bundle, taken, home)}
    if peers is not None and name == "sms":
        graphs["OpenVINO float32"] = graphs["OpenVINO, NNCF int8"] = plain_graph(home, taken)
    return graphs, bundle, texts, labels


def train(data: Path, target: Path) -> None:
    """Train an adapter of all projections with the command line."""
    if target.is_dir():
        return
    targets = [part for module in PROJECTIONS for part in ("--target-modules", module)]
    splits = [part for split in ("train", "validation", "test") for part in (f"--{split}", data / f"{split}.jsonl")]
    command("train", "--base", minilm(), *splits, "--output", target, *targets, "--epochs", "2", "--max-length", "48")


def command(*words: str | Path) -> None:
    """Run the command line, quietly."""
    subprocess.run(
        [sys.executable, "-m", "rmlora_deploy", *map(str, words), "--json"], check=True, stdout=subprocess.DEVNULL
    )


def rows(files: Sequence[Path]) -> tuple[list[str], list[str]]:
    """Return the texts and labels of files."""
    found = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    return [row["text"] for row in found], [row["label"] for row in found]


def our_graphs(bundle: Bundle, data: CalibrationData, home: Path) -> Graphs:
    """Return our int8 as it was (7 bits, ranges of the batch, packed attention), and as it is now."""
    graphs: Graphs = {}
    for name, given, bits in (("int8", data, 8), ("int8, 7 bits", data, 7), ("int8 without data", None, 8)):
        graphs[name] = folder_of(home, name) / "model.onnx"
        save_in_int8(load_model(bundle.model_path), graphs[name], given, scratch=home, bits=bits)  # type: ignore[arg-type]
    graphs["int8 before"] = folder_of(home, "int8 before") / "model.onnx"
    save_model(load_model(bundle.model_path), source := folder_of(home, "source") / "model.onnx")
    lower_precision(source, graphs["int8 before"], "int8", bits=7)
    return graphs


def onnxruntime_graphs(bundle: Bundle, data: CalibrationData, home: Path) -> Graphs:
    """Return what onnxruntime's own quantizer makes, calibrated on the smallest and largest numbers."""
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_dynamic, quantize_static

    class Reader(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime is not typed
        def __init__(self) -> None:
            self._rest = iter(data.batches[:100])

        def get_next(self) -> Any:
            return next(self._rest, None)

    made = {name: folder_of(home, name) / "model.onnx" for name in ("onnxruntime dynamic", "onnxruntime static")}
    common = {"per_channel": True, "weight_type": QuantType.QInt8, "op_types_to_quantize": ["MatMul"]}
    quantize_dynamic(bundle.model_path, made["onnxruntime dynamic"], extra_options={"MatMulConstBOnly": True}, **common)
    quantize_static(bundle.model_path, made["onnxruntime static"], Reader(), **common)
    return made


def plain_graph(home: Path, data: CalibrationData) -> Path:
    """Return the merged model as exported, without ONNX Runtime's own operators, with the calibration inputs beside it."""
    import onnxscript.optimizer

    from rmlora.tasks import get_task
    from rmlora.torch_models import load_task_model
    from rmlora_deploy.exporter.torch_export import export_torch
    from rmlora_deploy.exporter.trace_inputs import trace_inputs

    target = folder_of(home, "plain") / "model.onnx"
    command("merge", minilm(), home / "adapter", "--output", home / "plain" / "merged", "--overwrite")
    task = get_task("text-classification")
    labels = Bundle.open(home / "bundle").labels
    model = load_task_model(home / "plain" / "merged", task, labels).model.eval()
    graph = export_torch(model, trace_inputs(task, model.config, task.inputs.load_processor(minilm())))
    onnxscript.optimizer.optimize(graph)
    save_model(graph, target)
    for number, batch in enumerate(data.batches[:100]):
        np.savez(folder_of(home / "plain", "calibration") / f"{number}.npz", **batch)  # type: ignore[arg-type]
    return target


def folder_of(home: Path, name: str) -> Path:
    """Return a directory for a graph, made if needed."""
    (folder := home / name.replace(", ", "-").replace(" ", "-")).mkdir(parents=True, exist_ok=True)
    return folder


# -- contestants --------------------------------------------------------------------------------------------------------


class Contestant:
    """A process that runs one graph; it answers a line of JSON with one."""

    def __init__(self, words: Sequence[str]) -> None:
        self._process = subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )

    def ask(self, **question: Any) -> Any:
        """Return the answer to a question."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(question) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"A contestant ended: {self._process.args!r}")
        return json.loads(line)

    def __enter__(self) -> Contestant:
        return self

    def __exit__(self, *error: object) -> None:
        self._process.kill()
        self._process.wait()


def start(name: str, path: Path, peers: str | None, threads: int) -> Contestant:
    """Start the process of a graph: onnxruntime's in this environment, or OpenVINO's in that of the peers."""
    if name.startswith("OpenVINO") and peers is not None:
        program = str(Path(__file__).with_name("int8_peer.py"))
        return Contestant([peers, program, str(path), "int8" if name.endswith("int8") else BASELINE, str(threads)])
    return Contestant([sys.executable, "-m", "benchmarks.int8", "--worker", str(path), "--threads", str(threads)])


def speed(workers: dict[str, Contestant], rounds: int) -> list[dict[str, Any]]:
    """Return a row for every contestant and size: the ratio to float32 within rounds, its range, and milliseconds."""
    found = []
    for size in SIZES:
        taken: dict[str, list[float]] = {name: [] for name in workers}
        for number in range(rounds + 1):
            for name in workers if number % 2 == 0 else reversed(workers):
                taken[name].append(workers[name].ask(size=size)["ms"])
        for name, values in taken.items():
            ratios = [
                mine / base for mine, base in zip(values[1:], taken[BASELINE][1:], strict=True)
            ]  # the first warms up
            found.append(
                {
                    "name": name, "rows": size[0], "tokens": size[1], "ratio": round(statistics.median(ratios), 3),
                    "range": [round(min(ratios), 3), round(max(ratios), 3)], "ms": round(statistics.median(values[1:]), 2),
                }
            )  # fmt: skip
    return found


def quality(
    workers: dict[str, Contestant], bundle: Bundle, inputs: list[str], labels: list[str] | None, directory: Path
) -> list[dict[str, Any]]:
    """Return a row for every contestant: accuracy and rms error of its scores, or the cosines of its vectors."""
    preprocessor, order = bundle.preprocessor(), sorted(range(len(inputs)), key=lambda row: len(inputs[row]))
    files = []
    for start_row in range(0, len(order), 16):
        batch = preprocessor([inputs[row] for row in order[start_row : start_row + 16]])
        np.savez(file := directory / f"batch-{start_row}.npz", **batch)  # type: ignore[arg-type]
        files.append(str(file))
    outputs = {name: np.array(worker.ask(files=files)["outputs"]) for name, worker in workers.items()}
    expected, found = outputs[BASELINE], []
    for name, output in outputs.items():
        row: dict[str, Any] = {"name": name, "examples": len(inputs)}
        if labels is None:
            cosines = (output * expected).sum(1) / np.linalg.norm(output, axis=1) / np.linalg.norm(expected, axis=1)
            row |= {"worst_cosine": round(float(cosines.min()), 5), "mean_cosine": round(float(cosines.mean()), 5)}
        else:
            right = [bundle.labels[choice] == labels[order[at]] for at, choice in enumerate(output.argmax(1))]
            error = np.sqrt(np.mean((output - expected) ** 2) / np.mean(expected**2))
            row |= {"accuracy": round(float(np.mean(right)), 4), "rms_error": round(float(error), 5)}
        found.append(row)
    return found


def work(path: Path, threads: int) -> None:
    """Serve one of our graphs, as our sessions open it."""
    pin(usable_cores()[-threads:])
    session = create_session(path, threads=threads)
    names = {item.name for item in session.get_inputs()}
    serve(lambda feeds: session.run(None, {name: array for name, array in feeds.items() if name in names})[0], threads)


if __name__ == "__main__":
    main()
