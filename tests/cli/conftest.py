"""What tests of the command line share: a text on disk, and a model that must not be loaded."""

import pytest


@pytest.fixture
def text_file(tmp_path):
    """Ten documents of 30 words."""
    path = tmp_path / "text.txt"
    path.write_text("\n".join(" ".join(f"w{3 + (7 * d + i * i) % 90}" for i in range(30)) for d in range(10)))
    return path


@pytest.fixture
def unloaded(monkeypatch):
    """No model is loaded."""
    monkeypatch.setattr("spikesink.access.load", lambda *_a, **_o: pytest.fail("it was loaded"))
