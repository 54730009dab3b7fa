"""The costs of an entry: parameters, multiply-accumulates, hours of training, memory, seconds for a case."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import mean, median

from nnunet_glims.errors import UserError
from nnunet_glims.nnunet.training_log import TrainingLog, read_training_log
from nnunet_glims.nnunet.trust import NotTrustedError
from nnunet_glims.report.entries import LeaderboardEntry


@dataclass(frozen=True)
class Costs:
    """The costs of an entry; values that are not known are None.

    Attributes:
        parameters: number of parameters of the network.
        gmac: billions (10⁹) of multiply-accumulates for one patch of the plans.
        patch_size: voxels of the patch along each axis.
        training_hours: hours of all folds together; with several seeds, their mean.
        device: the kind of device it was trained on, such as "cpu" or "cuda".
        peak_gib: peak memory of a training in GiB.
        seconds_a_case: seconds that the prediction of a case takes.
        logs: the training log of each fold of each seed.
        unknown: why values are not known; empty if nothing is to be said.
    """

    parameters: int | None = None
    gmac: float | None = None
    patch_size: Sequence[int] | None = None
    training_hours: float | None = None
    device: str | None = None
    peak_gib: float | None = None
    seconds_a_case: float | None = None
    logs: Sequence[TrainingLog] = ()
    unknown: str | None = None


def costs_of(entry: LeaderboardEntry) -> Costs:
    """Return the costs of an entry, from its model folders. If a model cannot be read or built, `unknown` says why.

    Raises:
        NotTrustedError: the model's plans would have something imported or called that is not admitted.
    """
    first = entry.runs[0]
    costs = Costs(seconds_a_case=entry.seconds_a_case, unknown=first.unknown)
    try:
        by_seed = [
            [read_training_log(folder) for folder in run.model.folds.values()]
            for run in entry.runs
            if run.model is not None
        ]
        costs = _of_training(costs, by_seed)
        if first.model is None:
            return costs
        network, channels, patch_size = first.model.network()

        from nnunet_glims.architectures.complexity import count_gmac, count_parameters

        parameters = count_parameters(network)
        gmac = count_gmac(network, channels, patch_size)
    except NotTrustedError:
        raise
    except Exception as error:  # code of other packages may raise anything
        kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
        return replace(costs, unknown=f"the model could not be read or built: {kind}{error}")
    return replace(costs, parameters=parameters, gmac=gmac, patch_size=patch_size)


def _of_training(costs: Costs, by_seed: Sequence[Sequence[TrainingLog]]) -> Costs:
    logs = [log for seed in by_seed for log in seed]
    hours = [sum(known) for seed in by_seed if (known := [log.hours for log in seed if log.hours is not None])]
    seconds = [log.case_seconds for log in logs if log.case_seconds is not None]
    devices = {log.device.split(":")[0] for log in logs if log.device is not None}
    return replace(
        costs,
        training_hours=mean(hours) if hours else None,
        device=devices.pop() if len(devices) == 1 else None,
        peak_gib=max((log.peak_gib for log in logs if log.peak_gib is not None), default=None),
        seconds_a_case=costs.seconds_a_case or (median(seconds) if seconds else None),
        logs=logs,
    )
