"""Kills commands at seeded moments and checks that nothing is damaged, lost or left behind.

Every kill sends SIGKILL to a real command on tiny models: at a random moment of its run, or right after the n-th file was
created, renamed or deleted. Then the result must be the old one or the new one, complete. The command is run again: it must
succeed, and leave no file that an uninterrupted run would not leave. Commands run forked from a process that has imported
everything, so that kills land in the work; as whole commands; and both also as process 1 of their own namespace, as in a
container. A tenth as many runs are interrupted with Ctrl-C, and as many get a disk that is too small.

    python -m benchmarks.kills --kills 200             # writes benchmarks/results/kills.json
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.kill_cases import CASES, Case, identity_of, make_inputs, names_in
from benchmarks.kill_process import MODES, Child, FileEvents, can_have_pid_1, start, start_function
from benchmarks.results import environment, write_result

LONGEST = 120.0
"""Seconds after which a command counts as hanging."""

_WEIGHTS = dict(zip(MODES, (9, 5, 3, 2, 1), strict=True))


@dataclass
class Prepared:
    """A case whose command was run once without a kill."""

    case: Case
    old: Path | None
    """Copy of the result that is there before; None if there is none."""
    identities: dict[str, str | None]
    names: dict[str, set[str]]
    """``old`` and ``new`` → identity and file names of that result."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Mode → time the command took."""
    events: int = 0


