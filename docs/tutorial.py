"""Runs every command of a page and puts what it prints under it: python docs/tutorial.py [PAGE] [--only N]

A place looks like `<!-- run: COMMAND -->` ... `<!-- end -->`. Commands run in the order of the page, in the root of the
repository, 80 columns wide; what one prints is written when it is done, and one that fails stops everything.
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
        sys.exit(f"{command}\n{done.stdout}\nleft with {done.returncode}; nothing was written for it.")
    lines = [line.rstrip() for line in done.stdout.splitlines()]
    return "\n".join(lines).strip("\n")


def block(command: str, output: str) -> str:
    return f"<!-- run: {command} -->\n```text\n$ {command}\n{output}\n```\n<!-- end -->"


def filled(text: str, command: str, output: str) -> str:
    """The page with this under every place of the command."""
    return PLACE.sub(lambda place: output if place["command"] == command else place[0], text)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("page", nargs="?", type=Path, default=ROOT / "docs" / "tutorial.md")
    options.add_argument("--only", type=int, action="append", help="number of a command to run, from 1; repeatable")
    chosen = options.parse_args()
    page: Path = chosen.page
    for number, command in enumerate(commands(page.read_text(encoding="utf-8")), start=1):
        if chosen.only is None or number in chosen.only:
            print(command, file=sys.stderr)
            output = block(command, printed(command))
            # Read again: a command takes minutes, in which somebody may have gone on writing.
            text = page.read_text(encoding="utf-8")
            page.write_text(filled(text, command, output), encoding="utf-8")


if __name__ == "__main__":
    main()
