"""What nnU-Net's search for trainers imports; see `nnunet_glims.nnunet.discovery`."""

try:
    from nnunet_glims.trainers import *  # noqa: F403
except ModuleNotFoundError as error:
    # Another environment may have inherited the variable without having this package: let the search go on.
    if error.name != "nnunet_glims":
        raise
