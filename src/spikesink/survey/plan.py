"""What every model needs before any of it is downloaded: its size from headers and the hub's metadata, against what
this machine has; and, while models run, who may start."""

import hashlib
import platform
import shutil
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import psutil
import torch
from huggingface_hub import (
    CachedRevisionInfo,
    HfApi,
    HFCacheInfo,
    constants,
    scan_cache_dir,
    try_to_load_from_cache,
)
from huggingface_hub.errors import CacheNotFound, RepositoryNotFoundError, RevisionNotFoundError

from spikesink.access import adapter
from spikesink.access.checkpoint import content_sha256, embedded_gguf, find_checkpoint, model_files
from spikesink.access.gguf_model import shards
from spikesink.access.load import DTYPES
from spikesink.access.stored import read_stored
from spikesink.atomic import data_sha256
from spikesink.errors import ModelError, SpikesinkError
from spikesink.reach import CONFIGS, check_reachable, check_revision, is_hub_id
from spikesink.requirement import dtype_name
from spikesink.survey.grid import EMBEDDED, STEP, step_of

GIB = 2**30
HUB_TIMEOUT_S = 20.0
WEIGHTS = ("model.safetensors", "model-")
PICKLES = ("pytorch_model.bin", "pytorch_model-")


@dataclass(frozen=True)
class Planned:
    """One revision of a model, not loaded yet."""

    source: str | None
    """What `load` takes; None for the embedded model."""
    revision: str | None
    """As the survey calls it."""
    identity: str
    """Hash of the files that make it, or commit; of an adapter a hash of its own and its base's."""
    hub_revision: str | None = None
    """What `load` is told: of a folder of checkpoints, nothing."""
    commit: str | None = None
    """Of the hub that its weights are of: of an adapter, those of its base where that is on the hub."""
    elements: int | None = None
    """Numbers in its weights; None where only loading can tell."""
    size: int = 0
    """Bytes of its weights on the hub; 0 for what is local."""
    download: int = 0
    """Those of them that are not on this disk yet."""


def revisions_of(source: str, asked: list[str]) -> list[str | None]:
    """The revisions that a survey's list means, in the order of their steps. Raises ModelError."""
    folder = Path(source).expanduser()
    of_hub = is_hub_id(source) and source != EMBEDDED
    if asked != ["all"] or not (folder.is_dir() or of_hub):
        # What has no revisions is refused where each is planned.
        return list(asked) or [None]
    if folder.is_dir():
        names = [path.name for path in folder.iterdir() if STEP.search(path.name) and (path / "config.json").is_file()]
    else:
        with _hub(source, None):
            refs = HfApi().list_repo_refs(source)
        names = [ref.name for ref in [*refs.branches, *refs.tags]]
    if not names:
        raise ModelError(f"'{source}' has no folders of checkpoints (step100, checkpoint-100); name the revisions.")
    return sorted(names, key=lambda name: (step_of(name) or 0, name))


def planned(source: str, revision: str | None, *, allow_pickle: bool = False) -> Planned:
    """Size and identity of one revision, without its weights; those of an adapter on the hub are fetched, to know its
    base. Raises SpikesinkError where it cannot be had."""
    if source == EMBEDDED and not Path(source).exists():
        check_revision(None, revision)
        return _local(embedded_gguf(), allow_pickle, source=None)
    if is_hub_id(source):
        plan, adapts = _on_hub(source, revision, allow_pickle)
        found = adapter.find_adapter(source, revision=revision, allow_pickle=allow_pickle) if adapts else None
        return plan if found is None else _adapted(plan, found, allow_pickle)
    # With its whole path, since the end of one may look like a hub id.
    place = Path(source).expanduser().absolute()
    if place.is_file():
        check_revision(source, revision)
    place /= revision or ""
    found = adapter.find_adapter(place, revision=None, allow_pickle=allow_pickle)
    if found is None:
        return _local(place, allow_pickle, source=str(place), revision=revision)
    files = sorted(path for path in place.iterdir() if path.is_file())
    return _adapted(Planned(str(place), revision, content_sha256(files)), found, allow_pickle)


def _local(place: Path, allow_pickle: bool, *, source: str | None, revision: str | None = None) -> Planned:
    """Of a GGUF file with all its shards, or of a folder."""
    if place.is_file() and place.suffix.lower() == ".gguf":
        headers = shards(place)
        elements = sum(header.elements for header in headers.values())
        return Planned(source, revision, content_sha256(list(headers)), elements=elements)
    checkpoint = find_checkpoint(place, revision=None, allow_pickle=allow_pickle)
    stored = read_stored(checkpoint.name, checkpoint.weights)
    files = model_files(place.resolve(), checkpoint.weights)
    return Planned(source, revision, content_sha256(files), elements=stored.elements if stored else None)


