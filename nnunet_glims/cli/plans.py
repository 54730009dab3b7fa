"""`nnunet-glims plans`: list, show and apply plans overrides, and size plans for a GPU."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nnunet_glims.nnunet.plans.override import Applied

HELP = "published and recommended setups (plans overrides), and plans sized for a network and a GPU"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    actions.add_parser("list", help="the overrides that come with the package")
    actions.add_parser("schema", help="the JSON schema of an override file")
    show = actions.add_parser("show", help="one override")
    show.add_argument("name", help="its name, or a .json file of your own")
    apply = actions.add_parser("apply", help="write nnUNetPlans_NAME.json beside nnUNetPlans.json")
    apply.add_argument("name", help="name of the override, or a .json file of your own")
    auto = actions.add_parser("auto", help="write plans whose patch, batch and checkpointing fit a GPU's memory")
    auto.add_argument("--network", required=True, help="glims, latupnet or swinunetr")
    auto.add_argument("--vram", required=True, type=float, metavar="GB", help="memory of the GPU, for example 8")
    auto.add_argument("--checkpointing", help="take this setting of the network instead of choosing one")
    auto.add_argument("-o", "--name", help="name of the new plans (nnUNetPlans_NETWORK_8GB)")
    for action in (apply, auto):
        action.add_argument("-d", "--dataset", required=True, help="number or name of the data set")
        action.add_argument("-c", "--configuration", default="3d_fullres", help="configuration to change (3d_fullres)")
        action.add_argument("-p", "--plans", default="nnUNetPlans", help="plans to start from (nnUNetPlans)")
        action.add_argument("--overwrite", action="store_true", help="replace a different plans file of that name")


def run(options: argparse.Namespace) -> None:
    import json

    from nnunet_glims.nnunet.folders import preprocessed_folder
    from nnunet_glims.nnunet.plans import override as plans

    if options.action == "list":
        width = max(map(len, plans.override_names()))
        for name in plans.override_names():
            print(f"{name:{width}}  {plans.load_override(name)[1].description}")
    elif options.action == "schema":
        print(json.dumps(plans.Override.model_json_schema(), indent=4))
    elif options.action == "show":
        print(json.dumps(plans.load_override(options.name)[1].model_dump(exclude_defaults=True), indent=4))
    elif options.action == "apply":
        folder = preprocessed_folder(options.dataset)
        applied = plans.apply_override(folder, options.name, options.configuration, options.plans, options.overwrite)
        _show(applied)
    else:
        _auto(options)


def _auto(options: argparse.Namespace) -> None:
    from nnunet_glims.networks import network_named
    from nnunet_glims.nnunet.folders import preprocessed_folder
    from nnunet_glims.nnunet.plans.auto import write_sized_plans

    sized = write_sized_plans(
        preprocessed_folder(options.dataset),
        network_named(options.network),
        options.vram,
        options.configuration,
        options.plans,
        options.name,
        options.checkpointing,
        options.overwrite,
    )
    for name, value in sized.description.items():
        print(f"{name:14}{value}")
    _show(sized.applied)


def _show(applied: Applied) -> None:
    print(f"wrote {applied.path}" if applied.was_written else f"{applied.path} has this content already")
    if applied.preprocess_command is not None:
        print("Spacing or normalisation differ from the base plans.")
    if applied.is_preprocessed:
        print("The data are preprocessed already.")
    print("Next:", *applied.next_commands, sep="\n  ")
