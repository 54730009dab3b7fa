"""The module that nnU-Net's search for trainers imports; see `nnunet_glims.nnunet.discovery`."""

try:
    from nnunet_glims.networks import network_of_trainer
    from nnunet_glims.trainers import *  # noqa: F403
except ModuleNotFoundError as error:
    # Another environment may have inherited the variable without this package: then the search must continue.
    if error.name != "nnunet_glims":
        raise
else:

    def __getattr__(name: str) -> type:
        """Return a trainer that another package registered; it is imported only when nnU-Net asks for it."""
        network = None if name.startswith("__") else network_of_trainer(name)
        if network is None:
            raise AttributeError(name)
        return network.load_trainer(name)
