"""`python -m nnunet_glims.experiments.prepare FILE DATASET`: overrides and splits of a comparison, before anything is trained.

nnU-Net makes splits when the first training starts; of several that start together each would.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from nnunet_glims.experiments.jobs import Plan, data_identifier, is_preprocessed
from nnunet_glims.files import read_json, write_json
from nnunet_glims.nnunet.plans.override import apply_override


def prepare(plan: Plan, number: int) -> None:
    """Apply the entries' overrides, preprocess where they ask for it, and make the splits as nnU-Net would."""
    folder = plan.preprocessed / plan.dataset_names[number]
    for entry, override in plan.overrides():
        applied = apply_override(folder, override, entry.configuration, entry.plans, overwrite=True)
        print(f"wrote {applied.path}", flush=True)
        data = data_identifier(read_json(applied.path), entry.configuration)
        if applied.preprocess_command is not None and not is_preprocessed(folder, data):
            command = [*applied.preprocess_command.split(), "-np", str(plan.comparison.resources.cpus)]
            print(" ".join(command), flush=True)
            subprocess.run(command, check=True)
    splits = folder / "splits_final.json"
    if not splits.exists():
        from nnunetv2.utilities.crossval_split import generate_crossval_split

        entry = plan.comparison.entries[0]
        plans = read_json(folder / f"{plan.plans_name(entry, plan.comparison.seeds[0])}.json")
        preprocessed = folder / data_identifier(plans, entry.configuration)
        cases = sorted(path.name.removesuffix(".pkl") for path in preprocessed.glob("*.pkl"))
        write_json(splits, generate_crossval_split(cases, seed=12345, n_splits=5))
        print(f"wrote {splits}", flush=True)


if __name__ == "__main__":
    prepare(Plan(Path(sys.argv[1])), int(sys.argv[2]))
