"""Packaging. Metadata is here because two folders of the repository's top level are installed inside the package."""

import re
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
# Python runs this line whenever it starts. It must not fail where the package is broken or half removed.
STARTUP_LINE = (
    "import os; "
    "exec('try:\\n from nnunet_glims.nnunet.discovery import announce; announce()\\nexcept Exception: pass')\n"
)

ONNX = ["onnx>=1.16", "onnxscript", "onnxruntime>=1.17"]

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
    """Every folder with Python files, as an installed package name."""
    found = []
    for name, folder in FOLDERS.items():
        for path in sorted({file.parent for file in (ROOT / folder).rglob("*.py")}):
            found.append(".".join([name, *path.relative_to(ROOT / folder).parts]))
    return found


setup(
    name="nnunet-glims",
    version=re.search(r'__version__ = "(.+)"', (ROOT / "nnunet_glims/__init__.py").read_text()).group(1),
    description="Light 3D segmentation networks for nnU-Net v2: GLIMS, LATUP-Net, and Swin UNETR to compare them with",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    classifiers=[
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Medical Science Apps.",
    ],
    python_requires=">=3.10,<3.14",
    packages=packages(),
    package_dir=FOLDERS,
    package_data={
        "nnunet_glims.explanation": ["*.html"],
        "nnunet_glims.kernels": ["c/*.[ch]"],
        "nnunet_glims.plans_overrides": ["*.json"],
        "nnunet_glims.report": ["*.html", "*.css", "*.js"],
    },
    install_requires=[
        "nnunetv2>=2.8,<3",
        "torch>=2.3",
        "dynamic-network-architectures",
        "SimpleITK",
        "batchgenerators",
        "batchgeneratorsv2",
        "nibabel",
        "connected-components-3d",
        "jinja2",
        "matplotlib",
        "numpy",
        "pandas",
        "pillow",
        "pyyaml",
        "scipy",
        "scikit-image",
        "scikit-learn",
        "packaging",
        "pydantic>=2",
        "rich",
        "submitit",
    ],
    extras_require={
        "swinunetr": ["monai>=1.3"],
        "onnx": ONNX,
        "test": ["pytest>=8", "pytest-timeout", "pytest-xdist", "build", "surface-distance", "medpy", "captum", *ONNX],
        "lint": ["ruff", "mypy"],
    },
    entry_points={"console_scripts": ["nnunet-glims = nnunet_glims.cli:main"]},
    cmdclass={"build_py": BuildWithStartupFile, "editable_wheel": EditableWithStartupFile},
    zip_safe=False,
)
