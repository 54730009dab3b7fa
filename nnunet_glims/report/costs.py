"""What an entry costs: parameters, multiply-accumulates, hours of training, memory, seconds a case."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from statistics import median

from nnunet_glims.errors import UsageError
from nnunet_glims.nnunet.training_log import TrainingLog, read_training_log
from nnunet_glims.report.entries import Entry


@dataclass(frozen=True)
class Costs:
    """None where it is not known.

    Attributes:
        parameters: of the network.
        gmac: 10⁹ multiply-accumulates for one patch of the plan.
        patch_size: voxels along each axis.
        training_hours: of all folds together.
        device: that it was trained on: "cpu", "cuda", ...
        peak_gib: peak memory of a training.
        seconds_a_case: of inference.
        logs: fold -> its training.
        unknown: why the network could not be looked at.
    """

    parameters: int | None = None
    gmac: float | None = None
    patch_size: Sequence[int] | None = None
    training_hours: float | None = None
    device: str | None = None
    peak_gib: float | None = None
    seconds_a_case: float | None = None
    logs: dict[int, TrainingLog] = field(default_factory=dict)
    unknown: str | None = None


def costs_of(entry: Entry) -> Costs:
    """From its model folder; without one nothing is known but what the entry says itself."""
    if entry.model is None:
        return Costs(seconds_a_case=entry.seconds_a_case)
    logs = {fold: read_training_log(folder) for fold, folder in entry.model.folds.items()}
    hours = [log.hours for log in logs.values() if log.hours is not None]
    seconds = [log.case_seconds for log in logs.values() if log.case_seconds is not None]
    devices = {log.device.split(":")[0] for log in logs.values() if log.device is not None}
    costs = Costs(
        training_hours=sum(hours) if hours else None,
        device=devices.pop() if len(devices) == 1 else None,
        peak_gib=max((log.peak_gib for log in logs.values() if log.peak_gib is not None), default=None),
        seconds_a_case=entry.seconds_a_case or (median(seconds) if seconds else None),
        logs=logs,
    )
    try:
        network, channels, patch_size = entry.model.network()
    except (UsageError, ImportError) as error:
        return replace(costs, unknown=str(error))

    from nnunet_glims.architectures.complexity import count_gmac, count_parameters

    parameters = count_parameters(network)
    return replace(costs, parameters=parameters, gmac=count_gmac(network, channels, patch_size), patch_size=patch_size)
