"""Environments of the peers: each has a virtual environment of its own, since their requirements contradict each other.

    python -m benchmarks.peers                 # installs all of them into build/peers, a few minutes, once
    python -m benchmarks.peers openvino        # only this one

``requirements/peers/NAME.in`` says what a peer needs and ``NAME.txt`` locks it with hashes. torch is installed first and by
its version alone, so that the machine decides which build it is. A peer that cannot be installed leaves the reason, which
its rows then show.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import subprocess
import sys
import venv
from collections.abc import Sequence
from pathlib import Path

from rmlora.storage import locked

__all__ = ["PEERS", "REQUIREMENTS", "install", "missing", "names", "python_of"]

ROOT = Path(__file__).parents[1]
REQUIREMENTS = ROOT / "requirements" / "peers"
PEERS = ROOT / "build" / "peers"


def names() -> list[str]:
    """Return the peers that have a lock."""
    return sorted(path.stem for path in REQUIREMENTS.glob("*.txt"))


def python_of(peer: str) -> Path:
    """Return the interpreter of a peer's environment."""
    return PEERS / peer / "bin" / "python"


def missing(peer: str) -> str | None:
    """Return why a peer cannot be measured, or None if it is installed as its lock says."""
    state = PEERS / peer / "state"
    if not state.is_file():
        return f"{peer} is not installed: run  python -m benchmarks.peers {peer}"
    digest, _, reason = state.read_text(encoding="utf-8").partition("\n")
    if reason.strip():
        return f"{peer} could not be installed: {reason.strip()}"
    return None if digest == _digest(peer) else f"{peer} is of another lock: run  python -m benchmarks.peers {peer}"


def install(peer: str) -> str | None:
    """Make a peer's environment anew and return why that failed, or None; one process at a time does that."""
    PEERS.mkdir(parents=True, exist_ok=True)
    with locked(PEERS):
        return missing(peer) and _install(peer)


def _install(peer: str) -> str | None:
    directory = PEERS / peer
    reason = None
    try:
        venv.create(directory, clear=True, with_pip=True)
        if "torch==" in (REQUIREMENTS / f"{peer}.in").read_text(encoding="utf-8"):
            _pip(peer, "-r", str(ROOT / "requirements" / "torch.txt"))
        _pip(peer, "--no-deps", "--require-hashes", "-r", str(REQUIREMENTS / f"{peer}.txt"))
    except subprocess.CalledProcessError as error:
        lines = (error.stderr or "").splitlines()
        said = [line for line in lines if line.startswith("ERROR")] or lines
        reason = said[-1][:300] if said else f"it ended with exit code {error.returncode}"
    (directory / "state").write_text(f"{_digest(peer)}\n{reason or ''}", encoding="utf-8")
    return reason


def _pip(peer: str, *words: str) -> None:
    command = [str(python_of(peer)), "-m", "pip", "--disable-pip-version-check", "install", "--quiet", *words]
    environ = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    subprocess.run(command, check=True, stderr=subprocess.PIPE, text=True, env=environ)


def _digest(peer: str) -> str:
    """Return a hash of what the environment is made from."""
    files = (ROOT / "requirements" / "torch.txt", REQUIREMENTS / f"{peer}.in", REQUIREMENTS / f"{peer}.txt")
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def main(words: Sequence[str] | None = None) -> None:
    """Install the peers that are missing; a failure is printed and stops nothing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("peers", nargs="*", metavar="PEER", help=f"of {', '.join(names())} (default: all)")
    chosen = parser.parse_args(words).peers or names()
    if unknown := sorted({*chosen} - {*names()}):
        parser.error(f"there is no peer '{unknown[0]}': choose from {', '.join(names())}")
    for peer in chosen:
        if missing(peer) is None:
            continue
        print(f"{peer}: installing", file=sys.stderr, flush=True)
        if reason := install(peer):
            print(f"{peer}: not installed: {reason}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
