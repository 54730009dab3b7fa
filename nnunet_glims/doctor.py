"""Find what would keep a training from running well, before it starts, and say what to do about it."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from nnunet_glims.errors import UsageError
from nnunet_glims.files import read_json
from nnunet_glims.networks import network_of_trainer
from nnunet_glims.nnunet.discovery import OPT_OUT, VARIABLE
from nnunet_glims.processes import available_cores, available_memory
from nnunet_glims.training.recipes import PRECISION_VARIABLE

Verdict = Literal["ok", "warn", "fail"]
FOLDERS = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")
ALWAYS_SHOWN = ("nnunetv2", "torch", "dynamic-network-architectures", "batchgeneratorsv2")
"""Packages whose versions are always shown, for bug reports; others are shown only if their version does not fit."""
ENOUGH_FREE_GIB = 20
ENOUGH_SHARED_GIB = 1
ENOUGH_OPEN_FILES = 1024


@dataclass(frozen=True)
class Finding:
    """The result of one check.

    Attributes:
        topic: what was checked.
        verdict: "ok", "warn" or "fail".
        state: what was found.
        way_out: what to do about it; empty if nothing needs to be done.
    """

    topic: str
    verdict: Verdict
    state: str
    way_out: str = ""


def examine(
    dataset: str | None = None,
    trainer: str = "nnUNetTrainerGLIMS",
    plans: str = "nnUNetPlans",
    configuration: str = "3d_fullres",
) -> Iterator[Finding]:
    """Yield all findings: about the machine, then about the data set, its plans and the models trained with them.

    Args:
        dataset: number or name of the data set; None checks the machine only.
        trainer, plans, configuration: names as for nnUNetv2_train.
    """
    yield from _versions()
    yield from _folders()
    yield _discovery(trainer)
    yield from _device()
    yield from _processes()
    yield from _precision()
    yield from _limits()
    if dataset is not None:
        yield from _data_set(dataset, trainer, plans, configuration)


# ---- the machine


def _versions() -> Iterator[Finding]:
    """Yield whether Python and each package that nnunet-glims requires have versions that its and nnU-Net's metadata allow."""
    yield _python()
    asked: dict[str, list[Requirement]] = {}
    for package in ("nnunet-glims", "nnunetv2"):
        for requirement in _requirements(package):
            asked.setdefault(canonicalize_name(requirement.name), []).append(requirement)
    fitting = 0
    for requirement in _requirements("nnunet-glims"):
        finding = _package(requirement.name, asked[canonicalize_name(requirement.name)])
        if finding.verdict == "fail" or requirement.name in ALWAYS_SHOWN:
            yield finding
        else:
            fitting += 1
    yield Finding("other packages", "ok", f"{fitting} have versions that nnunet-glims and nnU-Net admit")


def _requirements(package: str) -> list[Requirement]:
    """Return the requirements of a package on this system, without those of its extras."""
    found = [Requirement(text) for text in importlib.metadata.requires(package) or ()]
    return [one for one in found if one.marker is None or one.marker.evaluate({"extra": ""})]


def _python() -> Finding:
    version = platform.python_version()
    admitted = SpecifierSet(importlib.metadata.metadata("nnunet-glims")["Requires-Python"] or "")
    if admitted.contains(version, prereleases=True):
        return Finding("Python", "ok", version)
    return Finding("Python", "fail", version, f"make an environment with Python {admitted}")


def _package(name: str, asked: list[Requirement]) -> Finding:
    admitted = SpecifierSet(",".join(str(one.specifier) for one in asked))
    install = f'pip install "{name}{admitted}"'
    try:
        version = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return Finding(name, "fail", "not installed", install)
    if admitted.contains(version.partition("+")[0], prereleases=True):
        return Finding(name, "ok", version)
    return Finding(name, "fail", f"{version}, but {admitted} is needed", install)


def _folders() -> Iterator[Finding]:
    for name in FOLDERS:
        value = os.environ.get(name)
        if not value:
            yield Finding(name, "fail", "not set", f"export {name}=/path/to/{name}")
        elif not Path(value).is_dir():
            yield Finding(name, "fail", f"{value}: there is no such folder", f"mkdir -p {value}")
        elif not os.access(value, os.W_OK):
            verdict: Verdict = "warn" if name == "nnUNet_raw" else "fail"
            yield Finding(
                name, verdict, f"{value}: cannot be written to", "ask for the right to write, or use another one"
            )
        else:
            free = shutil.disk_usage(value).free / 2**30
            text = f"{value}, {free:.0f} GiB free"
            if free < ENOUGH_FREE_GIB:
                yield Finding(name, "warn", text, "make room: preprocessed data and checkpoints are large")
            else:
                yield Finding(name, "ok", text)


