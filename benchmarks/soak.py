"""Hostile input and faults in numbers: what was tried, what was refused cleanly, what was survived. Run: make soak

Every line that is done is kept in FIGURES, so that a soak can be stopped and gone on with, and the tables of
docs/trust.md are written from it. Some faults need root (a disk of its own); without it their lines say so.
"""

import argparse
import json
import os
import random
import re
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# A bar's and an allocator's own thread would be lost in a fork, with what it had locked.
os.environ.setdefault("TQDM_DISABLE", "1")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")
sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "strangers"))

import torch
from families_table import counts_by_version, newest_first, read_results
from faults.commands import COMMANDS, write_inputs
from faults.processes import import_everything
from faults.scenarios import Bench, rows
from fuzz.target import fuzz
from fuzz.targets import TARGETS

ROOT = Path(__file__).parent.parent
PAGE, FIGURES = ROOT / "docs" / "trust.md", ROOT / "results" / "soak.json"
BEGIN, END = "<!-- written by benchmarks/soak.py -->", "<!-- end -->"


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--times", type=int, default=50, help="rounds of every fault; of SIGKILL, kills that struck")
    options.add_argument("--inputs", type=int, default=1000, help="inputs for every reader; 0 for none")
    options.add_argument("--seed", type=int, default=None, help="of the moments; default drawn, and printed")
    options.add_argument("--only", default="", help="lines whose name has this regular expression")
    options.add_argument("--figures", type=Path, default=FIGURES, help="where figures are kept")
    options.add_argument("--page", type=Path, default=PAGE, help="the page whose tables are written")
    options.add_argument("--fresh", action="store_true", help="forget earlier figures")
    given = options.parse_args()
    # Stopped politely, it cleans up.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    torch.set_num_threads(1)
    figures = json.loads(given.figures.read_text()) if given.figures.exists() and not given.fresh else {}
    seed = random.SystemRandom().randrange(2**32) if given.seed is None else given.seed
    say(f"seed {seed}")
    import_everything()
    given.figures.parent.mkdir(parents=True, exist_ok=True)
    for name, counts in _lines(given, seed, figures):
        figures[name] = dict(counts)
        given.figures.write_text(json.dumps(figures, indent=1) + "\n")
        if given.page.exists():
            write_page(given.page, figures)
        say(f"{name}: {dict(counts)}")
    sys.exit(1 if any(map(_failed, figures.values())) else 0)


def _failed(counts: dict[str, int]) -> bool:
    return bool(counts.get("failed")) or counts.get("rounds", 0) != counts.get("survived", 0)


def _lines(given: argparse.Namespace, seed: int, figures: dict[str, Any]) -> Iterator[tuple[str, dict[str, int]]]:
    """The lines of the tables one after the other, each whenever it has grown; they go on from earlier figures."""
    with tempfile.TemporaryDirectory(prefix="spikesink-soak-") as folder:
        inputs, work = Path(folder, "inputs"), Path(folder, "work")
        inputs.mkdir(), work.mkdir()
        write_inputs(inputs)
        bench = Bench(inputs, work, random.Random(seed))
        # A round of every line, then another: a soak that is stopped has tried everything.
        for times in range(1, given.times + 1):
            for row in rows(COMMANDS):
                name = f"{row.name} | {row.command.name}"
                counts = Counter({"rounds": 0, "faults": 0, "survived": 0, **figures.get(name, {})})
                while re.search(given.only, name) and row.due(counts, times):
                    try:
                        row.round(bench, counts, say)
                        yield name, counts
                    except PermissionError as error:
                        say(f"{name}: skipped, {error}")
                        break
    for target in TARGETS:
        name = f"input | {target.name}"
        if given.inputs and re.search(given.only, name) and Counter(figures.get(name, {})).total() < given.inputs:
            try:
                yield name, fuzz(target, given.inputs)
            except AssertionError as error:
                say(str(error)[-6000:])
                yield name, {"failed": 1}


def write_page(page: Path, figures: dict[str, dict[str, int]]) -> None:
    """Put the tables between the two marks of the page."""
    text = page.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    page.write_text(f"{before}{BEGIN}\n{tables(figures)}\n{END}{after}", encoding="utf-8")


def tables(figures: dict[str, dict[str, int]]) -> str:
    """The tables as markdown; that of families is what `make families` counted."""
    faults = {name: counts for name, counts in figures.items() if "rounds" in counts}
    inputs = {name: counts for name, counts in figures.items() if name.startswith("input | ")}
    lines = ["| fault | command | faults injected | rounds | survived |", "| --- | --- | --- | --- | --- |"]
    for name, counts in faults.items():
        fault, command = name.split(" | ")
        lines.append(f"| {fault} | {command} | {counts['faults']} | {counts['rounds']} | {counts['survived']} |")
    lines.append(_sum("| **all** | |", faults, ("faults", "rounds", "survived")))
    lines += [
        "",
        "| what reads it | inputs tried | refused cleanly | accepted | neither |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name, counts in inputs.items():
        lines.append(f"| {name.split(' | ')[1]} | {_tried(counts)} |")
    total = {kind: sum(counts.get(kind, 0) for counts in inputs.values()) for kind in ("refused", "accepted", "failed")}
    lines.append(f"| **all** | {_tried(total)} |")
    return "\n".join([*lines, "", counts_by_version(newest_first(read_results()))])


def _sum(start: str, lines: dict[str, dict[str, int]], columns: tuple[str, ...]) -> str:
    return start + "".join(f" {sum(counts[column] for counts in lines.values()):,} |" for column in columns)


def _tried(counts: dict[str, int]) -> str:
    refused, accepted, failed = (counts.get(kind, 0) for kind in ("refused", "accepted", "failed"))
    return f"{refused + accepted + failed:,} | {refused:,} | {accepted:,} | {failed:,}"


if __name__ == "__main__":
    main()
