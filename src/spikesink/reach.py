"""Whether the model hub can be reached, asked once and briefly. Importing this loads no torch."""

import socket
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies

from spikesink.errors import ModelError

TIMEOUT = 2.0
"""Seconds to wait for the hub to answer a connection."""


def is_hub_id(name: str | Path | None) -> bool:
    """Whether a name can only be one of the hub: no file or folder, and not written as a path."""
    text = str(name or "")
    return bool(text) and text.count("/") <= 1 and not text.startswith((".", "/", "~")) and not Path(text).exists()


def check_reachable(name: str, revision: str | None) -> None:
    """One try to reach the hub, or the proxy on the way to it. Raises ModelError where neither it nor the cache has the
    model: the hub's client would go on trying for half a minute."""
    from huggingface_hub import constants, try_to_load_from_cache

    endpoint = urlsplit(constants.ENDPOINT)
    proxy = getproxies().get(endpoint.scheme)
    asked = urlsplit(proxy if proxy and "//" in proxy else constants.ENDPOINT)
    if constants.HF_HUB_OFFLINE or asked.hostname is None or _answers(asked.hostname, asked.port or 443):
        return
    cached = [try_to_load_from_cache(name, file, revision=revision) for file in ("config.json", "adapter_config.json")]
    if not any(isinstance(path, str) for path in cached):
        raise ModelError(
            f"'{name}' is no local folder or file, and {endpoint.hostname} cannot be reached. Check the name and the "
            "network, give the path of a local checkpoint, or name no model for the embedded SmolLM2."
        )


def _answers(host: str, port: int) -> bool:
    try:
        with socket.create_connection((host, port), timeout=TIMEOUT):
            return True
    except OSError:
        return False