def _adapted(own: Planned, found: adapter.Adapter, allow_pickle: bool) -> Planned:
    """An adapter with its base, whose weights are those that are loaded."""
    name = found.base
    try:
        if is_hub_id(name):
            base = _on_hub(name, found.base_revision, allow_pickle)[0]
        else:
            base = _local(Path(name).expanduser().absolute(), allow_pickle, source=name)
    except ModelError as error:
        raise ModelError(f"'{found.name}' is an adapter of '{name}', which cannot be had: {error}") from error
    identity = hashlib.sha256(f"{own.identity} {base.identity}".encode()).hexdigest()
    return replace(
        base, source=own.source, revision=own.revision, identity=identity, hub_revision=own.hub_revision,
        commit=base.commit or own.commit,
    )  # fmt: skip


@contextmanager
def _hub(name: str, revision: str | None) -> Iterator[None]:
    """The hub's answers as errors of ours."""
    try:
        yield
    except RevisionNotFoundError as error:
        raise ModelError(
            f"'{name}' has no revision '{revision}' on the hub; --revisions all takes those it has."
        ) from error
    except RepositoryNotFoundError as error:
        raise ModelError(f"'{name}' is no local folder or file, and the hub has no such model for you.") from error
    except SpikesinkError:
        raise
    except Exception as error:
        raise ModelError(f"The hub did not answer for '{name}' ({_short(error)}); try again.") from error


def _on_hub(name: str, revision: str | None, allow_pickle: bool) -> tuple[Planned, bool]:
    """Its weights as the hub has them, and whether they are an adapter's."""
    check_reachable(name, revision)
    if constants.HF_HUB_OFFLINE:
        # Only the cache answers, which has one of them: what is there needs no download.
        cached = [try_to_load_from_cache(name, file, revision=revision) for file in CONFIGS]
        configs = [Path(file) for file in cached if isinstance(file, str)]
        commit = configs[0].parent.name
        return Planned(name, revision, commit, revision, commit), configs[-1].name == adapter.CONFIG
    with _hub(name, revision):
        info = HfApi().model_info(name, revision=revision, files_metadata=True, timeout=HUB_TIMEOUT_S)
    files = {sibling.rfilename: sibling.size or 0 for sibling in info.siblings or []}
    chosen = _weights(files, WEIGHTS, ".safetensors")
    if not chosen and allow_pickle:
        chosen = _weights(files, PICKLES, ".bin")
    missing = [file for file in chosen if not isinstance(try_to_load_from_cache(name, file, revision=info.sha), str)]
    elements = info.safetensors.total if info.safetensors else None
    size, download = (sum(files[file] for file in some) for some in (chosen, missing))
    plan = Planned(name, revision, str(info.sha), revision, info.sha, elements, size, download)
    return plan, adapter.CONFIG in files


def _weights(files: dict[str, int], stems: tuple[str, str], suffix: str) -> list[str]:
    """What transformers would fetch: the one file where there is one, else the shards."""
    whole, shards = stems
    return [whole] if whole in files else [name for name in files if name.startswith(shards) and name.endswith(suffix)]


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def weight_bytes(plan: Planned, dtypes: list[str]) -> int | None:
    """Bytes of the weights in memory, in the widest of these dtypes; None where that is not known."""
    if plan.elements is None:
        return None
    sizes = []
    for dtype in dtypes:
        sizes.append(4 if dtype == "auto" else DTYPES[dtype_name(dtype)].itemsize)
    return plan.elements * max(sizes)


@cache
def gpus() -> int:
    return torch.cuda.device_count()


def free_memory() -> int:
    """Bytes that a model may take: of one GPU, or of this machine."""
    return torch.cuda.mem_get_info(0)[0] if gpus() else psutil.virtual_memory().available


def free_disk() -> int:
    """Bytes that are free where the hub's client keeps what it downloads."""
    path = Path(constants.HF_HUB_CACHE)
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free


def free() -> tuple[int, int]:
    """Bytes of memory and of disk that this machine has left."""
    return free_memory(), free_disk()


