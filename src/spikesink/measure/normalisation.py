"""What the norm makes of spike tokens: bounded, sparse, near-constant. Spec 2.4; Sun et al. 2026, eq. 23-25.

Everything streams: the mean pairwise cosine of n unit vectors is (||sum||^2 - n) / (n (n - 1)), and pairs of different
prompts are all pairs less those within a prompt.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor


class GroupStatistics:
    """Sums over the tokens of one group after one block. Vectors u = h~ / sqrt(d), so |u_i| <= 1."""

    def __init__(self, channels: list[int]) -> None:
        self.channels = channels
        self.tokens = self.prompts = 0
        self.bound = 0.0
        self._energy = self._participation = self._persistence = 0.0
        self._persistent = 0
        self._total: Tensor | None = None
        self._within = self._squared_counts = 0.0

    def update(
        self,
        vectors: Float[Tensor, "batch token d"],
        members: Bool[Tensor, "batch token"],
        before: Float[Tensor, "batch token d"] | None = None,
    ) -> None:
        """vectors: u after the block; before: u after the previous block, for persistence."""
        chosen = vectors[members]
        if len(chosen) == 0:
            return
        self.tokens += len(chosen)
        self.prompts += int(members.any(1).sum())
        self.bound = max(self.bound, float(chosen.abs().max()))
        squares = chosen.square()
        length = squares.sum(-1).clamp_min(1e-30)
        self._energy += float((squares[:, self.channels].sum(-1) / length).sum(dtype=torch.float64))
        self._participation += float((length.square() / squares.square().sum(-1)).sum(dtype=torch.float64))
        unit = chosen / length.sqrt()[:, None]
        if before is not None:
            cosine = torch.nn.functional.cosine_similarity(unit, before[members], dim=-1).clamp(-1, 1)
            self._persistence += float(cosine.sum(dtype=torch.float64))
            self._persistent += len(chosen)
        counts = members.sum(1)
        sums = torch.zeros(len(vectors), vectors.shape[-1], dtype=torch.float64, device=vectors.device)
        sums.index_add_(0, members.nonzero()[:, 0], unit.double())
        self._total = sums.sum(0) if self._total is None else self._total + sums.sum(0)
        self._within += float(sums.square().sum())
        self._squared_counts += float(counts.double().square().sum())

    def _mean(self, total: float) -> float | None:
        return total / self.tokens if self.tokens else None

    @property
    def energy_share(self) -> float | None:
        """Mean share of ||h~||^2 that lies in the channels."""
        return self._mean(self._energy)

    @property
    def participation_ratio(self) -> float | None:
        """Mean of (sum h~^2)^2 / sum h~^4: the number of channels that carry the energy, 1 to d."""
        return self._mean(self._participation)

    @property
    def persistence(self) -> float | None:
        """Mean cosine of a token's h~ after this block and after the previous one."""
        return self._persistence / self._persistent if self._persistent else None

    @property
    def cosine_within(self) -> float | None:
        """Mean cosine over pairs of different tokens of the same prompt."""
        pairs = self._squared_counts - self.tokens
        return (self._within - self.tokens) / pairs if pairs > 0 else None

    @property
    def cosine_across(self) -> float | None:
        """Mean cosine over pairs of tokens of different prompts."""
        pairs = self.tokens**2 - self._squared_counts
        if self._total is None or pairs <= 0:
            return None
        return (float(self._total.square().sum()) - self._within) / pairs


def explained_by_others(sums: Float[Tensor, "prompt d"], counts: Float[Tensor, " prompt"], energy: float) -> float:
    """Share of the vectors' energy that the mean over all *other* prompts explains.

    1 - sum_i ||v_i - m_(-s)||^2 / sum_i ||v_i||^2, with m_(-s) the mean over tokens of every prompt but token i's.
    sums: per prompt, the sum of its vectors; counts: how many; energy: sum of ||v_i||^2. Needs two prompts; can be
    negative where the mean misleads. 1 = the vector is the same in every prompt: an implicit parameter.
    """
    sums, counts = sums.double(), counts.double()
    means = (sums.sum(0) - sums) / (counts.sum() - counts)[:, None]
    gained = 2 * (means * sums).sum() - (counts * means.square().sum(1)).sum()
    return float(gained) / energy
