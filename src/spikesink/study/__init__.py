"""Studies: grids of (variant, seed) training runs, resumable, on this machine or on Ray, as a table and verdicts."""

STUDIES = ("optimisation", "ffn", "normalisation", "heads", "gating", "context", "beyond", "scaling")
