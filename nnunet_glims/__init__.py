"""Light 3D segmentation networks for nnU-Net v2: GLIMS, LATUP-Net, and Swin UNETR to compare them with.

The names in `__all__` are the Python interface; docs/python.md shows how to use it. Each is imported when it is first used,
because this module is imported whenever Python starts (see `nnunet_glims.nnunet.discovery`) and must be fast. Networks
are in `nnunet_glims.architectures`, trainers in `nnunet_glims.trainers`.
"""

TYPE_CHECKING = False  # type checkers take this name for typing.TYPE_CHECKING, whose import takes milliseconds
if TYPE_CHECKING:
    from nnunet_glims.architectures import GLIMS, LATUPNet, SwinUNETR
    from nnunet_glims.errors import UserError
    from nnunet_glims.evaluation.case import measure_case
    from nnunet_glims.nnunet.evaluation import evaluate_folders as evaluate
    from nnunet_glims.nnunet.evaluation import evaluate_model
    from nnunet_glims.report.leaderboard import leaderboard

__version__ = "0.1.0"

__all__ = [
    "GLIMS",
    "LATUPNet",
    "SwinUNETR",
    "UserError",
    "evaluate",
    "evaluate_model",
    "leaderboard",
    "measure_case",
]

_PLACES = {
    "GLIMS": "nnunet_glims.architectures.GLIMS",
    "LATUPNet": "nnunet_glims.architectures.LATUPNet",
    "SwinUNETR": "nnunet_glims.architectures.SwinUNETR",
    "UserError": "nnunet_glims.errors.UserError",
    "evaluate": "nnunet_glims.nnunet.evaluation.evaluate_folders",
    "evaluate_model": "nnunet_glims.nnunet.evaluation.evaluate_model",
    "leaderboard": "nnunet_glims.report.leaderboard.leaderboard",
    "measure_case": "nnunet_glims.evaluation.case.measure_case",
}


def __getattr__(name: str) -> object:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    module, _, attribute = _PLACES[name].rpartition(".")
    found = getattr(import_module(module), attribute)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