def _discovery(trainer: str) -> Finding:
    """Return whether nnU-Net finds the trainer, in a process of its own that starts as nnUNetv2_train does."""
    program = (
        "import sys; from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name as find\n"
        "found = find(sys.argv[1]); print(); print(found.__module__, found.__name__)"
    )
    result = subprocess.run([sys.executable, "-c", program, trainer], capture_output=True, text=True, cwd=os.path.sep)
    if result.returncode == 0:
        return Finding("trainer", "ok", result.stdout.splitlines()[-1])
    if os.environ.get(OPT_OUT, "") not in ("", "0"):
        return Finding("trainer", "fail", f"{trainer} is not found: {OPT_OUT} is set", f"unset {OPT_OUT}")
    reason = (result.stderr.strip().splitlines() or ["no message"])[-1]
    return Finding(
        "trainer",
        "fail",
        f"{trainer} is not found ({VARIABLE}={os.environ.get(VARIABLE, '')}): {reason}",
        'eval "$(nnunet-glims env)", or look for a typing error in the name',
    )


def _device() -> Iterator[Finding]:
    import torch

    from nnunet_glims.kernels import compiled, gpu
    from nnunet_glims.training.precision import resolve

    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(index)
            precision = resolve("auto", "cuda")
            memory = properties.total_memory / 2**30
            yield Finding(f"GPU {index}", "ok", f"{properties.name}, {memory:.0f} GiB; precision auto is {precision}")
        if gpu.library() is not None:
            yield Finding("GPU kernels", "ok", "Triton can be imported")
        else:
            yield Finding(
                "GPU kernels",
                "warn",
                "Triton cannot be imported: GLIMS is slower on GPUs and needs more of their memory",
                "install torch with CUDA for Linux, which brings it",
            )
    else:
        yield Finding(
            "GPU", "warn", "none that torch can use", "train with -device cpu, or install a CUDA build of torch"
        )
    if compiled.library() is not None:
        yield Finding("CPU kernels", "ok", f"compiled, in {compiled.cache_folder()}")
    else:
        yield Finding(
            "CPU kernels",
            "warn",
            "no C compiler with OpenMP that works: GLIMS is slower on CPUs",
            "install gcc or clang, or set CC",
        )


def _processes() -> Iterator[Finding]:
    from nnunetv2.utilities.default_n_proc_DA import get_allowed_n_proc_DA

    cores = available_cores()
    origin = "allotted by SLURM" if os.environ.get("SLURM_CPUS_PER_TASK") else "usable here"
    try:
        workers = get_allowed_n_proc_DA()
    except ValueError:
        value = os.environ.get("nnUNet_n_proc_DA")
        yield Finding(
            "nnUNet_n_proc_DA", "fail", f"{value!r} is no number", f"export nnUNet_n_proc_DA={max(1, cores - 1)}"
        )
        return
    text = f"{workers} data loading processes, {cores} cores {origin}"
    if workers < 0:
        yield Finding(
            "nnUNet_n_proc_DA", "fail", f"{workers} processes", f"export nnUNet_n_proc_DA={max(1, cores - 1)}"
        )
    elif workers == 0:
        text += ": training works with none, nnU-Net's planning does not"
        yield Finding("nnUNet_n_proc_DA", "warn", text, "nnUNet_n_proc_DA=1 nnUNetv2_plan_and_preprocess ...")
    elif workers > cores:
        yield Finding("nnUNet_n_proc_DA", "warn", text, f"export nnUNet_n_proc_DA={max(1, cores - 1)}")
    else:
        yield Finding("nnUNet_n_proc_DA", "ok", text)


def _precision() -> Iterator[Finding]:
    """The environment variable that overrides the precision in the plans, where it is set."""
    from nnunet_glims.training.precision import chosen

    value = os.environ.get(PRECISION_VARIABLE)
    if not value:
        return
    try:
        yield Finding(PRECISION_VARIABLE, "ok", f"{chosen('auto')}, whatever plans say")
    except UsageError as error:
        yield Finding(PRECISION_VARIABLE, "fail", str(error), f"unset {PRECISION_VARIABLE}")


def _limits() -> Iterator[Finding]:
    shared = Path("/dev/shm")
    if shared.is_dir():
        size = shutil.disk_usage(shared).total / 2**30
        if size < ENOUGH_SHARED_GIB:
            yield Finding(
                "shared memory",
                "warn",
                f"{size:.2f} GiB in {shared}",
                "give a container more: docker run --shm-size=8g",
            )
        else:
            yield Finding("shared memory", "ok", f"{size:.0f} GiB")
    try:
        import resource
    except ImportError:  # Windows
        return
    files, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if 0 <= files < ENOUGH_OPEN_FILES:
        yield Finding("open files", "warn", f"at most {files}", f"ulimit -n {max(ENOUGH_OPEN_FILES, min(most, 4096))}")
    else:
        yield Finding("open files", "ok", f"at most {files}")


# ---- the data set and its models


def _data_set(dataset: str, trainer: str, plans_name: str, configuration: str) -> Iterator[Finding]:
    from nnunet_glims.nnunet.folders import preprocessed_folder
    from nnunet_glims.nnunet.plans.configuration import read_plans

    if not os.environ.get("nnUNet_preprocessed"):
        yield Finding("plans", "fail", "not looked for", "set nnUNet_preprocessed first")
        return
    try:
        folder = preprocessed_folder(dataset)
        plans = read_plans(folder / f"{plans_name}.json")
        described = read_json(folder / "dataset.json")
    except UsageError as error:
        yield Finding("plans", "fail", str(error), f"nnUNetv2_plan_and_preprocess -d {dataset} -c {configuration}")
        return
    yield from _network(plans, described, trainer, configuration, folder)
    yield from _models(folder.name, trainer, plans_name, configuration)


