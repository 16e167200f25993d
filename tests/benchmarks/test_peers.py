"""The peers' environments: locked, without a build of torch, and a reason where one is missing."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from benchmarks import peers

LOCKED = sorted(path.stem for path in peers.REQUIREMENTS.glob("*.in"))


@pytest.mark.parametrize("peer", LOCKED)
def test_every_package_of_a_peer_has_hashes_and_torch_is_left_to_the_machine(peer: str) -> None:
    text = (peers.REQUIREMENTS / f"{peer}.txt").read_text(encoding="utf-8")
    entries = re.findall(r"^([\w.-]+)==\S+((?:.*\\\n?)?(?:\s+--hash=sha256:[0-9a-f]{64}(?: \\)?\n?)*)", text, re.M)
    assert entries and all("--hash=" in hashes for _, hashes in entries)
    assert not [name for name, _ in entries if name == "torch" or name.startswith(("nvidia-", "cuda-", "triton"))]


@pytest.mark.parametrize("peer", LOCKED)
def test_torch_is_the_same_release_everywhere(peer: str) -> None:
    wanted = re.findall(r"^torch==\S+$", (peers.REQUIREMENTS / f"{peer}.in").read_text(encoding="utf-8"), re.M)
    ours = re.findall(r"^torch==\S+$", (peers.ROOT / "requirements" / "torch.txt").read_text(encoding="utf-8"), re.M)
    assert wanted in ([], ours)


def test_a_peer_that_is_absent_failed_or_of_another_lock_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peers, "PEERS", tmp_path)
    state = tmp_path / "openvino" / "state"
    assert peers.missing("openvino") == "openvino is not installed: run  python -m benchmarks.peers openvino"
    state.parent.mkdir()
    state.write_text("an older lock\n")
    assert peers.missing("openvino") == "openvino is of another lock: run  python -m benchmarks.peers openvino"
    state.write_text("a lock\nERROR: No matching distribution found for openvino\n")
    assert "could not be installed: ERROR: No matching distribution" in str(peers.missing("openvino"))
    state.write_text(f"{peers._digest('openvino')}\n")
    assert peers.missing("openvino") is None


def test_an_unknown_peer_is_refused_before_anything_is_installed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        peers.main(["nobody"])
    assert "there is no peer 'nobody': choose from ctranslate2" in capsys.readouterr().err