class Room:
    """Memory and disk of this machine, and who may take a part of them; a job has `weights` and `download` in bytes.

    What a process needs beside its weights is measured on the ones that have ended: until one has, models run alone.
    """

    def __init__(self, *, keep: bool) -> None:
        self.keep = keep
        self.measure([free()])
        self.beside: int | None = None
        self.running: list[Any] = []
        self.changed = threading.Condition()

    def measure(self, machines: list[tuple[int, int]]) -> None:
        """Memory and disk of each machine: of several, one that has enough is found for a job by Ray."""
        self.machines = len(machines)
        self.memory, self.disk = (max(each) for each in zip(*machines, strict=True)) if machines else (sys.maxsize,) * 2

    def refusal(self, job: Any) -> str | None:
        """Why a job can never run here, None where it can; with `keep`, what fits is counted as taken."""
        if job.weights is not None and job.weights > self.memory:
            return (
                f"Its weights need {job.weights / GIB:.1f} GiB of memory, {self.memory / GIB:.1f} GiB are free; try "
                "--dtype bfloat16 or a machine with more."
            )
        together = self.keep and self.machines == 1
        if job.download > self.disk:
            advice = "free some, or pass --no-keep" if together else "free some"
            return (
                f"{lacks_disk(job.download, self.disk, ' beside the models before it' if together else '')}; {advice}."
            )
        if together:
            self.disk -= job.download
        return None

    def learn(self, job: Any, peak_bytes: int | None) -> None:
        """What a process that has ended held at most tells what others will need beside their weights."""
        if peak_bytes is not None and job.weights is not None:
            with self.changed:
                self.beside = max(self.beside or 0, peak_bytes - job.weights, 0)
                self.changed.notify_all()

    @contextmanager
    def taken(self, job: Any) -> Iterator[None]:
        """Wait until the job fits beside those that run, and count it among them."""
        with self.changed:
            self.changed.wait_for(lambda: self._fits(job))
            self.running.append(job)
        try:
            yield
        finally:
            with self.changed:
                self.running.remove(job)
                self.changed.notify_all()

    def _fits(self, job: Any) -> bool:
        together = [*self.running, job]
        if not self.running:
            return True
        if self.beside is None or any(each.weights is None for each in together):
            return False
        # A GPU a model; this machine's memory then is not what runs out.
        memory = gpus() > 0 or sum(each.weights + self.beside for each in together) <= self.memory
        return memory and (self.keep or sum(each.download for each in together) <= self.disk)


def lacks_disk(needed: int, disk: int, beside: str = "") -> str:
    """The start of a sentence that refuses."""
    return f"Its weights need {needed / GIB:.3g} GiB of disk, {disk / GIB:.3g} GiB are free{beside}"


def claim(job: Any) -> None:
    """Before a model of the hub is loaded: what this machine's cache lacks must fit, and is marked where it goes again.

    Raises ModelError.
    """
    if job.commit is None or not job.size or _mark(job.commit).exists():
        return
    names = [file.file_name for revision in _cached(job.commit)[1] for file in revision.files]
    if any(name.endswith((".safetensors", ".bin")) for name in names):
        return
    disk = free_disk()
    if job.size > disk:
        raise ModelError(f"{lacks_disk(job.size, disk, f' on {platform.node()}')}; free some.")
    if not job.keep:
        _mark(job.commit).parent.mkdir(parents=True, exist_ok=True)
        _mark(job.commit).touch()


def forget(job: Any) -> None:
    """Remove from this machine's cache what was downloaded for a survey that keeps nothing."""
    if job.keep or job.commit is None or not _mark(job.commit).exists():
        return
    cached, revisions = _cached(job.commit)
    if cached is not None and revisions:
        cached.delete_revisions(job.commit).execute()
    _mark(job.commit).unlink(missing_ok=True)


def _mark(commit: str) -> Path:
    # In the one folder of the cache that its owner takes for no model's.
    return Path(constants.HF_HUB_CACHE) / ".locks" / f"spikesink-{commit}"


def _cached(commit: str) -> tuple[HFCacheInfo | None, list[CachedRevisionInfo]]:
    """The hub's cache, and what it has of a commit."""
    try:
        cached = scan_cache_dir(constants.HF_HUB_CACHE)
    except CacheNotFound:
        return None, []
    return cached, [each for repo in cached.repos for each in repo.revisions if each.commit_hash == commit]


def identity(plan: Planned, cell: Any, options: dict[str, Any], text_sha256: str) -> str:
    """What decides a cell's result, in one hash."""
    content = [plan.identity, cell.model_dump(mode="json", exclude={"text_name"}), text_sha256, options]
    return data_sha256(content)[:32]
