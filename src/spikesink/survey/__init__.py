"""Many models, revisions, texts and conditions measured alike, on the executors of studies."""
