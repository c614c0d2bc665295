"""A short test whether the model hub can be reached. Importing this loads no torch."""

import socket
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies

from spikesink.errors import InputError, ModelError

TIMEOUT = 2.0
"""Seconds to wait for the hub to answer a connection."""
CONFIGS = ("config.json", "adapter_config.json")
"""One of them is there where a model is."""


def is_hub_id(name: str | Path | None) -> bool:
    """Whether a name can only be one of the hub: no file or folder, and not written as a path."""
    text = str(name or "")
    return bool(text) and text.count("/") <= 1 and not text.startswith((".", "/", "~")) and not Path(text).exists()


def check_revision(name: str | Path | None, revision: str | None) -> None:
    """Raise ModelError for a revision of what has none: only a model of the hub does."""
    if revision is not None and not is_hub_id(name):
        what = "the embedded model" if name is None else f"'{name}' is a local file or folder, which"
        raise ModelError(
            f"Got the revision '{revision}', but {what} has none; leave --revision out, or name a hub model."
        )


def check_reachable(name: str, revision: str | None) -> None:
    """One try to reach the hub, or the proxy on the way to it. Raises ModelError where neither it nor the cache has the
    model, or offline the cache: the hub's client would go on trying for half a minute."""
    why = unreachable()
    if why is not None and not _cached(name, revision):
        raise ModelError(
            f"'{name}' is no local folder or file, nor in the cache, and {why}. Check the name and the network, give "
            "the path of a local checkpoint, or name no model for the embedded SmolLM2."
        )


def check_dataset_reachable(name: str) -> None:
    """The same of a data set, whose cache is looked at where it is said that there is no hub. Raises InputError."""
    from huggingface_hub import constants

    why = unreachable()
    if why is not None and not constants.HF_HUB_OFFLINE:
        raise InputError(
            f"The data set '{name}' cannot be had: {why}. Check the network, set HF_HUB_OFFLINE=1 for one that is in "
            "the cache, or give a local file: --text FILE."
        )


def unreachable() -> str | None:
    """Why the hub cannot be asked: it is said so, or neither it nor the proxy on the way to it answers; else None."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    endpoint = urlsplit(constants.ENDPOINT)
    proxy = getproxies().get(endpoint.scheme)
    asked = urlsplit(proxy if proxy and "//" in proxy else constants.ENDPOINT)
    if asked.hostname is None or _answers(asked.hostname, asked.port or 443):
        return None
    return f"{endpoint.hostname} cannot be reached"


def _cached(name: str, revision: str | None) -> bool:
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        files = [try_to_load_from_cache(name, file, revision=revision) for file in CONFIGS]
    except HFValidationError:
        return False
    return any(isinstance(file, str) for file in files)


def _answers(host: str, port: int) -> bool:
    try:
        with socket.create_connection((host, port), timeout=TIMEOUT):
            return True
    except OSError:
        return False
