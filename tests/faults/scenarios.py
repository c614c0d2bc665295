"""What happens to a command, and what must hold afterwards: whole or absent, a rerun finishes, the same result."""

import os
import random
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from faults.commands import GGUF, SCAN, TRAIN, Command
from faults.processes import Child, ran, small_disk


@dataclass
class Bench:
    """Where commands run, the undisturbed results, and the random numbers that choose moments."""

    inputs: Path
    work: Path
    random: random.Random
    whole: dict[str, dict[str, Any]] = field(default_factory=dict)
    cpu_s: dict[str, float] = field(default_factory=dict)
    """Of the undisturbed run."""
    number: int = 0

    def fresh(self) -> Path:
        """A new empty place for results."""
        self.number += 1
        folder = self.work / str(self.number)
        folder.mkdir()
        return folder

    def arguments(self, command: Command, out: Path) -> list[str]:
        return command.arguments(self.inputs, out)

    def undisturbed(self, command: Command) -> dict[str, Any]:
        """The result of the command when nothing happens, and how long it computes; twice, so that it is known to be
        the same when nothing happens."""
        if command.name not in self.whole:
            results = []
            for _ in range(2):
                place = self.fresh()
                with_cache(place)
                code, output, cpu_s = ran(self.arguments(command, place / "out"), place / "log")
                assert code == 0, output
                results.append(command.result(place / "out"))
                self.cpu_s[command.name] = cpu_s
            assert results[0] and results[0] == results[1], f"{command.name} differs between two quiet runs"
            self.whole[command.name] = results[0]
        return self.whole[command.name]


def with_cache(place: Path) -> None:
    os.environ["SPIKESINK_CACHE"] = str(place / "cache")


def same(result: dict[str, Any], whole: dict[str, Any], *, complete: bool) -> None:
    """Everything that is there is what the undisturbed run made; with `complete`, all of it is there."""
    for name, value in result.items():
        assert value == whole[name], f"{name} differs from the undisturbed run's"
    assert not complete or result.keys() == whole.keys(), f"{sorted(whole.keys() - result.keys())} missing"


def finishes(bench: Bench, command: Command, place: Path) -> None:
    """The command typed again ends well, with the undisturbed result and nothing left over."""
    out = place / "out"
    code, output, _ = ran([*bench.arguments(command, out), *command.again(out)], place / "log")
    assert code == 0, output
    same(command.result(out), bench.undisturbed(command), complete=True)
    left = [str(path.relative_to(place)) for path in place.rglob(".*") if not path.name.endswith(".lock")]
    assert not left, f"left over: {left}"


def refused(code: int, output: str) -> None:
    """One message and exit code 2."""
    assert code == 2, (code, output)
    messages = [line for line in output.splitlines() if line.startswith("error: ")]
    assert "Traceback" not in output and len(messages) == 1, output


def killed(bench: Bench, command: Command) -> int:
    """SIGKILL at a random moment, up to three times in a row; returns how many kills."""
    whole = bench.undisturbed(command)
    place = bench.fresh()
    with_cache(place)
    out = place / "out"
    kills = 0
    while True:
        child = Child([*bench.arguments(command, out), *(command.again(out) if kills else [])], place / "log")
        if not child.kill_after(bench.random.uniform(0, bench.cpu_s[command.name])):
            break
        kills += 1
        same(command.result(out), whole, complete=False)
        if kills == 3 or bench.random.random() < 0.6:
            break
    finishes(bench, command, place)
    shutil.rmtree(place)
    return kills


def full_disk(bench: Bench, command: Command) -> int:
    """A disk of a random size up to twice what the command needs; grown afterwards. Returns 1 if it ran full."""
    whole = bench.undisturbed(command)
    place = bench.fresh()
    disk = place / "disk"
    with small_disk(disk, bench.random.choice((16, 32, 48, 64, 96, 128, 192, 256))) as remount:
        os.environ["SPIKESINK_CACHE"] = str(disk / "cache")
        code, output, _ = ran(bench.arguments(command, disk / "out"), place / "log")
        if code:
            refused(code, output)
        same(command.result(disk / "out"), whole, complete=code == 0)
        remount("size=64m")
        finishes(bench, command, disk)
    shutil.rmtree(place)
    return int(code != 0)


def read_only(bench: Bench, command: Command) -> int:
    """A disk that cannot be written from the start, and one on which an earlier result lies."""
    bench.undisturbed(command)
    place = bench.fresh()
    disk = place / "disk"
    with small_disk(disk, 65536) as remount:
        os.environ["SPIKESINK_CACHE"] = str(disk / "cache")
        remount("ro")
        refused(*ran(bench.arguments(command, disk / "out"), place / "log")[:2])
        remount("rw")
        finishes(bench, command, disk)
        remount("ro")
        out = disk / "out"
        refused(*ran([*bench.arguments(command, out), *command.again(out)], place / "log")[:2])
        same(command.result(out), bench.undisturbed(command), complete=True)
    shutil.rmtree(place)
    return 2


def damaged_cache(bench: Bench, command: Command = GGUF) -> int:
    """A file of the cache is cut, overwritten or gone: it is made again, and never read as it is."""
    place = bench.fresh()
    with_cache(place)
    finishes(bench, command, place)
    damaged = _damage(bench.random, [path for path in (place / "cache").rglob("*") if path.is_file()])
    finishes(bench, command, place)
    shutil.rmtree(place)
    return damaged