def _network(
    plans: dict[str, Any], described: dict[str, Any], trainer: str, configuration: str, folder: Path
) -> Iterator[Finding]:
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    from nnunet_glims.architectures.complexity import count_gmac, count_parameters
    from nnunet_glims.nnunet.plans.configuration import check_is_3d, complete_configuration, preprocess_command
    from nnunet_glims.nnunet.plans.memory import GIB, in_half_precision, training_step
    from nnunet_glims.training.recipes import Recipe

    ours = network_of_trainer(trainer)
    try:
        check_is_3d(plans, configuration)
        manager = PlansManager(plans)
        planned = manager.get_configuration(configuration).configuration
        data = folder / planned["data_identifier"]
        if data.is_dir():
            yield Finding("preprocessed data", "ok", data.name)
            yield _splits(folder, data)
        else:
            yield Finding(
                "preprocessed data",
                "fail",
                f"{data}: there is no such folder",
                preprocess_command(plans, configuration),
            )
        if ours is None:
            yield Finding("network", "ok", f"{trainer} is not one of ours: its network was not looked at")
            return
        completed = complete_configuration(planned, ours, ours.trainers[trainer], plans["plans_name"])
    except UsageError as error:
        yield Finding("plans", "fail", str(error), "see docs/plans.md")
        return
    labels = manager.get_label_manager(described)
    channels, patch, batch = len(described["channel_names"]), completed["patch_size"], completed["batch_size"]
    arguments = completed["architecture"]["arch_kwargs"]
    network = ours.load_class()(
        channels,
        labels.num_segmentation_heads,
        deep_supervision=completed["training"]["deep_supervision"],
        **arguments,
    )
    available, device, where = _memory()
    recipe = Recipe(**completed["training"])
    try:
        precision = "half precision" if in_half_precision(recipe, device) else "float32"
    except UsageError:  # the variable's own finding says what is wrong
        return
    required_gib = training_step(network, patch, batch, recipe, device, labels.has_regions).total / GIB
    strides = " ".join("×".join(map(str, step)) for step in network.strides[1:])
    yield Finding("patch and batch", "ok", f"{'×'.join(map(str, patch))}, batch {batch}; strides {strides}")
    yield Finding(
        "network",
        "ok",
        f"{ours.name}: {count_parameters(network) / 1e6:.1f} M parameters, "
        f"{count_gmac(network, channels, patch):.0f} GMAC a patch",
    )
    text = f"a training step takes about {required_gib:.1f} GiB in {precision} ({where}: {available:.0f} GiB)"
    if required_gib > available:
        smaller = f"nnunet-glims plans auto -d {folder.name} --network {ours.name.lower()} --vram GB"
        yield Finding("training memory", "warn", text, smaller)
    else:
        yield Finding("training memory", "ok", text)


def _memory() -> tuple[float, str, str]:
    """Return the memory in GiB of the first GPU, or without GPU of this process; the device type; and a name for the memory."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.get_device_properties(0).total_memory / 2**30, "cuda", "GPU 0"
    return available_memory() / 2**30, "cpu", "usable here"


def _splits(folder: Path, data: Path) -> Finding:
    from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class

    path = folder / "splits_final.json"
    cases = set(infer_dataset_class(str(data)).get_identifiers(str(data)))
    if not path.exists() and len(cases) < 5:
        return Finding(
            "splits",
            "fail",
            f"{len(cases)} cases and no {path.name}: nnU-Net cannot make five folds of them",
            "write splits_final.json yourself, or train fold all",
        )
    if not path.exists():
        return Finding("splits", "ok", "none yet: nnU-Net makes five folds")
    try:
        splits = read_json(path)
        named = {case for fold in splits for part in ("train", "val") for case in fold[part]}
    except (UsageError, TypeError, KeyError) as error:
        return Finding("splits", "fail", f"{path} cannot be used: {error}", "delete it: nnU-Net makes another one")
    if unknown := sorted(named - cases):
        way_out = "take these cases out of the file, or preprocess them as well"
        return Finding("splits", "fail", f"{path} names cases that are not there: {', '.join(unknown[:5])}", way_out)
    return Finding("splits", "ok", f"{len(splits)} folds")


def _models(dataset: str, trainer: str, plans_name: str, configuration: str) -> Iterator[Finding]:
    from nnunet_glims.trainers.checkpoint_files import is_intact

    results = os.environ.get("nnUNet_results")
    if not results:
        return
    folder = Path(results, dataset, f"{trainer}__{plans_name}__{configuration}")
    for checkpoint in sorted(folder.glob("fold_*/checkpoint_*.pth")):
        name = f"{checkpoint.parent.name}/{checkpoint.name}"
        if is_intact(checkpoint):
            yield Finding(name, "ok", "readable")
        else:
            yield Finding(name, "fail", f"{checkpoint} is damaged", "delete it: --c goes on from the one before")
