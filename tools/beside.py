"""An environment of its own that has this one's packages too; what it installs comes first, torch is not repeated.

Run: python tools/beside.py FOLDER PACKAGE==VERSION ...
"""

import shutil
import subprocess
import sys
import venv
from importlib.metadata import version
from pathlib import Path
from sysconfig import get_path


def main(folder: Path, packages: list[str]) -> None:
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    show = "import sysconfig; print(sysconfig.get_path('purelib'))"
    site = subprocess.run([python, "-c", show], capture_output=True, text=True, check=True).stdout.strip()
    (Path(site) / "base.pth").write_text(get_path("purelib") + "\n")
    install = [python, "-m", "pip", "install", "--disable-pip-version-check", "-q"]
    try:
        subprocess.run([*install, f"torch=={version('torch')}", *packages], check=True)
    except subprocess.CalledProcessError:
        shutil.rmtree(folder)
        raise


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
