"""`nnunet-glims postprocess-fit`: fit post-processing rules to the cross-validation of a model."""

from __future__ import annotations

import argparse

from nnunet_glims.cli.output import new_console

HELP = "choose thresholds and component sizes by cross-validation over a model's folds, for nnunet-glims postprocess"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="nnU-Net's model folder, with validation predictions of its folds (--npz)")
    parser.add_argument("-o", "--out", required=True, help=".json file for the rules")
    parser.add_argument("--truth", help="folder of true label maps (default: found in nnU-Net's folders)")
    parser.add_argument("--workers", type=int, help="processes (default: as many as cores and memory allow, at most 8)")


def run(options: argparse.Namespace) -> None:
    from pathlib import Path

    from rich.table import Table

    from nnunet_glims.cli.progress import progress_on
    from nnunet_glims.errors import UsageError, UserError
    from nnunet_glims.evaluation.regions import short
    from nnunet_glims.evaluation.statistics import FEWEST
    from nnunet_glims.files import check_output_file, write_json
    from nnunet_glims.postprocessing.fit import fit_rules
    from nnunet_glims.postprocessing.rules import load_rules, rules_to_json
    from nnunet_glims.processes import workers_or_default

    out = Path(options.out)
    if out.suffix != ".json":
        raise UsageError(f"{out}: let the name of the rules' file end in .json")
    check_output_file(out)
    if out.exists():
        try:
            load_rules(str(out))
        except UserError:
            raise UsageError(
                f"{out}: this exists and holds no rules, and would be replaced: choose another name"
            ) from None
    console = new_console()
    rules, effects = fit_rules(
        Path(options.model),
        Path(options.truth) if options.truth else None,
        workers_or_default(options.workers),
        progress_on(console),
    )
    write_json(out, rules_to_json(rules))
    assert rules.fitted is not None
    table = Table("region", "Dice before", "after", "p (Wilcoxon)")
    for region, effect in effects.items():
        p = f"{effect.p:.3g}" if rules.fitted.cases >= FEWEST else "too few cases"
        table.add_row(short(region), f"{effect.before:.4f}", f"{effect.after:.4f}", p)
    console.print(f"{rules.fitted.cases} cases; each fold's by rules chosen on the other folds")
    console.print(table)
    for region_rule in rules.regions:
        console.print(f"{short(region_rule.name)}: threshold {region_rule.threshold:g}")
    for rule in rules.components:
        sure = f" and mean probability below {rule.mean_probability_below:g}" if rule.region else ""
        console.print(
            f"components of label {rule.label} under {rule.smaller_than} voxels{sure} become {rule.becomes}",
            highlight=False,
        )
    if not rules.components:
        console.print("No size helps: components are left alone")
    console.print(f"Wrote {out}, fitted on all cases", soft_wrap=True)
