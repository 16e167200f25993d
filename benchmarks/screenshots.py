"""Screenshots of the server's page for the documentation: real adapters, real answers, real traffic.

Three adapters for MiniLM are trained on real data (short runs), and two of them compressed. One bundle serves all five, and
headless Chromium takes the screenshots while clients send requests.

    python -m benchmarks.screenshots           # writes docs/images/serve*.png, some minutes of training

``--all DIRECTORY`` writes every variant (light and dark, wide and narrow) there instead. ``--work`` keeps adapters and bundle.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Page

from benchmarks.assets import minilm
from benchmarks.demo import PROJECTIONS
from benchmarks.realdata import DATASETS, write_splits
from benchmarks.served import server
from tests.helpers.browser import chromium

IMAGES = Path(__file__).parent.parent / "docs" / "images"
ADAPTERS = {"spam": ("sms", 8, 600), "question-type": ("trec", 16, 1600), "tweets": ("tweets", 4, 600)}
"""Adapter → dataset, rank, training examples."""
SMALL = {"spam-small": "spam", "question-type-small": "question-type"}
"""Compressed adapter → the adapter it is made from."""
QUESTION = "Who has won a free holiday? Call 09061701461 now to claim your prize!"
ASKED = ("spam", "question-type", "tweets", "spam-small")
WARM = 45.0
"""Seconds of traffic before the first screenshot: most of the charts' range."""


def main() -> None:
    """Train, export, serve, send requests and take the screenshots."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, help="keep adapters and bundle here (default: a temporary directory)")
    parser.add_argument("--all", type=Path, metavar="DIRECTORY", help="write every variant there, none to docs/images")
    parser.add_argument("--prepare", action="store_true", help="only train and export into --work")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        bundle = prepare(options.work or Path(scratch))
        if options.prepare:
            return
        with server(f"minilm={bundle}", "--threads", "1", "--adapter-dir", bundle.parent) as url, traffic(url):
            time.sleep(WARM)
            take(url, options.all)


def prepare(work: Path) -> Path:
    """Train the adapters that ``work`` lacks, export them and return the bundle."""
    bundle = work / "bundle"
    if bundle.is_dir():
        return bundle
    targets = [part for name in PROJECTIONS for part in ("--target-modules", name)]
    for name, (source, rank, limit) in ADAPTERS.items():
        if not (work / name).is_dir():
            data = write_splits(source, work / "data" / source, limit=limit)
            _run(
                "train", "--base", minilm(), "--train", data / "train.jsonl", "--output", work / name, *targets,
                "--rank", rank, "--active-rank", rank // 2, "--epochs", 2, "--batch-size", 8, "--max-length", 32, "--group-by-length",
            )  # fmt: skip
    for name, whole in SMALL.items():
        if not (work / name).is_dir():
            _run("compress", work / whole, "--energy", "0.9", "--refactor", "--output", work / name)
    adapters = [part for name in (*ADAPTERS, *SMALL) for part in ("--adapter", f"{name}={work / name}")]
    _run("export", minilm(), "--mode", "branches", *adapters, "--output", bundle, "--no-verify")
    return bundle


@contextmanager
def traffic(url: str) -> Iterator[None]:
    """Send each adapter texts of its own data until the block ends, from clients whose rate goes up and down."""
    texts = {
        name: [str(example.input) for example in DATASETS[source]()[:500]] for name, (source, *_) in ADAPTERS.items()
    }
    texts |= {name: texts[whole] for name, whole in SMALL.items()}
    weights = [1 / (rank + 1) for rank in range(len(texts))]
    ended = threading.Event()

    def ask(seed: int) -> None:
        draw = random.Random(seed)
        while not ended.is_set():
            (name,) = draw.choices(list(texts), weights)
            body = json.dumps({"model": name, "input": draw.choice(texts[name])}).encode()
            request = urllib.request.Request(f"{url}/classify", body, {"Content-Type": "application/json"})  # noqa: S310
            urllib.request.urlopen(request).read()  # noqa: S310 - our own server
            busy = 1 + (int(time.monotonic() / 9) + seed) % 4  # each client has busier and quieter seconds
            ended.wait(draw.expovariate(6 * busy))

    clients = [threading.Thread(target=ask, args=(seed,)) for seed in range(12)]
    for client in clients:
        client.start()
    try:
        yield
    finally:
        ended.set()
        for client in clients:
            client.join()


def take(url: str, everything: Path | None) -> None:
    """Write the screenshots: the two of the documentation, or all variants."""
    target = everything or IMAGES
    target.mkdir(parents=True, exist_ok=True)
    with chromium() as browser:
        for name, width, height in (("serve", 1280, 900), ("serve-phone", 390, 844)):
            for scheme in ("light", "dark") if everything else ("light",):
                page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
                use(page, url)
                suffix = "" if scheme == "light" else f"-{scheme}"
                whole = everything is not None or width == 1280
                if not whole:  # of the phone's long page only the playground
                    page.evaluate("document.getElementById('playground').scrollIntoView({behavior: 'instant'})")
                page.screenshot(path=target / f"{name}{suffix}.png", full_page=whole, animations="disabled")
                print(target / f"{name}{suffix}.png", flush=True)
                page.close()


def use(page: Page, url: str) -> None:
    """Open the page, select models and send them a text."""
    page.goto(url)
    for name in ASKED:
        page.get_by_label(name, exact=True).check()
    page.get_by_label("Text", exact=True).fill(QUESTION)
    page.keyboard.press("Control+Enter")
    page.get_by_text(f"{len(ASKED)} answers in").wait_for()
    page.mouse.move(0, 0)
    page.evaluate("document.activeElement.blur(); scrollTo({top: 0, behavior: 'instant'})")


def _run(*words: object) -> None:
    subprocess.run([sys.executable, "-m", "rmlora_deploy", *map(str, words)], check=True)


if __name__ == "__main__":
    main()
