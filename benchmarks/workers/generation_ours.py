"""Worker: steps of a language model in our runtime. The job has ``bundles``, ``use``, ``seconds`` and ``threads``.

``use``: ``merged``; or with branches ``none``, ``one`` for all rows, ``specialized``, or ``each`` row its own.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from benchmarks.generation_steps import measure_steps
from benchmarks.worker import read_job, report, versions
from rmlora_deploy.bundles.bundle import Bundle
from rmlora_deploy.runtime import AdapterRef
from rmlora_deploy.runtime.decoder.decoder_batch import DecoderBatch


def main() -> None:
    """Time the steps of batches, and the reading of prompts."""
    job = read_job()
    use = job["use"]
    bundle = Bundle.open(Path(job["bundles"]) / ("merged" if use == "merged" else "branches"), check_files=False)
    session = bundle.decoder_session(threads=job["threads"])
    names = sorted(bundle.adapters)
    if use == "specialized":
        session.specialize(names[0])

    def begin(prompts: list[list[int]], tokens: list[int], steps: int) -> Callable[[], object]:
        refs: list[AdapterRef | None] = [None] * len(prompts)
        if use not in ("merged", "none"):
            refs = [AdapterRef(names[row % len(names) if use == "each" else 0]) for row in range(len(prompts))]
        batch = DecoderBatch(session, prompts, refs, new_tokens=steps)
        for row in range(len(prompts)):
            batch.read(row)
        return lambda: batch.advance(tokens)

    report(measure_steps(begin, job["seconds"]), versions=versions("onnxruntime", "numpy"))


if __name__ == "__main__":
    main()
