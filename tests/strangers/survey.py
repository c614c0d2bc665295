"""Tries a tiny random model of every causal-LM architecture in the installed transformers: verified, refused or wrong.

`verified` needs every check of `spikesink verify`; then a whole scan is held against a naive reference that knows
nothing of layouts: the family's own eager attention maps and hidden states. A difference there is `wrong`, which must
not happen. Each family runs in a process of its own, with a limit on time and memory.
"""

import argparse
import multiprocessing
import os
import resource
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from naive import importance, perplexity, sink_numbers
from shrink import NotBuiltError, build, causal_types, token_ids

from spikesink.access import access
from spikesink.access.verify import require_verified, verify_all
from spikesink.analyse.scan import scan
from spikesink.errors import SpikesinkError
from spikesink.measures import BUILT_IN

EPSILON = 0.2
SECONDS_MAX = 600
CPU_SECONDS_MAX = 90
MEMORY_MAX = 12 * 2**30
"""Address space of one family's process, in bytes."""
LONG = 300
"""Tokens of the longest check: more than one row block."""

Row = dict[str, Any]


def try_family(model_type: str, *, anatomy: bool = True) -> Row:
    """One row of the table: `status` is verified, refused, not built or wrong."""
    row: Row = {"model_type": model_type, "status": "not built", "reason": None}
    try:
        model = build(model_type)
    except NotBuiltError as error:
        return {**row, "reason": str(error)}
    row["architecture"] = type(model).__name__
    try:
        accessed = access(model)
        record = verify_all(accessed, tokens=LONG)
        require_verified(record)
    except SpikesinkError as error:
        return {**row, "status": "refused", "reason": str(error)}
    row |= {
        "status": "verified",
        "layers": accessed.n_layers,
        "attending": len(accessed.attending),
        "checks": {check.name: check.largest for check in record.checks},
        "unchecked": [f"{check.name}: {check.reason}" for check in record.checks if check.reason],
    }
    wrong, compared = against_naive(accessed)
    row["naive"] = compared
    if wrong:
        return {**row, "status": "wrong", "reason": "; ".join(wrong)}
    if anatomy:
        row["anatomy"] = anatomy_of(accessed)
    return row


def against_naive(accessed: Any) -> tuple[list[str], list[str]]:
    """What of a scan differs from the naive reference, and what was compared."""
    model = accessed.model
    ids = token_ids(sequences=3, tokens=13)
    record = scan(accessed, ids, epsilon=EPSILON, batch_size=2)
    last: list[torch.Tensor] = []
    keep = accessed.layers[-1].layer.register_forward_hook(
        lambda _module, _args, output: last.append((output[0] if isinstance(output, tuple) else output).clone())
    )
    model.set_attn_implementation("eager")
    with torch.no_grad():
        output = model(input_ids=ids, use_cache=False, output_attentions=True, output_hidden_states=True)
    keep.remove()
    compared, wrong = ["perplexity"], []
    _hold(wrong, "perplexity", record.summary.perplexity, perplexity(output.logits, ids), 1e-4)
    hidden = [each for each in getattr(output, "hidden_states", None) or () if isinstance(each, torch.Tensor)]
    if len(hidden) == accessed.n_layers + 1:
        compared.append("residuals")
        # The last hidden state is after the final norm: the layer's own output stands in for it.
        for block, after in zip(record.lifecycle.blocks[1::2], [*hidden[1:-1], last[0]], strict=True):
            peak = block.resid_top3[0] if block.resid_top3 else None
            there = float(after.abs().max())
            _hold(wrong, f"residual after block {block.block}", peak.value if peak else 0.0, there, 1e-3)
    maps = [each for each in getattr(output, "attentions", None) or () if isinstance(each, torch.Tensor)]
    # With a learned sink, rows of one are maps from before it got its share (granite): no reference for what is left.
    before_sinks = record.sinks.virtual_mass is not None and all(float(each[0, 0, -1].sum()) > 0.999 for each in maps)
    if len(maps) == len(accessed.attending) and all(each.ndim == 4 for each in maps) and not before_sinks:
        compared.append("sinks")
        expected = sink_numbers(maps, EPSILON)
        for name in ("sun2026", "gu2025"):
            _hold(wrong, f"sink ratio {name}", getattr(record.summary, f"sink_ratio_{name}"), expected[name], 1e-9)
        for index, each in enumerate(maps):
            ours = torch.from_numpy(record.arrays["key_importance"][index]).double()[: each.shape[1]]
            off = float((ours - importance(each).mean(0)).abs().max())
            if not off < 1e-4:
                wrong.append(f"importance in attention layer {index} off by {off:.2g}")
    return wrong, compared


