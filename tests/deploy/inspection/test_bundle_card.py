"""The card of a bundle: there from the start, current after changes, runnable, and never somebody else's."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from rmlora_deploy import load
from rmlora_deploy.bundles.bundle import Bundle
from rmlora_deploy.inspection.bundle_card import write_card
from tests.helpers.bundles import make_bundle
from tests.helpers.cli import environment, run
from tests.helpers.servers import ask, serving


def programs(card: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", card, re.DOTALL)


def test_an_export_writes_it_and_its_programs_run(tmp_path: Path) -> None:
    make_bundle("bert", tmp_path)
    card = (tmp_path / "bundle" / "README.md").read_text()
    assert card.startswith("---\n") and "# bundle" in card and "agrees with PyTorch and PEFT" in card
    outputs = [
        subprocess.run(
            [sys.executable, "-c", program], cwd=tmp_path, env=environment(), capture_output=True, text=True, check=True
        ).stdout
        for program in programs(card)
    ]
    assert len(outputs) == 2 and "Prediction(" in outputs[0]
    bundle = load(tmp_path / "bundle")
    alone = np.array(re.findall(r"-?\d+\.\d+(?:e-?\d+)?", outputs[1]), np.float32)
    assert alone.shape == (len(bundle.bundle.manifest.labels),)
    (path, body) = re.findall(r"127\.0\.0\.1:8000(\S+) .* -d '(.*)'", card)[0]
    with serving({"bundle": tmp_path / "bundle"}) as server:
        assert ask(server.url, path, json.loads(body)).status == 200


def test_it_follows_adapters_and_verifications(served: dict[str, Path], tmp_path: Path) -> None:
    source, bundle = served["many"].parent, tmp_path / "many"
    done = run(
        "export", source / "base", "--mode", "branches", "-a", f"one={source / 'one'}", "-o", bundle, "--no-verify"
    )
    assert done.code == 0, done.stderr
    assert "It was not verified" in (bundle / "README.md").read_text()
    assert run("adapter", "add", bundle, f"more={source / 'two'}").code == 0
    assert "| more |" in (bundle / "README.md").read_text()
    for program in programs((bundle / "README.md").read_text()):
        subprocess.run(
            [sys.executable, "-c", program], cwd=tmp_path, env=environment(), capture_output=True, check=True
        )
    assert run("verify", bundle).code == 0
    assert "agrees with PyTorch and PEFT" in (bundle / "README.md").read_text()
    assert run("adapter", "remove", bundle, "more").code == 0
    assert "| more |" not in (bundle / "README.md").read_text()


@pytest.mark.parametrize("kind", ["own text", "link"])
def test_what_somebody_else_wrote_is_left_alone(kind: str, tmp_path: Path) -> None:
    make_bundle("bert", tmp_path)
    card, other = tmp_path / "bundle" / "README.md", tmp_path / "other.md"
    card.unlink()
    if kind == "link":
        card.symlink_to(other)
    else:
        card.write_text("mine")
    write_card(Bundle.open(tmp_path / "bundle"))
    assert not other.exists() and (kind == "link" or card.read_text() == "mine")
