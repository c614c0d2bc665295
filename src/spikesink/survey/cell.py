"""What a process does with one model: load it once for each dtype, and measure every text and condition on it."""

import gc
import json
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from filelock import FileLock

from spikesink.access import AccessedModel, load
from spikesink.analyse.interventions import dissociate
from spikesink.analyse.passes import ids_of
from spikesink.analyse.rounding import rounding_costs
from spikesink.analyse.scan import scan
from spikesink.bootstrap import estimate, mean, perplexity
from spikesink.data.corpus import Corpus, chosen_corpus
from spikesink.data.tokenise import tokenise
from spikesink.data.tokens import Tokens, load_token_ids
from spikesink.errors import (
    DoesNotApplyError,
    InputError,
    ModelError,
    OutputError,
    SpikesinkError,
    UnsupportedModelError,
)
from spikesink.limits import resource
from spikesink.observer import Progress
from spikesink.records import Anatomy, Frozen
from spikesink.records.files import write_files
from spikesink.records.survey import ModelRows, SurveyRow
from spikesink.study.executors import Kind
from spikesink.survey.grid import Asked, step_of
from spikesink.survey.plan import claim, forget

ROW = "row.json"
STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
HELD_OUT = 16
"""Of the sequences, at most: what interventions learn their constants on."""
SPIKES_TAKEN_AWAY = "zero_spikes,freeze_spikes"
DIGITS = 4


class Wanted(Frozen):
    """One cell that has no result yet."""

    asked: Asked
    identity: str

    @property
    def folder(self) -> str:
        """Of the cell, in that of its model."""
        kept = "".join(c if c.isalnum() or c in "-_." else "-" for c in self.asked.text_name)[:40].strip(".-")
        return f"{kept or 'text'}-{self.identity[:10]}"


class Job(Frozen):
    """One (model, revision) with its cells: what a process is handed."""

    name: str
    """Of its folder."""
    model: str
    source: str | None
    revision: str | None
    hub_revision: str | None
    commit: str | None
    weights: int | None
    """Bytes in memory, in the widest dtype that is asked for."""
    size: int
    download: int
    keep: bool
    loading: dict[str, Any]
    """Further options of `load`."""
    further: tuple[str, ...]
    """Measures of a scan."""
    interventions: bool
    rounding: bool
    sinks: dict[str, Any]
    wanted: list[Wanted]
    place: str
    """Of its folder on the machine that started the survey."""

    def row(self, wanted: Wanted, **outcome: Any) -> SurveyRow:
        asked = wanted.asked
        return SurveyRow.model_validate(
            {
                **asked.model_dump(exclude={"text", "text_name", "sequences"}),
                "model": self.model, "revision": self.revision, "text": asked.text_name, "identity": wanted.identity,
                "folder": f"runs/{self.name}/{wanted.folder}", "commit": self.commit,
                "step": step_of(self.revision), **outcome,
            }
        )  # fmt: skip

    def kept(self, folder: Path) -> dict[str, SurveyRow]:
        """Rows that a process has left in the folder, by their identity."""
        rows = {}
        for wanted in self.wanted:
            with suppress(OSError, ValueError):
                row = SurveyRow.model_validate(json.loads((folder / wanted.folder / ROW).read_text(encoding="utf-8")))
                if row.identity == wanted.identity:
                    rows[row.identity] = row
        return rows


def run_packed(text: str, folder: Path, progress: Progress) -> ModelRows:
    """Measure every cell of a packed job in `folder`; what an earlier process finished there is taken over.

    Raises SpikesinkError where the model cannot be had; a model or text that is refused is a row that says why.
    """
    job = Job.model_validate_json(text)
    folder.mkdir(parents=True, exist_ok=True)
    with suppress(OSError):
        # From here on: what the process held at most for the model before is none of this one's.
        CLEAR.write_text("5")
    with FileLock(folder / ".lock"):
        rows = job.kept(folder)
        for dtype in dict.fromkeys(wanted.asked.dtype for wanted in job.wanted):
            wanted = [each for each in job.wanted if each.asked.dtype == dtype and each.identity not in rows]
            for row in _rows(job, dtype, wanted, folder, progress):
                write_files(folder / Path(row.folder or "").name, {ROW: row.model_dump_json().encode()}, force=True)
                rows[row.identity] = row
    forget(job)
    return ModelRows(name=job.name, peak_bytes=_peak_bytes(), rows=[rows[wanted.identity] for wanted in job.wanted])


