"""Training from scratch: recipes, the trainer on the Hugging Face Trainer, and the monitor for anyone's training."""

from typing import TYPE_CHECKING

from spikesink.lazy import lazy

if TYPE_CHECKING:
    from spikesink.train.monitor import AnatomyCallback, AnatomyMonitor
    from spikesink.train.recipe import Recipe, load_recipe
    from spikesink.train.run import train

_LAZY = {
    "AnatomyCallback": "spikesink.train.monitor",
    "AnatomyMonitor": "spikesink.train.monitor",
    "Recipe": "spikesink.train.recipe",
    "load_recipe": "spikesink.train.recipe",
    "train": "spikesink.train.run",
}

__all__ = ["AnatomyCallback", "AnatomyMonitor", "Recipe", "load_recipe", "train"]

__getattr__ = lazy(__name__, _LAZY)
