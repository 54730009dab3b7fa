"""The versions of Python and of the packages, against what nnunet-glims and nnU-Net ask for."""

from __future__ import annotations

import importlib.metadata
import platform
from typing import TYPE_CHECKING

from nnunet_glims.doctor.findings import Finding, Findings, isolated

if TYPE_CHECKING:
    from packaging.requirements import Requirement

ALWAYS_SHOWN = ("nnunetv2", "torch", "dynamic-network-architectures", "batchgeneratorsv2")
"""Packages whose versions are always shown, for bug reports; others are shown only if their version does not fit."""


def check() -> Findings[None]:
    """Yield whether Python and each package that nnunet-glims requires have versions that its and nnU-Net's metadata allow."""
    from packaging.utils import canonicalize_name

    yield from isolated("Python", _check_python)
    asked: dict[str, list[Requirement]] = {}
    for package in ("nnunet-glims", "nnunetv2"):
        for requirement in _requirements(package):
            asked.setdefault(canonicalize_name(requirement.name), []).append(requirement)
    fitting = 0
    for requirement in _requirements("nnunet-glims"):
        name = requirement.name
        for finding in isolated(name, _check_package, name, asked[canonicalize_name(name)]):
            if finding.verdict == "fail" or name in ALWAYS_SHOWN:
                yield finding
            else:
                fitting += 1
    yield Finding("other packages", "ok", f"{fitting} have versions that nnunet-glims and nnU-Net admit")


def _requirements(package: str) -> list[Requirement]:
    """Return the requirements of a package on this system, without those of its extras; none if it is not installed."""
    from packaging.requirements import Requirement

    try:
        texts = importlib.metadata.requires(package) or ()
    except importlib.metadata.PackageNotFoundError:
        return []
    found = [Requirement(text) for text in texts]
    return [one for one in found if one.marker is None or one.marker.evaluate({"extra": ""})]


def _check_python() -> Findings[None]:
    from packaging.specifiers import SpecifierSet

    version = platform.python_version()
    admitted = SpecifierSet(importlib.metadata.metadata("nnunet-glims")["Requires-Python"] or "")
    if admitted.contains(version, prereleases=True):
        yield Finding("Python", "ok", version)
    else:
        yield Finding("Python", "fail", version, f"make an environment with Python {admitted}")


def _check_package(name: str, asked: list[Requirement]) -> Findings[None]:
    from packaging.specifiers import SpecifierSet

    admitted = SpecifierSet(",".join(str(one.specifier) for one in asked))
    install = f'pip install "{name}{admitted}"'
    try:
        version = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        yield Finding(name, "fail", "not installed", install)
        return
    if admitted.contains(version.partition("+")[0], prereleases=True):
        yield Finding(name, "ok", version)
    else:
        yield Finding(name, "fail", f"{version}, but {admitted} is needed", install)
