"""Real tokens on any machine: every .py file of the standard library of the Python that runs."""

import hashlib
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from spikesink.data.corpus import Corpus


def python_source() -> Corpus:
    """A document a file, in the order of their paths; installed packages are left out. Its hash names the Python."""
    root = Path(sysconfig.get_path("stdlib"))
    paths = [path for path in sorted(root.rglob("*.py")) if not {"site-packages", "dist-packages"} & set(path.parts)]
    digest = hashlib.sha256()
    for path in paths:
        text = _text(path)
        if text is not None:
            digest.update(str(path.relative_to(root)).encode() + b"\0" + text.encode() + b"\0")

    def documents() -> Iterator[str]:
        for path in paths:
            text = _text(path)
            if text is not None:
                yield text

    description = f"a .py file of the standard library of Python {sysconfig.get_python_version()}"
    return Corpus("python_source", "python", digest.hexdigest(), description, documents)


def _text(path: Path) -> str | None:
    """The file as text; None for the few of Python's own tests that are no UTF-8 on purpose."""
    try:
        return path.read_bytes().decode("utf-8")
    except (OSError, UnicodeDecodeError):
        return None
