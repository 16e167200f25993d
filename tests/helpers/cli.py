"""Running the command line, in this process or a new one, and a tiny text base with data for it."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import PreTrainedTokenizerFast

from rmlora_deploy.cli import main
from tests.helpers.models import VOCABULARY, build, encoder_of, save_base

ROOT = Path(__file__).parents[2]
PACKAGES = {
    "rmlora": ROOT / "rmlora",
    "rmlora_converters": ROOT / "converters" / "rmlora_converters",
    "rmlora_deploy": ROOT / "deploy" / "rmlora_deploy",
}
"""Import package → its folder; each package comes before those that may import it."""
SEARCH_PATH = os.pathsep.join(dict.fromkeys(str(folder.parent) for folder in PACKAGES.values()))
"""``PYTHONPATH`` of a process that imports the project from this tree."""
CONSOLE_SCRIPT = Path(sys.executable).with_name("rmlora-deploy")
"""The installed command. Unlike ``python -m``, it does not put the working directory on the module search path."""
WORDS = [f"w{number}" for number in range(VOCABULARY - 3)]


BLOCKER = """
import sys
class Without:
    def __init__(self, finder):
        self.finder = finder
    def find_spec(self, name, path=None, target=None):
        return None if name.partition(".")[0] in {blocked!r} else self.finder.find_spec(name, path, target)
    def __getattr__(self, name):
        return getattr(self.finder, name)
sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]
"""
"""Program that makes packages look as if they were not installed."""


@dataclass(frozen=True)
class Finished:
    """The result of a command."""

    code: int
    stdout: str
    stderr: str


def environment(**more: str) -> dict[str, str]:
    """Return this process's environment with one thread and the project on the path."""
    return {**os.environ, "PYTHONPATH": SEARCH_PATH, "OMP_NUM_THREADS": "1", **more}


def run(*words: str | Path) -> Finished:
    """Run the command line in this process: a new one would spend seconds on imports."""
    stdout, stderr = io.StringIO(), io.StringIO()
    code = 0
    with redirect_stdout(stdout), redirect_stderr(stderr):
        try:
            main([str(word) for word in words])
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else 1
    return Finished(code, stdout.getvalue(), stderr.getvalue())


def run_process(*words: str | Path, without: tuple[str, ...] = ()) -> Finished:
    """Run the command line in a new process, in which the packages ``without`` cannot be imported."""
    program = BLOCKER.format(blocked=without) + "from rmlora_deploy.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", program, *map(str, words)],
        capture_output=True,
        text=True,
        env=environment(),
        check=False,
        stdin=subprocess.DEVNULL,
    )
    return Finished(done.returncode, done.stdout, done.stderr)


def fails(code: int, message: str, *words: str | Path) -> None:
    """Assert that a command exits with ``code`` and one error line that contains ``message``, without a traceback."""
    done = run(*words)
    assert done.code == code, (done.code, done.stderr)
    assert "Traceback" not in done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("Error: ")]
    assert len(lines) == 1, done.stderr
    assert message in lines[0], lines[0]


def tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer of one token per word, for the tiny models' vocabulary."""
    entries = {word: number for number, word in enumerate(["<unk>", "<pad>", "<eos>", *WORDS])}
    words = Tokenizer(WordLevel(entries, unk_token="<unk>"))
    words.pre_tokenizer = Whitespace()
    fast = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>")
    fast.model_input_names = ["input_ids", "attention_mask"]
    fast.model_max_length = 32
    return fast


def text_base(directory: Path, name: str = "bert") -> Path:
    """Save the encoder of a tiny model (no head) with its tokenizer."""
    save_base(encoder_of(build(name)), directory)
    tokenizer().save_pretrained(directory)
    return directory


def text_data(path: Path, rows: int = 48, seed: int = 0) -> Path:
    """Write sentences with three labels; the first word of a sentence decides its label."""
    rng = np.random.default_rng(seed)
    lines = []
    for number in range(rows):
        label = number % 3
        words = [WORDS[label], *rng.choice(WORDS[3:], size=rng.integers(2, 9))]
        lines.append(json.dumps({"text": " ".join(words), "label": ("red", "green", "blue")[label]}))
    path.write_text("\n".join(lines) + "\n")
    return path
