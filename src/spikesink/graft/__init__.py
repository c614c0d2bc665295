"""Graft and heal: another norm, gate or softmax in a pretrained model, a short training, and what comes back."""

from spikesink.graft.run import graft_and_heal
from spikesink.graft.settings import GraftSettings, graft_recipes

__all__ = ["GraftSettings", "graft_and_heal", "graft_recipes"]
