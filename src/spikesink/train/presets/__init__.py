"""Recipes that come with spikesink, a YAML file each."""

PRESETS = ("nano", "sinks", "small", "paper")
