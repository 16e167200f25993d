"""Measuring a language model: first token and tokens a second, and what does not go with it."""

from __future__ import annotations

import json
from pathlib import Path

from rmlora_deploy import export
from tests.helpers.cli import fails, run
from tests.helpers.decoders import decoder_adapter, decoder_base

QUICK = ("--batch", "1,2", "--length", "8", "--threads", "1", "--rounds", "1", "--seconds", "0.01")


def test_the_first_token_and_the_speed_are_measured_for_every_use(tmp_path: Path) -> None:
    base = decoder_base("llama", tmp_path / "base")
    bundle = tmp_path / "bundle"
    export(base, {name: decoder_adapter(base, tmp_path / name) for name in ("a", "b")}, bundle, verify=False)
    done = run("bench", bundle, *QUICK, "--json")
    assert done.code == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["kind"] == "generation" and result["settings"]["new_tokens"] == 32
    assert [(row["name"], row["rows"]) for row in result["rows"]] == [
        (use, rows)
        for use in ("no adapter", "one adapter", "one adapter, specialized", "one for each row")
        for rows in (1, 2)
    ]
    assert all(row["first_token_ms"] > 0 and row["tokens_per_second"] > 0 for row in result["rows"])
    shown = run("bench", bundle, *QUICK)
    assert "tokens/s" in shown.stdout and "one for each row" in shown.stdout
    fails(2, "in ONNX Runtime only", "bench", bundle, *QUICK, "--engine", "torch")
    fails(2, "on the CPU only", "bench", bundle, *QUICK, "--provider", "cuda")
    fails(2, "not plotted", "bench", bundle, *QUICK, "--plot", tmp_path / "bench.png")
    fails(2, "exceed the 256 tokens", "bench", bundle, "--length", "240", "--rounds", "1")
