"""Settings of a detector's training: those of every run, and the detector's own."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

from partialnet.checkpoint.stored_network import is_stored_as
from partialnet.errors import UserError
from partialnet.training.config import RunConfig
from partialnet.training.settings import setting

from .annotations import DetectionImages
from .model import PYRAMID_CHANNELS

_network = partial(setting, group="Network")
_data = partial(setting, group="Data")


@dataclass(frozen=True)
class DetectionConfig(RunConfig):
    """Training of a detector: Mask R-CNN, or Faster R-CNN for boxes only."""

    recipes: ClassVar[str] = "partialnet.detection.recipes"

    # the same settings as of every run, with other words for what they mean here
    weights: str | None = _network(
        None,
        "a classifier's or detector's checkpoint or run folder, or a pretrained timm model, to start from",
        aliases=("init-from",),
    )
    drop_path_rate: float | None = _network(
        None,
        "stochastic depth of the last block; none takes the paper's for S, M and L, and other models' own",
        least=0,
        most=0.99,
    )
    val_share: float = _data(0.1, "share of the images to hold out if the data has no such part", least=0, most=0.9)

    out_norm: bool = _network(True, "a BatchNorm for each feature map before the pyramid, as in the authors' code")
    pyramid_channels: int = _network(
        PYRAMID_CHANNELS,
        "channels of every level of the pyramid, and the width of the heads; fewer are faster and smaller",
        least=1,
    )
    masks: bool | None = _network(None, "learn masks, too; none does so if the data has any")
    frozen_bn: bool = _network(False, "keep the backbone's BatchNorms as they are, for small batches")
    frozen_stages: int | None = _network(
        None, "stages of the backbone to keep as they are, with the stem and all their BatchNorms", least=1
    )
    num_proposals: int = _network(
        1000, "proposals in an image that the heads look at, twice as many in training; fewer are faster", least=1
    )
    num_sampled: int = _network(512, "proposals in an image that the heads learn from; fewer are faster", least=1)
    validation: str | None = _data(None, "held-out images, in any form that DATA has; none takes them from DATA")
    keep_empty: bool = _data(False, "also train on images without any object, as background")
    img_size: tuple[int, ...] = _data((800, 1333), "shorter and largest longer side of an image, in pixels", least=32)
    random_scales: tuple[float, ...] = _data(
        (), "shorter training sides as multiples of img_size's, one drawn for each batch", least=0.1, most=2
    )
    eval_batch_size: int = _data(
        1, "images in a step of validation; affects memory, not the result", least=1, may_change=True
    )

    @property
    def sides(self) -> tuple[int, int]:
        """Shorter and at most longer side of an image, in pixels."""
        short, long = self.img_size
        return short, long

    @property
    def training_sides(self) -> tuple[int, ...]:
        """Shorter sides of training images, in pixels, one of which is drawn for each batch; empty for one size."""
        short, long = self.sides
        return tuple(min(max(round(scale * short), 1), long) for scale in self.random_scales)

    def learns_masks(self, images: DetectionImages) -> bool:
        """Whether masks of these training images are learnt.

        Raises:
            UserError: They are to be, but there are none.
        """
        if self.masks and not images.has_outlines:
            raise UserError("The training data has no masks to learn; leave out --masks, and boxes are learnt.")
        return images.has_outlines if self.masks is None else self.masks

    def detector_settings(self, images: DetectionImages) -> dict[str, Any]:
        """What ``create_mask_rcnn`` is given for a detector that learns from ``images``."""
        return {
            "model_args": self.model_args,
            "out_norm": self.out_norm,
            "frozen_bn": self.frozen_bn,
            "drop_path_rate": self.drop_path_rate,
            "pyramid_channels": self.pyramid_channels,
            "img_size": self.sides,
            "num_proposals": self.num_proposals,
            "num_sampled": self.num_sampled,
            "masks": self.learns_masks(images),
        }

    @classmethod
    def network_of_run(cls, run: str) -> dict[str, Any]:
        """A detector's backbone, output norms and pyramid; a classifier's network as the backbone."""
        from .checkpoint import load_detector

        if not is_stored_as(run, "detection"):
            return super().network_of_run(run)
        detector = load_detector(run)
        settings = detector.settings
        return {
            "model": detector.backbone,
            "model_args": dict(settings.get("model_args") or {}),
            "out_norm": settings.get("out_norm", True),
            "pyramid_channels": settings.get("pyramid_channels", PYRAMID_CHANNELS),
        }

    def check(self) -> None:
        """Refuse what does not fit together.

        Raises:
            UserError: Something does not fit.
        """
        super().check()
        if len(self.img_size) != 2 or self.img_size[0] > self.img_size[1]:
            sides = ",".join(map(str, self.img_size))
            raise UserError(f"img_size is {sides} but must be the shorter and the longer side, such as 800,1333.")
        if self.frozen_stages is not None and self.weights is None:
            raise UserError("frozen_stages without weights would keep random layers as they are; give weights.")
