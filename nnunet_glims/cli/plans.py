"""`nnunet-glims plans`: list, show and apply plans overrides."""

from __future__ import annotations

import argparse

HELP = "list, show and apply plans overrides: published and recommended setups"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    actions.add_parser("list", help="the overrides that come with the package")
    actions.add_parser("schema", help="the JSON schema of an override file")
    show = actions.add_parser("show", help="one override")
    show.add_argument("name", help="its name, or a .json file of your own")
    apply = actions.add_parser("apply", help="write nnUNetPlans_NAME.json beside nnUNetPlans.json")
    apply.add_argument("name", help="name of the override, or a .json file of your own")
    apply.add_argument("-d", "--dataset", required=True, help="number or name of the data set")
    apply.add_argument("-c", "--configuration", default="3d_fullres", help="configuration to change (3d_fullres)")
    apply.add_argument("-p", "--plans", default="nnUNetPlans", help="plans to start from (nnUNetPlans)")
    apply.add_argument("--overwrite", action="store_true", help="replace a different plans file of that name")


def run(options: argparse.Namespace) -> None:
    import json

    from nnunet_glims import plans

    if options.action == "list":
        width = max(map(len, plans.override_names()))
        for name in plans.override_names():
            print(f"{name:{width}}  {plans.load_override(name)[1].description}")
    elif options.action == "schema":
        print(json.dumps(plans.Override.model_json_schema(), indent=4))
    elif options.action == "show":
        print(json.dumps(plans.load_override(options.name)[1].model_dump(exclude_defaults=True), indent=4))
    else:
        folder = plans.preprocessed_folder(options.dataset)
        applied = plans.apply_override(folder, options.name, options.configuration, options.plans, options.overwrite)
        print(f"wrote {applied.path}")
        if applied.preprocess_command is None:
            print("The data preprocessed for the base plans are used as they are.")
        else:
            print(
                f"Spacing or normalisation differ from the base plans. Preprocess once:\n  {applied.preprocess_command}"
            )
        trainer = applied.trainer or "nnUNetTrainerGLIMS"
        print(f"Train:\n  nnUNetv2_train {folder.name} {options.configuration} 0 -tr {trainer} -p {applied.plans_name}")
