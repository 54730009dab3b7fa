"""Apply the overrides of a comparison to a data set and make its splits.

Usage: `python -m nnunet_glims.experiments.prepare_dataset FILE DATASET`.

nnU-Net makes splits when a training starts. Here they are made before, because several trainings may start together.
"""

from __future__ import annotations

import argparse
import subprocess
from collections.abc import Sequence
from pathlib import Path

from nnunet_glims.errors import ProcessingError, UsageError
from nnunet_glims.experiments.entry_plans import data_identifier, is_preprocessed
from nnunet_glims.experiments.experiment import Experiment
from nnunet_glims.experiments.jobs.prepare import Prepare
from nnunet_glims.files import write_json
from nnunet_glims.nnunet.plans.configuration import read_plans
from nnunet_glims.nnunet.plans.override import apply_override
from nnunet_glims.nnunet.splits import FOLDS, SEED
from nnunet_glims.processes import find_program


def prepare_dataset(job: Prepare, overwrite: bool = False, preprocess_again: bool = False) -> None:
    """Apply the entries' overrides, preprocess where they ask for it, and make the splits as nnU-Net would.

    Args:
        job: of the data set.
        overwrite: replace plans files of other content.
        preprocess_again: preprocess data although they are there.

    Raises:
        UsageError: a plans file with other content exists, or an override cannot be applied.
        ProcessingError: nnU-Net's preprocessing failed.
    """
    folder = job.layout.dataset(job.dataset)
    for plans in job.plans:
        override = plans.written_override()
        if override is None:
            continue
        configuration = plans.entry.configuration
        try:
            applied = apply_override(folder, override, configuration, plans.entry.plans, overwrite)
        except UsageError as error:
            again = f"nnunet-glims compare run {job.layout.path} --again {job.name}"
            raise UsageError(f"{error} (in a comparison, --overwrite is: {again})") from None
        print(f"wrote {applied.path}", flush=True)
        data = data_identifier(read_plans(applied.path), configuration)
        is_there = applied.is_preprocessed and is_preprocessed(folder, data) and not preprocess_again
        if applied.preprocess_command is not None and not is_there:
            program, *arguments = applied.preprocess_command.split()
            command = [program, *arguments, "-np", str(job.layout.comparison.resources.cpus)]
            print(" ".join(command), flush=True)
            code = subprocess.run([find_program(program), *command[1:]], check=False).returncode
            if code:
                raise ProcessingError(f"{program} ended with exit code {code}")
    splits = folder / "splits_final.json"
    if not splits.exists():
        from nnunetv2.utilities.crossval_split import generate_crossval_split

        data_folder = job.plans[0].data(job.dataset)
        if data_folder is None:
            raise UsageError(
                f"{job.plans[0].path(job.dataset)}: there are no such plans, or no such configuration in them"
            )
        cases = sorted(path.name.removesuffix(".pkl") for path in data_folder.glob("*.pkl"))
        write_json(splits, generate_crossval_split(cases, seed=SEED, n_splits=FOLDS))
        print(f"wrote {splits}", flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Prepare the data set that the arguments name."""
    parser = argparse.ArgumentParser()
    parser.add_argument("file", type=Path)
    parser.add_argument("dataset", type=int)
    parser.add_argument("--asked", required=True)
    parser.add_argument("--overwrite", action="store_true")
    parser.add_argument("--preprocess-again", action="store_true")
    options = parser.parse_args(arguments)
    experiment = Experiment(options.file)
    job = experiment.job_named(f"prepare_D{options.dataset:03d}")
    assert isinstance(job, Prepare)
    if job.asked != options.asked:
        raise SystemExit(f"{options.file}: was changed after this job had begun: run the comparison again")
    try:
        prepare_dataset(job, options.overwrite, options.preprocess_again)
    except (UsageError, ProcessingError) as error:
        raise SystemExit(str(error)) from None


if __name__ == "__main__":
    main()