class Campaign:
    """The working directory, the prepared cases and what was found."""

    def __init__(self, directory: Path, seed: int, report: Callable[[str], None]) -> None:
        self.rng = random.Random(seed)
        self.inputs, self.work, self.templates = directory / "in", directory / "work", directory / "templates"
        self.out, self.log = self.work / "out", directory / "log"
        self.report = report
        self.modes = [mode for mode in MODES if can_have_pid_1() or "process 1" not in mode]
        self.counts: Counter[str] = Counter()
        self.by_case: dict[str, Counter[str]] = {}
        self.by_mode: Counter[str] = Counter()
        self.problems: list[str] = []
        self.templates.mkdir()
        self._check(start_function(lambda: make_inputs(self.inputs), self.log), "the inputs")
        self._prepared: dict[str, Prepared] = {}

    # -- one command ----------------------------------------------------------------------------------------------------

    def start(self, words: Sequence[str], mode: str = "forked") -> Child:
        """Start a command; see :class:`Case` for what its words may hold."""
        places = {"{in}": str(self.inputs), "{out}": str(self.out)}
        filled = [word.replace("{in}", places["{in}"]).replace("{out}", places["{out}"]) for word in words]
        return start(filled, mode, self.log)

    def run(self, words: Sequence[str], mode: str = "forked") -> int | None:
        """Run a command to its end and return its exit code; None if it hangs."""
        child = self.start(words, mode)
        if not child.wait(LONGEST):
            child.send(signal.SIGKILL)
            return None
        return child.code

    def _check(self, child: Child, what: str) -> None:
        if not child.wait(LONGEST) or child.code != 0:
            raise RuntimeError(f"{what} cannot be made: {self.log.read_text()[-2000:]}")

    def restore(self, prepared: Prepared) -> None:
        """Empty the working directory, but for the old result."""
        self.work.mkdir(exist_ok=True)
        for path in self.work.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        if prepared.old is not None:
            shutil.copytree(prepared.old, self.out)

    def prepare(self, case: Case) -> Prepared:
        """Run a case without a kill, and keep what it needs and gives."""
        if case.name in self._prepared:
            return self._prepared[case.name]
        prepared = Prepared(case, None, {"old": None}, {"old": set()})
        self.restore(prepared)
        if case.before:
            self._check(self.start(case.before), case.name)
            prepared.old = Path(shutil.copytree(self.out, self.templates / case.name.replace(" ", "_")))
            prepared.identities["old"], prepared.names["old"] = identity_of(case, self.out), names_in(self.out)
            self.restore(prepared)
        events = FileEvents(self.work)
        begin = time.monotonic()
        self._check(self.start(case.words), case.name)
        prepared.seconds["forked"] = time.monotonic() - begin
        prepared.events = events.poll()
        events.close()
        prepared.identities["new"], prepared.names["new"] = identity_of(case, self.out), names_in(self.out)
        self._prepared[case.name] = prepared
        return prepared

    def seconds(self, prepared: Prepared, mode: str) -> float:
        """Return how long the command takes in a mode."""
        if mode not in prepared.seconds:
            self.restore(prepared)
            begin = time.monotonic()
            self._check(self.start(prepared.case.words, mode), prepared.case.name)
            prepared.seconds[mode] = time.monotonic() - begin
        return prepared.seconds[mode]

    # -- one kill -------------------------------------------------------------------------------------------------------

    def kill(self) -> None:
        """Kill one command, and check what it leaves and that the next one succeeds; one that ends before does not count."""
        mode = self.rng.choices(self.modes, [_WEIGHTS[mode] for mode in self.modes])[0]
        prepared = self.prepare(self.rng.choices(CASES, [case.weight for case in CASES])[0])
        at_event = self.rng.random() < 0.5
        self.seconds(prepared, mode)
        self.restore(prepared)
        child = self._kill_at_event(prepared, mode) if at_event else self._kill_at_time(prepared, mode)
        if child.code not in (-signal.SIGKILL, 128 + signal.SIGKILL):
            self.counts["ended_before"] += 1
            self.kill()
            return
        self.by_mode[mode] += 1
        how = f"{prepared.case.name} ({mode}, {'file event' if at_event else 'random moment'})"
        self.counts["kills"] += 1
        self.check(prepared, how)

    def _kill_at_event(self, prepared: Prepared, mode: str) -> Child:
        events = FileEvents(self.work)
        wanted = self.rng.randint(1, max(1, prepared.events))
        child = self.start(prepared.case.words, mode)
        end = time.monotonic() + LONGEST
        while events.poll(0.02) < wanted and not child.ended() and time.monotonic() < end:
            pass
        child.send(signal.SIGKILL)
        events.close()
        return child

    def _kill_at_time(self, prepared: Prepared, mode: str) -> Child:
        delay = self.rng.random() * prepared.seconds[mode]
        child = self.start(prepared.case.words, mode)
        child.wait(delay)
        child.send(signal.SIGKILL)
        return child

    def check(self, prepared: Prepared, how: str) -> None:
        """Check the result after a command was stopped, run it again, and check the result and what else is there."""
        case, found = prepared.case, identity_of(prepared.case, self.out)
        kinds = self.by_case.setdefault(case.name, Counter())
        complete = found == prepared.identities["new"]
        state = "new" if complete else "old" if found == prepared.identities["old"] else "wrong"
        aside = found is None and any(self.work.glob(f".*.partial-*/{self.out.name}.previous"))
        kinds[
            "new result" if complete else "old result" if found else "old result aside" if aside else "no result"
        ] += 1
        if state == "wrong" and not aside:
            self._problem("lost" if found is None else "damaged", f"{how}: {found}")
        code = self.run(case.again(complete=complete))
        if code != 0:
            self._problem("failed_reruns", f"{how}: exit code {code}: {self.log.read_text()[-500:]}")
            return
        wanted = "old" if complete and case.undo and case.undo != case.words and case.before else "new"
        if identity_of(case, self.out) != prepared.identities[wanted]:
            self._problem("damaged", f"{how}: after the rerun {identity_of(case, self.out)}")
        if extra := self.leftovers(prepared, wanted):
            self._problem("leftovers", f"{how}: {sorted(extra)}")

    def leftovers(self, prepared: Prepared, wanted: str) -> set[str]:
        """Return the names of files that an uninterrupted command would not have left."""
        extra = names_in(self.out) ^ prepared.names[wanted]
        if self.out.exists() is False and wanted == "old":
            extra = set()
        beside = {path.name for path in self.work.iterdir()} - {"out", "out.run"}
        hidden = {name for name in names_in(self.work) if Path(name).name.startswith(".") or ".partial-" in name}
        return extra | beside | hidden

    def _problem(self, kind: str, text: str) -> None:
        self.counts[kind] += 1
        self.problems.append(f"{kind}: {text}")
        self.report(self.problems[-1])

    # -- Ctrl-C and full disks ------------------------------------------------------------------------------------------

    def interrupt(self) -> None:
        """Interrupt one command; it must clean up by itself."""
        prepared = self.prepare(self.rng.choices(CASES, [case.weight for case in CASES])[0])
        self.restore(prepared)
        child = self.start(prepared.case.words)
        child.wait(self.rng.random() * prepared.seconds["forked"])
        child.send(signal.SIGINT)
        self.counts["interrupts"] += 1
        how = f"{prepared.case.name} (Ctrl-C)"
        if not child.wait(LONGEST):
            child.send(signal.SIGKILL)
            self._problem("hanging", how)
        elif child.code not in (0, 130):
            self._problem("failed_interrupts", f"{how}: exit code {child.code}: {self.log.read_text()[-500:]}")
        state = "new" if identity_of(prepared.case, self.out) == prepared.identities["new"] else "old"
        if extra := self.leftovers(prepared, state):
            self._problem("leftovers_of_interrupts", f"{how}: {sorted(extra)}")
        self.check(prepared, how)

    def fill_disk(self) -> None:
        """Run one command on a disk that may be too small; then on the same disk, enlarged."""
        prepared = self.prepare(self.rng.choice([case for case in CASES if case.weight > 2]))
        needed = 1.2 * sum(path.stat().st_size + 4096 for path in prepared_files(self, prepared))
        self._mount(100 << 20)
        try:
            self.restore(prepared)
            used = shutil.disk_usage(self.work).used
            self._mount(used + max(4096, int(self.rng.random() ** 3 * needed)), "remount,")
            code = self.run(prepared.case.words)
            self.counts["full_disks"] += 1
            how = f"{prepared.case.name} (full disk)"
            text = self.log.read_text()
            if code not in (0, 8) or (code == 8 and "is full" not in text and "GB free" not in text):
                self._problem("failed_full_disks", f"{how}: exit code {code}: {text[-500:]}")
            self.counts["full_disks_refused"] += code == 8
            self._mount(100 << 20, "remount,")
            state = "new" if code == 0 else "old"
            if extra := self.leftovers(prepared, state):
                self._problem("leftovers_of_full_disks", f"{how}: {sorted(extra)}")
            self.check(prepared, how)
        finally:
            subprocess.run(["umount", str(self.work)], check=True)

    def _mount(self, size: int, options: str = "") -> None:
        flags = f"{options}size={size}"
        subprocess.run(["mount", "-t", "tmpfs", "-o", flags, "tmpfs", str(self.work)], check=True, capture_output=True)


