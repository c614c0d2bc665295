"""A text on disk to run the command line on."""

import pytest


@pytest.fixture
def text_file(tmp_path):
    """Ten documents of 30 words."""
    path = tmp_path / "text.txt"
    path.write_text("\n".join(" ".join(f"w{3 + (7 * d + i * i) % 90}" for i in range(30)) for d in range(10)))
    return path
