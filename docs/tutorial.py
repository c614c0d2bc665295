"""Runs every command of a page and puts what it prints under it: python docs/tutorial.py [PAGE] [--only N]

A place looks like `<!-- run: COMMAND -->` ... `<!-- end -->`. Commands run in the order of the page, in the root of the
repository, 80 columns wide; one that fails stops everything, and the page stays as it was. `--only N` runs the N-th.
"""

import argparse
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
PLACE = re.compile(r"<!-- run: (?P<command>[^\n]+) -->\n(?P<output>.*?)<!-- end -->", re.DOTALL)
ENVIRONMENT = {"COLUMNS": "80", "HF_HUB_OFFLINE": "1"}


def commands(text: str) -> list[str]:
    """The commands of a page, in order."""
    return [place["command"] for place in PLACE.finditer(text)]


def printed(command: str) -> str:
    """What a command of ours prints on both streams; leaves the program where it fails."""
    program, *arguments = shlex.split(command)
    assert program == "spikesink", f"only commands of spikesink run here: {command}"
    done = subprocess.run(
        [sys.executable, "-m", "spikesink", *arguments],
        cwd=ROOT,
        env={**os.environ, **ENVIRONMENT},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        sys.exit(f"{command}\n{done.stdout}\nleft with {done.returncode}; the page was not changed.")
    lines = [line.rstrip() for line in done.stdout.splitlines()]
    return "\n".join(lines).strip("\n")


def block(command: str, output: str) -> str:
    return f"<!-- run: {command} -->\n```text\n$ {command}\n{output}\n```\n<!-- end -->"


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("page", nargs="?", type=Path, default=ROOT / "docs" / "tutorial.md")
    options.add_argument("--only", type=int, help="number of the one command to run, from 1")
    chosen = options.parse_args()
    text = chosen.page.read_text(encoding="utf-8")
    numbers = iter(range(1, len(commands(text)) + 1))

    def filled(place: re.Match) -> str:
        if chosen.only not in (None, next(numbers)):
            return place[0]
        print(place["command"], file=sys.stderr)
        return block(place["command"], printed(place["command"]))

    chosen.page.write_text(PLACE.sub(filled, text), encoding="utf-8")


if __name__ == "__main__":
    main()
