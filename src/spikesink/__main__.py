"""`python -m spikesink`, so that launchers such as torchrun can start it."""

from spikesink.cli.main import run

run()
