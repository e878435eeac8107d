"""What stands in, in tests, for networks whose weights are a download."""

import torch

from tinymsg.paper import fid

COLOURS = "tinymsg-test-colours"


def register_colours(monkeypatch):
    """In the place of Inception, for torch-fidelity: mean red and mean green in units of 16."""
    from torch_fidelity.feature_extractor_base import FeatureExtractorBase
    from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY

    class Colours(FeatureExtractorBase):
        def __init__(self, name, features_list, **_):
            super().__init__(name, features_list)

        @staticmethod
        def get_provided_features_list():
            return ("colours",)

        @staticmethod
        def get_default_feature_layer_for_metric(metric):
            return "colours"

        def forward(self, image):
            assert image.dtype == torch.uint8 and image.shape[1] == 3
            return (image[:, :2].double().mean(dim=(2, 3)) / 16,)

    monkeypatch.setitem(FEATURE_EXTRACTORS_REGISTRY, COLOURS, Colours)
    monkeypatch.setattr(fid, "EXTRACTOR", COLOURS)
    return Colours
