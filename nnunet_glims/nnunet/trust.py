"""What a plans file may have imported and called: classes of networks, and nnU-Net's own classes and functions.

Plans name classes as text, and nnU-Net imports and calls whatever they name. The plans of a model folder may come from
anybody, so each name is checked here before anything is imported or called.
"""

from __future__ import annotations

import inspect
import pydoc
from collections.abc import Mapping
from contextlib import redirect_stdout
from io import StringIO
from typing import TYPE_CHECKING, Any

from nnunet_glims.errors import ProcessingError, UsageError
from nnunet_glims.networks import BUILT_IN, networks

if TYPE_CHECKING:
    from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager

PACKAGES = ("nnunet_glims.architectures", "dynamic_network_architectures", "torch.nn")
"""Packages whose networks and layers plans may name, besides those of packages that register a network."""


class NotTrustedError(UsageError):
    """Plans name something that is not imported or called unless the user asks for it with `--trust`."""


def trusted_manager(
    plans: Mapping[str, Any], configuration: str, where: str, trust: bool = False
) -> tuple[PlansManager, ConfigurationManager]:
    """Return nnU-Net's objects for plans and one of their configurations, after checking what they would import.

    Args:
        plans: content of a plans file that was read with `check_plans`.
        configuration: name of a configuration.
        where: how messages name the plans file.
        trust: whether plans may name any network and layer.

    Raises:
        NotTrustedError: a network, or a layer among its arguments, is not of the kinds that are admitted.
        ProcessingError: there is no such configuration, or its architecture is not described as nnU-Net does it.
    """
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    if configuration not in plans["configurations"]:
        raise ProcessingError(
            f"{where}: configurations: there is no {configuration!r}, only {', '.join(plans['configurations'])}"
        )
    manager = PlansManager(dict(plans))
    try:
        settings = manager.get_configuration(configuration)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ProcessingError(
            f"{where}: configurations.{configuration}.architecture: this key is required, and what plans of older releases of "
            f"nnU-Net have in its place is not there either ({error})"
        ) from None
    if not trust:
        _check_architecture(settings.configuration["architecture"], f"{where}: configurations.{configuration}")
    return manager, settings


def _check_architecture(architecture: Any, where: str) -> None:
    parts: dict[str, type] = {"arch_kwargs": dict, "_kw_requires_import": list}
    for key, kind in parts.items():
        if not isinstance(architecture, dict) or not isinstance(architecture.get(key), kind):
            raise ProcessingError(f"{where}.architecture: nnU-Net's plans have a {kind.__name__} {key!r} here")
    check_network_class(architecture.get("network_class_name"), f"{where}.architecture.network_class_name")
    arguments = architecture["arch_kwargs"]
    for name in architecture["_kw_requires_import"]:
        if not isinstance(name, str) or name not in arguments:
            raise ProcessingError(f"{where}.architecture._kw_requires_import: {name!r} is no argument in arch_kwargs")
        if arguments[name] is not None:
            check_network_class(arguments[name], f"{where}.architecture.arch_kwargs.{name}")


def check_network_class(path: Any, where: str) -> None:
    """Check that an import path leads to a subclass of `torch.nn.Module` in a package that may be used.

    Nothing outside of these packages is imported, and nothing is called.

    Args:
        path: import path from plans.
        where: how messages name its place.

    Raises:
        NotTrustedError: the path leads to something else.
    """
    from torch import nn

    packages: tuple[str, ...] = PACKAGES
    if not _lies_in(path, packages):  # other packages are searched only if need be
        packages = (*PACKAGES, *(network.path.partition(".")[0] for network in networks()[len(BUILT_IN) :]))
    found = _located(path) if _lies_in(path, packages) else None
    if not (isinstance(found, type) and issubclass(found, nn.Module) and _lies_in(found.__module__, packages)):
        raise NotTrustedError(
            f"{where}: {str(path)[:200]!r} is no network or layer of {', '.join(packages)}. It was not imported, because plans "
            "can have any function called. Only if you know where these plans are from, add --trust"
        )


def _lies_in(path: Any, packages: tuple[str, ...]) -> bool:
    """Return whether an import path is one of these packages or lies inside; names such as __main__ do not."""
    if not isinstance(path, str) or not all(part.isidentifier() and part[:2] != "__" for part in path.split(".")):
        return False
    return any(path == package or path.startswith(f"{package}.") for package in packages)


def _located(path: str) -> Any:
    """Return what nnU-Net finds under an import path; None if that is nothing."""
    import dynamic_network_architectures
    from nnunetv2.utilities.find_class_by_name import recursive_find_python_class

    try:
        found = pydoc.locate(path)
    except pydoc.ErrorDuringImport:
        return None
    if found is not None:
        return found
    # nnU-Net looks for classes that were moved from one module to another
    folder = f"{dynamic_network_architectures.__path__[0]}/architectures"
    return recursive_find_python_class(folder, path.rpartition(".")[2], "dynamic_network_architectures.architectures")


def check_label_manager(plans: Mapping[str, Any]) -> None:
    """Check that the label manager of plans is a class of nnU-Net; raise `NotTrustedError` if it is something else."""
    from nnunetv2.utilities.label_handling.label_handling import LabelManager

    name = plans.get("label_manager", "LabelManager")
    _check_name(name, "utilities.label_handling", LabelManager, f"{plans['plans_name']}: label_manager")


def check_image_processing(settings: ConfigurationManager, where: str) -> None:
    """Check that preprocessor, normalisation and resampling of plans are nnU-Net's classes and functions.

    Args:
        settings: the configuration.
        where: how messages name the plans file.

    Raises:
        NotTrustedError: a name leads to something else.
        ProcessingError: a function for resampling has no such arguments.
    """
    from nnunetv2.preprocessing.normalization.default_normalization_schemes import ImageNormalization
    from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor

    described = settings.configuration
    _check_name(described.get("preprocessor_name"), "preprocessing", DefaultPreprocessor, f"{where}: preprocessor_name")
    for scheme in described.get("normalization_schemes", ()):
        _check_name(scheme, "preprocessing.normalization", ImageNormalization, f"{where}: normalization_schemes")
    for what in ("resampling_fn_data", "resampling_fn_seg", "resampling_fn_probabilities"):
        function = _check_name(described.get(what), "preprocessing.resampling", None, f"{where}: {what}")
        try:
            inspect.signature(function).bind(None, None, None, None, **described.get(f"{what}_kwargs", {}))
        except TypeError as error:
            raise ProcessingError(f"{where}: {what}_kwargs: {error}") from None


def _check_name(name: Any, room: str, base: type | None, where: str) -> Any:
    """Return what a name leads to: a subclass of `base` in a package of nnU-Net, or without `base` a function there."""
    import nnunetv2
    from nnunetv2.utilities.find_class_by_name import recursive_find_python_class

    found = None
    if isinstance(name, str) and name.isidentifier():
        folder = "/".join((nnunetv2.__path__[0], *room.split(".")))
        with redirect_stdout(StringIO()):
            found = recursive_find_python_class(folder, name, f"nnunetv2.{room}")
    fits = isinstance(found, type) and issubclass(found, base) if base is not None else callable(found)
    if not fits or not str(getattr(found, "__module__", "")).startswith(f"nnunetv2.{room}."):
        kind = "function" if base is None else f"kind of {base.__name__}"
        raise NotTrustedError(f"{where}: {str(name)[:200]!r} is no {kind} in nnunetv2.{room}: it is not called")
    return found
