"""`nnunet-glims env`: print the shell line that sets the variable with which nnU-Net finds the trainers."""

from __future__ import annotations

import argparse
import os
import shlex

HELP = 'print the shell line that makes nnU-Net find the trainers: eval "$(nnunet-glims env)"'


def add_arguments(parser: argparse.ArgumentParser) -> None:
    pass


def run(options: argparse.Namespace) -> None:
    from nnunet_glims.nnunet.discovery import VARIABLE, extended

    print(f"export {VARIABLE}={shlex.quote(extended(os.environ.get(VARIABLE, '')))}")
