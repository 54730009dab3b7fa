"""Metrics of segmentations by one documented protocol, for label maps as NumPy arrays or as files. See docs/evaluation.md."""

from nnunet_glims.evaluation.case import CaseMeasures, measure_case
from nnunet_glims.evaluation.lesions import LesionRules
from nnunet_glims.evaluation.metrics import METRICS
from nnunet_glims.evaluation.metrics.metric import Metric
from nnunet_glims.evaluation.protocol import PENALTIES, PRESETS, Protocol

__all__ = ["METRICS", "PENALTIES", "PRESETS", "CaseMeasures", "LesionRules", "Metric", "Protocol", "measure_case"]