def damaged_checkpoint(bench: Bench, command: Command = TRAIN) -> int:
    """The newest checkpoint of a killed run is damaged: the run goes on from an earlier one, or from the start."""
    bench.undisturbed(command)
    place = bench.fresh()
    with_cache(place)
    files: list[Path] = []
    while not any(path.stat().st_size for path in files):
        child = Child([*bench.arguments(command, place / "out"), *command.again(place / "out")], place / "log")
        child.kill_after(bench.cpu_s[command.name] * bench.random.uniform(0.5, 1))
        saved = sorted(place.glob("out/checkpoints/checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
        files = [path for folder in saved[-1:] for path in folder.rglob("*") if path.is_file()]
    damaged = _damage(bench.random, files)
    finishes(bench, command, place)
    shutil.rmtree(place)
    return damaged


def _damage(chosen: random.Random, files: list[Path]) -> int:
    path = chosen.choice([path for path in files if path.stat().st_size])
    content = bytearray(path.read_bytes())
    at = chosen.randrange(len(content))
    how = chosen.choice(("cut", "garbage", "bit", "gone", "empty"))
    if how == "gone":
        path.unlink()
        return 1
    if how == "cut":
        del content[at:]
    elif how == "garbage":
        content[at : at + 64] = chosen.randbytes(64)
    elif how == "bit":
        content[at] ^= 1 << chosen.randrange(8)
    path.write_bytes(b"" if how == "empty" else content)
    return 1


def shared_cache(bench: Bench, command: Command = GGUF) -> int:
    """Two processes fill one cache at once, and half the time one of them is killed while it does."""
    bench.undisturbed(command)
    place = bench.fresh()
    with_cache(place)
    outs = [place / "out", place / "other" / "out"]
    outs[1].parent.mkdir()
    children = [Child(bench.arguments(command, out), out.parent / "log") for out in outs]
    if bench.random.random() < 0.5:
        children[0].kill_after(bench.random.uniform(0, bench.cpu_s[command.name]))
    else:
        assert children[0].wait() == 0, children[0].output()
    assert children[1].wait() == 0, children[1].output()
    same(command.result(outs[1]), bench.undisturbed(command), complete=True)
    finishes(bench, command, place)
    shutil.rmtree(place)
    return 1


def clock_jumps(bench: Bench, command: Command) -> int:
    """The wall clock goes forth and back by up to a year, at every look; durations and results do not follow it."""
    place = bench.fresh()
    with_cache(place)
    seed = bench.random.randrange(2**32)
    code, output, _ = ran(bench.arguments(command, place / "out"), place / "log", lambda: _mad_clock(seed))
    assert code == 0, output
    same(command.result(place / "out"), bench.undisturbed(command), complete=True)
    for timing in _timings(place / "out"):
        assert all(0 <= value < 3600 for value in timing.values() if isinstance(value, float)), timing
    shutil.rmtree(place)
    return 1


def _mad_clock(seed: int) -> None:
    import time

    jumps = random.Random(seed)
    year = 365 * 24 * 3600
    true, true_ns = time.time, time.time_ns
    time.time = lambda: true() + jumps.uniform(-year, year)
    time.time_ns = lambda: true_ns() + jumps.randrange(-year, year) * 10**9


def _timings(out: Path) -> list[dict[str, Any]]:
    import json

    records = [json.loads(path.read_text()) for path in out.glob("*.json")]
    return [{**record["timing"], "tokens_per_s": record.get("tokens_per_s", 0) / 1e6} for record in records]


@dataclass(frozen=True)
class Row:
    """A line of the soak's table: what is done how often to which command."""

    name: str
    command: Command
    once: Callable[[Bench, Command], int]
    every: int = 1
    """Of the rounds asked for, one in so many is run: the moment of a kill has many places to fall, a full disk few."""

    def round(self, bench: Bench, counts: Counter, said: Callable[[str], None]) -> None:
        """One round; what is not survived is told and counted."""
        counts["rounds"] += 1
        try:
            counts["faults"] += self.once(bench, self.command)
            counts["survived"] += 1
        except AssertionError as error:
            said(f"{self.name}, {self.command.name}: {error}")

    def due(self, counts: Counter, times: int) -> bool:
        """Whether so many of every row are more than there were of this one: of kills, which may come too late, those
        that struck; of all else rounds."""
        if self.once is killed:
            return counts["faults"] < times and counts["rounds"] < 4 * times
        return counts["rounds"] < -(-times // self.every)


def rows(commands: tuple[Command, ...]) -> list[Row]:
    """Every row of the table."""
    return [
        *(Row("SIGKILL", command, killed) for command in commands),
        Row("cache damaged", GGUF, damaged_cache),
        Row("cache shared by two", GGUF, shared_cache),
        Row("checkpoint damaged", TRAIN, damaged_checkpoint),
        *(Row("disk full", command, full_disk, every=5) for command in commands),
        *(Row("read-only output", command, read_only, every=5) for command in commands),
        *(Row("clock jumps", command, clock_jumps, every=5) for command in (SCAN, TRAIN)),
    ]
