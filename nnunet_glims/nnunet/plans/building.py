"""Build networks from a plans configuration, to check before plans are written that this is possible."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, get_type_hints

import torch
from pydantic import ConfigDict, create_model

from nnunet_glims.architectures.base import SegmentationNetwork
from nnunet_glims.errors import UsageError
from nnunet_glims.networks import Network
from nnunet_glims.validation import validate

SET_BY_NNUNET = ("input_channels", "num_classes", "deep_supervision")
"""Constructor arguments that nnU-Net takes from dataset.json and the trainer."""
KEY = "network_arguments"


def build_without_content(
    network: Network, channels: int, classes: int, arguments: Mapping[str, Any], deep_supervision: bool = False
) -> SegmentationNetwork:
    """Build a network on torch's meta device, where parameters have shapes, but no memory and no values.

    Networks that read values while they are built, as MONAI's do, are built on the CPU and moved to the meta device.

    Args:
        network: the registered network.
        channels: number of channels of the image.
        classes: number of channels of the logits.
        arguments: arguments of the constructor other than those that nnU-Net sets.
        deep_supervision: whether the network returns the logits of several resolutions.
    """
    build = network.load_class()
    given = {"input_channels": channels, "num_classes": classes, "deep_supervision": deep_supervision, **arguments}
    try:
        with torch.device("meta"):
            built = build(**given)
    except UsageError:
        raise
    except Exception:  # if the arguments are the reason, this fails on the CPU too
        built = build(**given)
    return built.to("meta")


def check_network(
    network: Network, configuration: Mapping[str, Any], channels: int, classes: int, where: str
) -> SegmentationNetwork:
    """Check that a configuration's network can be built and runs on the configuration's patch; return the network.

    Nothing is computed, because the network is on the meta device.

    Args:
        network: the network of the configuration.
        configuration: configuration of plans, with `patch_size` and `architecture`.
        channels: number of channels of the image.
        classes: number of channels of the logits.
        where: how error messages name the file with the network's arguments.

    Raises:
        UsageError: an argument is unknown, has a wrong type, or has a value with which the network cannot be built. The
            message names file, key and value.
    """
    arguments = configuration["architecture"]["arch_kwargs"]
    check_arguments(network, arguments, where, complete=True)
    try:
        return _build_and_run(network, channels, classes, arguments, configuration["patch_size"])
    except Exception as error:
        blamed = _argument_to_blame(network, channels, classes, arguments, configuration["patch_size"])
        what = f"{dict(arguments)}" if blamed is None else f"{blamed}: {arguments[blamed]!r}"
        raise UsageError(f"{where}: {KEY}: {what}: {network.name} cannot be built with this: {error}") from error


def check_arguments(network: Network, arguments: Mapping[str, Any], where: str, complete: bool) -> None:
    """Check names and types of arguments against the signature of a network's constructor, without building anything.

    Args:
        network: the registered network.
        arguments: arguments of the constructor other than those that nnU-Net sets.
        where: how error messages name the file with the arguments.
        complete: whether arguments without a default must be there; plans add those that an override leaves out.

    Raises:
        UsageError: an argument is unknown, missing, or has a wrong type. The message names file, key and value.
    """
    constructor = network.load_class()
    parameters = inspect.signature(constructor).parameters
    try:
        types = get_type_hints(constructor.__init__)  # type: ignore[misc]
    except NameError:  # types that are imported for type checkers only; building the network checks the values
        types = {}
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return
    required = ... if complete else None
    fields: dict[str, Any] = {
        name: (types.get(name, Any), required if parameter.default is parameter.empty else parameter.default)
        for name, parameter in parameters.items()
        if name not in SET_BY_NNUNET
    }
    strict = ConfigDict(extra="forbid", strict=True, arbitrary_types_allowed=True)
    model = create_model(network.name, __config__=strict, **fields)
    for name in SET_BY_NNUNET:
        if name in arguments:
            raise UsageError(f"{where}: {KEY}: {name}: nnU-Net sets this argument of {network.name}; leave it out")
    validate(model, dict(arguments), f"{where}: {KEY}")


def _build_and_run(
    network: Network, channels: int, classes: int, arguments: Mapping[str, Any], patch_size: Any
) -> SegmentationNetwork:
    built = build_without_content(network, channels, classes, arguments)
    with torch.no_grad():
        built(torch.empty(1, channels, *patch_size, device="meta"))
    return built


def _argument_to_blame(
    network: Network, channels: int, classes: int, arguments: Mapping[str, Any], patch_size: Any
) -> str | None:
    """Return the argument without which the network can be built; None if there is no single such argument."""
    for name in arguments:
        others = {key: value for key, value in arguments.items() if key != name}
        try:
            _build_and_run(network, channels, classes, others, patch_size)
        except Exception:
            continue
        return name
    return None