def _peak_bytes() -> int | None:
    """The most memory that this process held since it began with the model, or at all where Linux does not say."""
    with suppress(OSError, StopIteration):
        status = STATUS.read_text().splitlines()
        return int(next(line for line in status if line.startswith("VmHWM")).split()[1]) * 1024
    return None if resource is None else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _rows(job: Job, dtype: str, wanted: list[Wanted], folder: Path, progress: Progress) -> Any:
    """The model is loaded once, and let go of before the next dtype's."""
    if not wanted:
        return
    try:
        claim(job)
        accessed = load(
            job.source, dtype=None if dtype == "auto" else dtype, revision=job.hub_revision, progress=progress,
            **job.loading,
        )  # fmt: skip
    except UnsupportedModelError as error:
        yield from (job.row(each, status="refused", error=str(error)) for each in wanted)
        return
    failures: list[SpikesinkError] = []
    for each in wanted:
        started = time.perf_counter()
        try:
            outcome = {"status": "finished", **_measured(job, accessed, each, folder / each.folder, progress)}
        except (ModelError, OutputError) as error:
            # No fault of the text: what else there is to measure comes first, then it is tried again.
            failures.append(error)
            continue
        except SpikesinkError as error:
            outcome = {"status": "refused", "error": str(error)}
        yield job.row(each, **outcome, seconds=time.perf_counter() - started)
    del accessed
    gc.collect()
    if failures:
        raise failures[0]


def _measured(job: Job, accessed: AccessedModel, wanted: Wanted, folder: Path, progress: Progress) -> dict[str, Any]:
    tokens = _tokens(wanted.asked, accessed)
    anatomy = scan(accessed, tokens, measures=job.further, progress=progress, **job.sinks)
    anatomy.save(folder, force=True)
    outcome = {**_facts(accessed), **figures(anatomy), "bos_added": tokens.bos_added, "sequences": len(tokens.ids)}
    if job.rounding:
        try:
            plain = anatomy.arrays["sequence_loss_nats"]
            costs = rounding_costs(accessed, ids_of(tokens), plain, progress=progress)
            outcome |= {"int8_cost_nats": costs.int8, "fp8_cost_nats": costs.fp8}
        except DoesNotApplyError as reason:
            outcome["rounding_missing"] = str(reason)
    if job.interventions:
        record = dissociate(
            accessed, tokens, which=SPIKES_TAKEN_AWAY, held_out=HELD_OUT, folder=folder, progress=progress, **job.sinks
        )
        record.save(folder, force=True)
        rows = {row.name: row.loss_difference_nats for row in record.interventions if row.applicable}
        outcome |= {"zero_cost_nats": rows.get("zero_spikes"), "freeze_cost_nats": rows.get("freeze_spikes")}
    return outcome


def _tokens(asked: Asked, accessed: AccessedModel) -> Tokens:
    text = asked.text
    if text.ids:
        return load_token_ids(Path(text.path or ""), asked.sequences)
    if accessed.tokenizer is None:
        raise InputError(
            f"It has no tokenizer that can be loaded{accessed.why_untokenised}; give token ids (.npy) as its text."
        )
    return tokenise(
        corpus_of(asked), accessed.tokenizer, seq_len=asked.seq_len or 0, sequences=asked.sequences, bos=asked.bos,
        pack=text.pack, chat_template=asked.chat_template,
    )  # fmt: skip


def corpus_of(asked: Asked) -> Corpus:
    """The documents of a text. Raises InputError."""
    return chosen_corpus(asked.text.path, asked.text.dataset, asked.text.field)


