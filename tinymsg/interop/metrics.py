"""A metric of evaluate.py among those of torchmetrics: in a MetricCollection, over batches and processes."""

from torch import Tensor
from torchmetrics import MeanMetric

from ..evaluate import IDENTICAL, METRICS


class Score(MeanMetric):
    """The mean over all pictures; name: in `evaluate.METRICS`. Pictures are (b, c, h, w) in [0, 1]."""

    def __init__(self, name: str, **options):
        super().__init__(**options)
        if name not in METRICS:
            raise ValueError(f"unknown metric {name!r}; known: {', '.join(METRICS)}")
        self.name = name

    def update(self, preds: Tensor, target: Tensor) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Another batch."""
        super().update(METRICS[self.name](preds, target).clamp(max=IDENTICAL))