def _hold(wrong: list[str], name: str, ours: float, theirs: float, tolerance: float) -> None:
    if not abs(ours - theirs) <= tolerance * max(abs(theirs), 1.0):
        wrong.append(f"{name}: {ours:.6g}, naive {theirs:.6g}")


def anatomy_of(accessed: Any) -> str:
    """How many of the further measures ran and applied; an exception is shown as what it is."""
    try:
        record = scan(accessed, token_ids(sequences=4, tokens=12), measures=("all",))
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    sections = [getattr(record, name) for name in BUILT_IN]
    return f"{sum(section.applicable for section in sections)} of {len(sections)}"


def survey(
    types: list[str], *, processes: int = 1, anatomy: bool = True, shown: Callable[[Row], None] = print
) -> list[Row]:
    """Every family in a process of its own; rows in the order of `types`."""
    rows: dict[str, Row] = {}
    waiting, running = list(types), {}
    context = multiprocessing.get_context("fork")
    while waiting or running:
        while waiting and len(running) < processes:
            model_type = waiting.pop(0)
            receive, send = context.Pipe(duplex=False)
            process = context.Process(target=_child, args=(model_type, anatomy, send), daemon=True)
            process.start()
            send.close()
            running[model_type] = (process, receive, time.monotonic())
        for model_type, (process, receive, started) in list(running.items()):
            row = _received(model_type, process, receive, started)
            if row is not None:
                process.join()
                del running[model_type]
                rows[model_type] = row
                shown(row)
    return [rows[model_type] for model_type in types]


def _received(model_type: str, process: Any, receive: Any, started: float) -> Row | None:
    """The row of a process that has finished, died or run out of time; None while it works."""
    base = {"model_type": model_type, "status": "not built"}
    if receive.poll(0.05):
        try:
            row = receive.recv()
        except EOFError:
            return {**base, "reason": f"its process died (exit code {process.exitcode}): out of memory or time?"}
        return {**row, "seconds": round(time.monotonic() - started, 1)}
    if time.monotonic() - started > SECONDS_MAX:
        process.kill()
        return {**base, "reason": f"not finished after {SECONDS_MAX} s"}
    return None


def _child(model_type: str, anatomy: bool, send: Any) -> None:
    os.environ["HF_HUB_OFFLINE"] = "1"
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_MAX, MEMORY_MAX))
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS_MAX, CPU_SECONDS_MAX))
    torch.set_num_threads(1)
    try:
        send.send(try_family(model_type, anatomy=anatomy))
    except Exception as error:
        where = error.__traceback__
        while where is not None and where.tb_next is not None:
            where = where.tb_next
        place = f"{Path(where.tb_frame.f_code.co_filename).name}:{where.tb_lineno}" if where else "?"
        reason = f"{type(error).__name__} at {place}: {' '.join(str(error).split())[:200]}"
        send.send({"model_type": model_type, "status": "wrong", "reason": f"not a clean refusal: {reason}"})


def line(row: Row) -> str:
    said = row["reason"] or ", ".join([*row.get("naive", []), row.get("anatomy", "")])
    return f"{row['model_type']:28} {row['status']:10} {row.get('seconds', 0):5} s  {said}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("types", nargs="*", help="model types; default all")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--no-anatomy", action="store_true")
    options = parser.parse_args()
    import transformers

    transformers.logging.set_verbosity_error()
    started = time.monotonic()

    rows = survey(
        options.types or causal_types(),
        processes=options.processes,
        anatomy=not options.no_anatomy,
        shown=lambda row: print(line(row), flush=True),
    )
    print(Counter(row["status"] for row in rows), f"{time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    main()