def _facts(accessed: AccessedModel) -> dict[str, Any]:
    facts = accessed.provenance
    return {
        "family": facts["model_type"], "arrangement": arrangement(accessed), "d_model": accessed.d_model,
        "blocks": accessed.n_blocks, "parameters": accessed.model.num_parameters(), "vocab_size": accessed.vocab_size,
        "computed_in": facts["dtype"],
        "quantised_from": facts.get("gguf_quantisation") or facts.get("dequantised_from"),
    }  # fmt: skip


def arrangement(accessed: AccessedModel) -> str:
    """Where the norms of the first layer stand, in the field's words."""
    block = accessed.layers[0].attention
    names = {(True, False): "pre-norm", (True, True): "sandwich", (False, True): "output norm"}
    place = names.get((block.input_norm is not None, block.output_norm is not None), "no block norm")
    place = "post-norm" if accessed.post_norm else "parallel" if accessed.parallel else place
    norm = block.input_norm or block.output_norm
    kind = ", DynamicTanh" if type(norm).__name__ == "DynamicTanh" else ""
    normed = any(getattr(block.inner, name, None) is not None for name in ("q_norm", "q_layernorm", "query_layernorm"))
    return f"{place}{kind}{' + QK norm' if normed else ''}"


def figures(anatomy: Anatomy) -> dict[str, Any]:
    """What a row takes from a scan."""
    summary, sinks, arrays = anatomy.summary, anatomy.sinks, anatomy.arrays
    losses = arrays["sequence_loss_nats"]
    importance = arrays["key_importance"]
    rows = {block: index for index, block in enumerate(arrays["attention_blocks"].tolist())}
    heads = [importance[rows[head.block], head.head] for head in sinks.heads if head.is_sink]
    on = np.flatnonzero((np.stack(heads) > sinks.importance_min).any(axis=0)).tolist() if heads else []
    probe = getattr(anatomy.further("trigger"), "probe", None)
    counts = {count.criterion: count.first_count for count in probe.counts} if probe is not None else {}
    peaks = [cycle.resid_top3[0].value for cycle in anatomy.lifecycle.blocks if cycle.resid_top3]
    return {
        # Every sequence makes as many predictions.
        "perplexity": estimate(perplexity, losses, np.ones_like(losses)),
        "spike": summary.spike, "max_over_median": summary.max_over_median, "has_spikes": summary.has_spikes,
        "sequence_spike": estimate(mean, arrays["sequence_spike"]),
        "spike_block": summary.spike_block, "spike_channels": summary.spike_channels,
        "step_up_blocks": summary.step_up_blocks, "step_down_blocks": summary.step_down_blocks,
        "life_cycle": [float(f"{value:.{DIGITS}g}") for value in peaks],
        "sink_ratio": estimate(mean, arrays["sequence_sink_ratio"]), "has_sinks": summary.has_sinks,
        "sink_heads": summary.sink_head_count, "heads": summary.head_count,
        "first_key_importance": sinks.first_key_importance, "sink_positions": on,
        "spike_vocabulary": counts.get("sun2024"),
    }  # fmt: skip


def failed(job: Job, error: str, attempts: int) -> ModelRows:
    """What stands for a model that could not be measured: the rows that are there, and why the others are not."""
    kept = job.kept(Path(job.place))
    forget(job)
    rows = [kept.get(each.identity) or job.row(each, status="failed", error=error) for each in job.wanted]
    return ModelRows(name=job.name, attempts=attempts, rows=rows)


def pack(job: Job, threads: int) -> str:
    """The job as text; the process is given its threads by the executor."""
    return job.model_dump_json()


def memory(job: Job) -> int:
    """Bytes that the job's process will hold: its weights, and as much beside them as this process does."""
    return 0 if job.weights is None else job.weights + psutil.Process().memory_info().rss


SURVEYED = Kind("spikesink.survey.cell:run_packed", pack, ModelRows, failed, "scan", reuse=True, memory=memory)
"""The models of a survey, for an executor."""
