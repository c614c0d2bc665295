"""The gated FFN as a quadratic amplifier: channel k is h~^T U_k h~. Spec 2.2; Sun et al. 2026, eq. 15-19.

U_k = W_gate^T diag(W_down[k]) W_up and S_k = (U_k + U_k^T) / 2. No U_k is built for the norms of all channels, since
||U_k||_F^2 = w^T ((W_gate W_gate^T) * (W_up W_up^T)) w with w = W_down[k].
"""

from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from spikesink.records.sections.amplifier import Prediction
from spikesink.weights import GatedFFN

ROWS = 512
"""d_ffn rows handled at once: two Gram blocks of ROWS x d_ffn in memory."""
DENSE_MAX = 96
"""Up to this many channels the dense eigendecomposition is used: Lanczos needs more vectors than there would be."""
LANCZOS_VECTORS = 24

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": functional.silu,
    "swish": functional.silu,
    "gelu": functional.gelu,
    "gelu_new": lambda gate: functional.gelu(gate, approximate="tanh"),
    "gelu_pytorch_tanh": lambda gate: functional.gelu(gate, approximate="tanh"),
    "relu": functional.relu,
    "sigmoid": torch.sigmoid,
    "linear": lambda gate: gate,
}


def channel_norms(ffn: GatedFFN, accumulate: torch.dtype | None = None, rows: int = ROWS) -> Float[Tensor, " d"]:
    """||U_k||_F of every output channel k, (d,), in O(d d_ffn^2) time and O(rows d_ffn) memory.

    accumulate: dtype of the Gram blocks and sums, e.g. torch.float64; default the weights' own. The Gram matrices
    are symmetric, so only blocks on and above the diagonal are made and those above count twice.
    """
    gate, up, down = (matrix.to(accumulate) if accumulate else matrix for matrix in (ffn.gate, ffn.up, ffn.down))
    squares = torch.zeros(down.shape[0], dtype=down.dtype, device=down.device)
    for start in range(0, ffn.d_ffn, rows):
        stop = min(start + rows, ffn.d_ffn)
        gram = (gate[start:stop] @ gate[start:].T).mul_(up[start:stop] @ up[start:].T)
        gram[:, stop - start :] *= 2
        squares += ((down[:, start:] @ gram.T) * down[:, start:stop]).sum(1)
    # Rounding may leave a zero norm slightly below zero.
    return squares.clamp_min(0).sqrt()


def amplifier(ffn: GatedFFN, channel: int) -> Float[Tensor, "d d"]:
    """U_k of one channel, (d, d)."""
    return (ffn.gate.T * ffn.down[channel]) @ ffn.up


def spectrum(
    ffn: GatedFFN, channel: int, count: int = 8, *, dense: bool = False
) -> tuple[Float[np.ndarray, " count"], Float[np.ndarray, "count d"]]:
    """Largest eigenvalues of S_k by magnitude, (count,), and their unit eigenvectors, (count, d).

    By matrix-free Lanczos, or by a dense decomposition on request or for small d. Eigenvectors have their largest entry
    positive, so that two runs agree.
    """
    if dense or ffn.d_model <= max(DENSE_MAX, 2 * count):
        full = amplifier(ffn, channel).double()
        values, vectors = (t.cpu().numpy() for t in torch.linalg.eigh((full + full.T) / 2))
    else:
        values, vectors = _lanczos(ffn, channel, count)
    order = np.argsort(-np.abs(values), kind="stable")[:count]
    rows = vectors.T[order]
    signs = np.sign(rows[np.arange(len(rows)), np.abs(rows).argmax(1)])
    return values[order], rows * signs[:, None]


def _lanczos(ffn: GatedFFN, channel: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    from scipy.sparse.linalg import LinearOperator, eigsh

    weights = ffn.down[channel]

    def multiply(vector: np.ndarray) -> np.ndarray:
        hidden = torch.from_numpy(np.ascontiguousarray(vector.ravel())).to(weights)
        gate, up = ffn.gate @ hidden, ffn.up @ hidden
        product = (weights * up) @ ffn.gate + (weights * gate) @ ffn.up
        return (product / 2).double().cpu().numpy()

    size = (ffn.d_model, ffn.d_model)
    operator = LinearOperator(size, matvec=multiply, dtype=np.float64)  # type: ignore[call-arg]
    first = np.random.default_rng(0).standard_normal(ffn.d_model)
    vectors = max(LANCZOS_VECTORS, 2 * count + 1)
    values, eigenvectors = eigsh(operator, k=count, which="LM", v0=first, ncv=vectors, tol=1e-7)  # type: ignore[arg-type]
    return values, eigenvectors


def symmetric_norm(ffn: GatedFFN, channel: int) -> float:
    """||S_k||_F: the share of lambda* in the spectrum is lambda*^2 / ||S_k||_F^2."""
    full = amplifier(ffn, channel)
    return float(((full + full.T) / 2).double().norm())


def quadratic(ffn: GatedFFN, hidden: Float[Tensor, "token d"], channel: int) -> Float[Tensor, " token"]:
    """h~^T S_k h~, (token,): the channel's output if the gate were the identity. Eq. 15-17."""
    return ((hidden @ ffn.gate.T) * (hidden @ ffn.up.T)) @ ffn.down[channel]


def rank_one(value: float, vector: Float[Tensor, " d"], hidden: Float[Tensor, "token d"]) -> Float[Tensor, " token"]:
    """lambda* ||h~||^2 cos^2(s*, h~), (token,); with a norm in front ||h~||^2 = d. Eq. 18-19, erratum in spec 2.2."""
    return value * (hidden @ vector).square()


def output(ffn: GatedFFN, hidden: Float[Tensor, "token d"], channel: int) -> Float[Tensor, " token"]:
    """The channel's true output, (token,). Eq. 12."""
    activated = ACTIVATIONS[ffn.activation](hidden @ ffn.gate.T)
    return (activated * (hidden @ ffn.up.T)) @ ffn.down[channel]


def gate_identity(
    ffn: GatedFFN, hidden: Float[Tensor, "token d"]
) -> tuple[Float[np.ndarray, " token"], Float[np.ndarray, " token"]]:
    """How near the gate is to the identity: cos(act(g), g) and ||act(g)|| / ||g||, g = W_gate h~, each (token,).

    About 1 and 1 at spike tokens of step-up and step-down FFNs. Spec 2.2.
    """
    gate = hidden @ ffn.gate.T
    activated = ACTIVATIONS[ffn.activation](gate)
    cosine = functional.cosine_similarity(activated, gate, dim=-1)
    ratio = activated.norm(dim=-1) / gate.norm(dim=-1).clamp_min(1e-30)
    return cosine.double().cpu().numpy(), ratio.double().cpu().numpy()


def fit(predicted: np.ndarray, true: np.ndarray) -> Prediction:
    """sum(predicted) / sum(true) and R^2 about the mean of the truth; both (token,).

    None where they have no meaning: no tokens, sums or variance of zero.
    """
    if len(true) == 0:
        return Prediction(n=0, ratio=None, r2=None)
    total, variance = float(true.sum()), float(((true - true.mean()) ** 2).sum())
    ratio = float(predicted.sum()) / total if total != 0 else None
    r2 = 1 - float(((true - predicted) ** 2).sum()) / variance if variance > 0 else None
    return Prediction(n=len(true), ratio=ratio, r2=r2)
