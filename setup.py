"""The settings that pyproject.toml cannot have: the start-up file, and two top-level folders as parts of the package."""

import tempfile
import zipfile
from base64 import urlsafe_b64encode
from hashlib import sha256
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py
from setuptools.command.editable_wheel import editable_wheel

ROOT = Path(__file__).parent
STARTUP_FILE = "nnunet_glims.pth"
# Python runs this line whenever it starts. It must not fail if the package is broken or partly removed.
STARTUP_LINE = (
    "import os; "
    "exec('try:\\n from nnunet_glims.nnunet.discovery import announce; announce()\\nexcept Exception: pass')\n"
)
FOLDERS = {
    "nnunet_glims": "nnunet_glims",
    "nnunet_glims.trainers": "trainers",
    "nnunet_glims.plans_overrides": "plans_overrides",
}


class BuildWithStartupFile(build_py):
    """Adds the start-up file to wheels."""

    def run(self):
        super().run()
        if not self.editable_mode:
            Path(self.build_lib, STARTUP_FILE).write_text(STARTUP_LINE)


class EditableWithStartupFile(editable_wheel):
    """Adds the start-up file to the wheel behind `pip install -e`, which takes nothing from `build_py`."""

    def run(self):
        super().run()
        wheel = max(Path(self.dist_dir).glob("nnunet_glims-*.whl"), key=lambda path: path.stat().st_mtime)
        digest = urlsafe_b64encode(sha256(STARTUP_LINE.encode()).digest()).rstrip(b"=").decode()
        with tempfile.TemporaryDirectory() as folder:
            extended = Path(folder, wheel.name)
            with zipfile.ZipFile(wheel) as old, zipfile.ZipFile(extended, "w", zipfile.ZIP_DEFLATED) as new:
                for entry in old.infolist():
                    content = old.read(entry)
                    if entry.filename.endswith(".dist-info/RECORD"):
                        content += f"{STARTUP_FILE},sha256={digest},{len(STARTUP_LINE)}\n".encode()
                    new.writestr(entry, content)
                new.writestr(STARTUP_FILE, STARTUP_LINE)
            wheel.write_bytes(extended.read_bytes())


def packages():
    """Return the installed package name of every folder with Python files."""
    found = []
    for name, folder in FOLDERS.items():
        for path in sorted({file.parent for file in (ROOT / folder).rglob("*.py")}):
            found.append(".".join([name, *path.relative_to(ROOT / folder).parts]))
    return found


setup(
    packages=packages(),
    package_dir=FOLDERS,
    cmdclass={"build_py": BuildWithStartupFile, "editable_wheel": EditableWithStartupFile},
)
