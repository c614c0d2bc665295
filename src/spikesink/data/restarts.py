"""Where in a sequence BOS stands again, so that it is not the first token alone."""

import numpy as np

from spikesink.errors import InputError


def check_restarts(restarts: int, seq_len: int, *, bos: bool) -> None:
    """Raises InputError where there is no BOS, or no room for so many behind the second token."""
    if restarts > seq_len - 2 or (restarts and not bos):
        raise InputError(
            f"data.source.restarts is {restarts} at seq_len {seq_len}, data.bos {str(bos).lower()}; expected at "
            f"most {seq_len - 2}, and BOS."
        )


def restart_places(rng: np.random.Generator, seq_len: int, restarts: int) -> list[int]:
    """So many places behind the second token, at random; draws nothing for none."""
    return rng.choice(np.arange(2, seq_len), restarts, replace=False).tolist() if restarts else []
