"""Explain a trained model: write maps, pictures and a page of its cases."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from nnunet_glims import __version__
from nnunet_glims.errors import UsageError
from nnunet_glims.evaluation.csv_text import csv_text
from nnunet_glims.explanation import pictures, sanity
from nnunet_glims.explanation.explainer import Explainer, ExplanationRequest
from nnunet_glims.explanation.volumes import NetworkInput
from nnunet_glims.export.cases import InputCase, find_input_cases, read_case
from nnunet_glims.files import check_new, new_folder, write_json, write_text
from nnunet_glims.geometry import Geometry
from nnunet_glims.images import read_label_map, write_image
from nnunet_glims.processes import Progress, quietly

SUMMARY = "explanation.json"
GATES = "channel_gates.csv"
ENDING = ".nii.gz"


def explain(
    folder: Path,
    inputs: Sequence[Path],
    out: Path,
    request: ExplanationRequest | None = None,
    truth: Path | None = None,
    overwrite: bool = False,
    progress: Progress = quietly,
) -> dict[str, Any]:
    """Write maps, pictures and a page that explain cases. Where this fails, nothing is written.

    Args:
        folder: nnU-Net's model folder.
        inputs: a folder of cases, or channel files, see `export.cases.find_input_cases`.
        out: folder to write. It appears when the explanation is complete.
        request: what to explain and how; None for the defaults.
        truth: folder of true label maps, which are shown beside the predicted ones.
        overwrite: whether an explanation in `out` is replaced.
        progress: shows how many windows are done.

    Returns:
        The content of explanation.json.

    Raises:
        UsageError: there is no such model, fold, target, layer, case or true label map, or `out` exists.
        ProcessingError: an image or label map is damaged or has values that are not finite, or the network computes such.
    """
    request = request or ExplanationRequest()
    check_new(out, overwrite, SUMMARY, "explanation")
    explainer = Explainer(folder, request)
    dataset_json = explainer.model.dataset_json
    cases = find_input_cases(inputs, dataset_json["file_ending"], explainer.channels)
    geometries = {case.name: read_case(case.files)[1] for case in cases}  # before the first case takes its minutes
    truths = {
        case.name: None if truth is None else _truth(truth, case, geometries[case.name], dataset_json["file_ending"])
        for case in cases
    }
    summary: dict[str, Any] = {
        "version": __version__,
        "model": explainer.model.path.resolve().name,
        "dataset": explainer.model.dataset,
        "fold": request.fold,
        "method": request.method,
        "layers": explainer.chosen,
        "targets": {target.name: list(target.labels) for target in explainer.targets},
        "cases": {},
    }
    gates = []
    with new_folder(out) as unfinished:
        shown = []
        for case in cases:
            inside = unfinished / case.name
            inside.mkdir()
            summary["cases"][case.name], gates_of_case = _explain_case(
                explainer, case, geometries[case.name], inside, request.sanity, progress
            )
            gates += gates_of_case
            shown.append(pictures.DrawnCase(case.name, case.files, explainer.channels, inside, truths[case.name]))
        if gates:
            table = pd.DataFrame(gates)
            write_text(unfinished / GATES, csv_text(table))
            pictures.draw_gates(table, unfinished / "channel_gates.png")
        write_json(unfinished / SUMMARY, summary)
        pictures.write_page(summary, shown, unfinished)
    return summary


def _truth(folder: Path, case: InputCase, geometry: Geometry, ending: str) -> Path:
    path = folder / f"{case.name}{ending}"
    if not path.is_file():
        raise UsageError(f"{path}: there is no true label map of case {case.name}; leave out --truth, or complete it")
    difference = read_label_map(path).geometry.difference(geometry)
    if difference:
        raise UsageError(f"{path}: {difference} like {case.files[0].name}: is this another case?")
    return path


def _explain_case(
    explainer: Explainer, case: InputCase, geometry: Geometry, folder: Path, check: bool, progress: Progress
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Write the files of a case; return its part of the summary, and its rows of the table of gates."""
    pipeline = explainer.pipeline
    image: NetworkInput = pipeline.preprocess(case.files)
    data = image.data
    logits, channel_gates, spatial_gates = explainer.predict(data, progress, f"{case.name}: predict")
    regions = explainer.regions(logits)
    maps = explainer.maps(data, regions, progress, f"{case.name}: {len(regions)} targets")
    highest = maps.flatten(2).amax(2)
    maps = _scaled_to_one(maps)

    prediction = pipeline.label_map(logits, image.properties)
    write_image(prediction, geometry, folder / f"prediction{ENDING}")
    names = [(layer, target.name) for layer in explainer.chosen for target in explainer.targets]
    files = [*(pictures.map_name(*name) for name in names), *(f"gate_{name}" for name in explainer.spatial_gates)]
    for name, volume in zip(files, [*maps.flatten(0, 1), *spatial_gates], strict=True):
        write_image(pipeline.to_image_grid(volume[None], image.properties)[0], geometry, folder / f"{name}{ENDING}")

    found: dict[str, Any] = {
        "predicted_voxels": {
            target.name: int(np.isin(prediction, target.labels).sum()) for target in explainer.targets
        },
        "highest": {
            layer: {target.name: float(value) for target, value in zip(explainer.targets, values, strict=True)}
            for layer, values in zip(explainer.chosen, highest, strict=True)
        },
    }
    if check:
        found["sanity"] = _sanity_checks(explainer, case.name, data, logits, regions, maps, progress)
    rows = [
        {"case": case.name, "gate": name, "channel": channel, "mean": float(mean), "sd": float(sd)}
        for name, values in channel_gates.items()
        for stacked in [torch.stack(values)]
        for channel, (mean, sd) in enumerate(zip(stacked.mean(0), stacked.std(0, correction=0), strict=True))
    ]
    return found, rows


def _scaled_to_one(maps: Tensor) -> Tensor:
    """Return each map (…, z, y, x) divided by its highest value; a map that is 0 everywhere stays so."""
    highest = maps.flatten(2).amax(2)[..., None, None, None]
    return torch.where(highest > 0, maps / highest.clamp(min=torch.finfo(maps.dtype).tiny), 0)


def _sanity_checks(
    explainer: Explainer, case: str, data: Tensor, logits: Tensor, regions: Tensor, maps: Tensor, progress: Progress
) -> dict[str, dict[str, Any]]:
    """Return the results of both checks of every map, by layer and target; None where the target is not predicted."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        untrained = explainer.new_network()
    untrained_maps = _scaled_to_one(
        explainer.maps(data, regions, progress, f"{case}: random weights", network=untrained)
    )
    checks: dict[str, dict[str, Any]] = {}
    for layer, name in enumerate(explainer.chosen):
        checks[name] = {}
        for place, target in enumerate(explainer.targets):

            def predict(changed: Tensor, target=target) -> Tensor:
                return explainer.predict(changed, progress, f"{case}: {target.name} deleted")[0][target.output]

            region, saliency = regions[place], maps[layer, place]
            checks[name][target.name] = (
                {
                    "random_weights": sanity.similarity(saliency, untrained_maps[layer, place]),
                    "deletion": sanity.deletion(data, saliency, region, logits[target.output], predict),
                }
                if region.any()
                else None
            )
    return checks
