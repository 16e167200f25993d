"""Worker: what nothing can go below. The job has ``floor``: the products alone, reading the weights, or a plain copy.

``products`` computes every matrix product of the encoder, with weights of its own for each and attention's two products,
in PyTorch; ``bytes`` reads the weights once.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.worker import columns_of, median_ms, read_job, report, versions


def main() -> None:
    """Time the floor for every shape."""
    job = read_job()
    torch.set_num_threads(job["threads"])
    config = json.loads((Path(job["checkpoint"]) / "config.json").read_text(encoding="utf-8"))
    make = {"products": partial(products, rank=job.get("rank", 0)), "bytes": read_weights}[job["floor"]]
    figures = {}
    for column, (rows, tokens) in columns_of(job):
        call = make(config, rows, tokens, getattr(torch, job.get("dtype", "float32")))
        with torch.inference_mode():
            figures[column] = median_ms(call, job["seconds"])
    report(figures, versions=versions("torch", "numpy"))


def products(
    config: dict[str, Any], rows: int, tokens: int, dtype: torch.dtype, *, rank: int = 0
) -> Callable[[], None]:
    """Return a function that computes the encoder's products for one batch shape, and those of branches of ``rank``."""
    width, inner, heads = config["hidden_size"], config["intermediate_size"], config["num_attention_heads"]
    sizes = [(width, width)] * 4 + [(width, inner), (inner, width)]
    layers = [
        [(torch.rand(rows * tokens, a).to(dtype), torch.rand(b, a).to(dtype)) for a, b in sizes]
        for _ in range(config["num_hidden_layers"])
    ]
    branches = [
        (
            torch.rand(rows, tokens, a).to(dtype),
            torch.rand(rows, a, rank).to(dtype),
            torch.rand(rows, rank, b).to(dtype),
        )
        for a, b in sizes * config["num_hidden_layers"]
        if rank
    ]
    query = torch.rand(rows, heads, tokens, width // heads).to(dtype)
    weights = torch.rand(rows, heads, tokens, tokens).to(dtype)

    def run() -> None:
        for layer in layers:
            for x, weight in layer:
                torch.nn.functional.linear(x, weight)
            torch.matmul(query, query.transpose(2, 3))
            torch.matmul(weights, query)
        for x, lora_a, lora_b in branches:
            torch.bmm(torch.bmm(x, lora_a), lora_b)

    return run


def read_weights(config: dict[str, Any], rows: int, tokens: int, dtype: torch.dtype) -> Callable[[], None]:
    """Return a function that reads as many bytes as the layers' weights have; the batch's shape does not matter."""
    width, inner = config["hidden_size"], config["intermediate_size"]
    count = config["num_hidden_layers"] * (4 * width * width + 2 * width * inner)
    weights = torch.from_numpy(np.ones(count, np.float32)).to(dtype)

    def run() -> None:
        weights.sum()

    return run


if __name__ == "__main__":
    main()