def prepared_files(campaign: Campaign, prepared: Prepared) -> list[Path]:
    """Return the files of the new result, which must have been made already."""
    campaign.restore(prepared)
    campaign.run(prepared.case.words)
    return [path for path in campaign.work.rglob("*") if path.is_file()]


def can_mount() -> bool:
    """Return True if this process may mount a file system."""
    with tempfile.TemporaryDirectory() as directory:
        done = subprocess.run(["mount", "-t", "tmpfs", "tmpfs", directory], check=False, capture_output=True)
        if done.returncode == 0:
            subprocess.run(["umount", directory], check=True)
    return done.returncode == 0


def import_everything() -> None:
    """Import what the commands import, so that forked ones need not."""
    import datasets  # noqa: F401
    import onnxruntime  # noqa: F401
    import torch
    import transformers  # noqa: F401

    import rmlora_deploy.cli.adapter
    import rmlora_deploy.cli.compress
    import rmlora_deploy.cli.export
    import rmlora_deploy.cli.merge
    import rmlora_deploy.cli.mix
    import rmlora_deploy.cli.train
    import rmlora_deploy.cli.verify
    import rmlora_deploy.exporter.branch_bundle
    import rmlora_deploy.exporter.merged_bundle  # noqa: F401

    torch.set_num_threads(1)


def measure(kills: int, seed: int, report: Callable[[str], None] = lambda line: None) -> dict[str, Any]:
    """Run a campaign and return its figures."""
    os.environ["OMP_NUM_THREADS"] = "1"
    import_everything()
    begin = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="rmlora-kills-") as directory:
        os.environ["RMLORA_CACHE"] = f"{directory}/cache"
        campaign = Campaign(Path(directory), seed, report)
        for number in range(kills):
            campaign.kill()
            if (number + 1) % 20 == 0:
                report(f"{number + 1} of {kills} kills, {len(campaign.problems)} problems")
        for _ in range(kills // 10):
            campaign.interrupt()
        mounts = can_mount()
        for _ in range(kills // 10 if mounts else 0):
            campaign.fill_disk()
    counted = (
        "damaged",
        "lost",
        "failed_reruns",
        "leftovers",
        "hanging",
        "failed_interrupts",
        "leftovers_of_interrupts",
    )
    return {
        "seed": seed,
        **{key: campaign.counts[key] for key in ("kills", "ended_before", "interrupts")},
        "full_disks": campaign.counts["full_disks"] if mounts else "not measured: mounting is not allowed here",
        "full_disks_refused": campaign.counts["full_disks_refused"],
        **{key: campaign.counts[key] for key in (*counted, "failed_full_disks", "leftovers_of_full_disks")},
        "process_1": len(campaign.modes) == len(MODES),
        "by_mode": dict(campaign.by_mode),
        "by_command": {name: dict(kinds) for name, kinds in sorted(campaign.by_case.items())},
        "problems": campaign.problems,
        "seconds": round(time.monotonic() - begin),
    }


def main() -> None:
    """Run the campaign, print the figures and write the result file; exit with 1 if anything was damaged, lost or left."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200, help="how many commands to kill (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of commands and moments (default %(default)s)")
    parser.add_argument("--json", action="store_true", help="print the result as JSON, and write no file")
    options = parser.parse_args()
    figures = measure(options.kills, options.seed, lambda line: print(line, file=sys.stderr, flush=True))
    result = {"environment": environment(), **figures}
    if options.json:
        print(json.dumps(result, indent=2))
    else:
        print("\n".join(f"{key}: {value}" for key, value in figures.items() if key not in ("problems", "by_command")))
        print(write_result("kills", result))
    sys.exit(1 if figures["problems"] else 0)


if __name__ == "__main__":
    main()
