"""Life cycle of a spike: which blocks make it and which take it away, from signed contributions. Spec 2.1.

Every block writes additively (eq. 14), so at a spike token the spike channels' value is a sum over blocks. A block is a
step-up block if it comes no later than the block where the spike is read and its write, signed along the spike, is at
least `share_min` of the plateau; a step-down block if it comes later and its write is at most minus that.
"""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class StepCriteria:
    """Middle blocks contribute 2-3 orders of magnitude less than the plateau; a tenth of it separates them."""

    share_min: float = 0.1


@dataclass(frozen=True)
class StepResult:
    """Share of the plateau that each block contributes, and the blocks that the rule names."""

    shares: dict[int, float]
    plateau: float
    step_up: list[int]
    step_down: list[int]


def main_step_up(steps: StepResult | None) -> int | None:
    """The step-up FFN block that makes most of the plateau: the one whose s* is meant. None where no FFN steps up.

    First or last would hang on a small step near the limit of the rule.
    """
    ffns = [block for block in steps.step_up if block % 2 == 0] if steps is not None else []
    return max(ffns, key=lambda block: (steps.shares[block], -block)) if steps is not None and ffns else None


def find_steps(
    writes: dict[int, Tensor], residuals: dict[int, Tensor], verdict_block: int, criteria: StepCriteria
) -> StepResult:
    """Apply the rule to gathered writes and residuals, each (token, channel) per block.

    The sign of each token and channel is that of its residual at the verdict's block, so that either sign adds.
    """
    sign = residuals[verdict_block].sign()
    plateau = float((residuals[verdict_block] * sign).mean())
    shares = {block: float((write * sign).mean()) / plateau for block, write in sorted(writes.items())}
    up = [block for block, share in shares.items() if block <= verdict_block and share >= criteria.share_min]
    down = [block for block, share in shares.items() if block > verdict_block and share <= -criteria.share_min]
    return StepResult(shares=shares, plateau=plateau, step_up=up, step_down=down)
