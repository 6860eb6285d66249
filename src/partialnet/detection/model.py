"""Mask R-CNN, or Faster R-CNN where there are no masks to learn, on the feature maps of any timm backbone.

The detector is torchvision's (its pyramid, proposals, heads, losses and NMS). A pyramid of C = 256 channels and heads
of its width are those of the paper's experiments: one 3×3 convolution for proposals, two dense layers of 4 C = 1024 for
boxes, four 3×3 convolutions of C for masks, anchors of 8 times each level's stride in the ratios 1:2, 1:1 and 2:1.

Source: paper, Sec. 4.2 and Tables 2, 7 and 11; He et al., "Mask R-CNN", arXiv:1703.06870; Lin et al., "Feature Pyramid
Networks for Object Detection", arXiv:1612.03144.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from timm.layers import freeze_batch_norm_2d
from timm.models import split_model_name_tag
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.rpn import RPNHead
from torchvision.models.detection.transform import resize_boxes
from torchvision.ops import FeaturePyramidNetwork, MultiScaleRoIAlign
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool
from torchvision.ops.poolers import LevelMapper

from partialnet.checkpoint import Checkpoint, create_checkpoint
from partialnet.errors import UserError
from partialnet.torchvision_networks import ARCHITECTURE, PREFIX

from .backbone_parameters import layers, plain_classifier, undecayed
from .resizing import IMG_SIZE, DetectorTransform

#: Detections of lower scores are left out.
SCORE_THRESH = 0.05
#: Stochastic depth when a detector is trained (paper, Table 7); other backbones keep the one they are registered with.
DROP_PATH_RATES = {"partialnet_s": 0.15, "partialnet_m": 0.2, "partialnet_l": 0.3}
#: Least and largest stride of a feature map that goes into the pyramid.
STRIDES = (4, 32)
#: Channels of every level of the pyramid in the paper's experiments.
PYRAMID_CHANNELS = 256
#: Side of a square anchor, in strides of its level.
_ANCHOR_SCALE = 8
_ASPECT_RATIOS = (0.5, 1.0, 2.0)
#: Sides, in positions, of what the box and the mask head look at in a region.
_BOX_SIDE, _MASK_SIDE = 7, 14
#: Height and width of the image that every backbone is tried on; no network is made for just this size.
_PROBE = (160, 224)


class FeatureMaps(nn.Module):
    """A backbone's feature maps at strides 4 to 32, one for each stride, (B, C_i, H / s_i, W / s_i) each.

    Args:
        body: timm's ``features_only`` network.
        name: Its name, for errors.

    Raises:
        UserError: It does not take images of any size, or its maps do not make a pyramid.
    """

    def __init__(self, body: nn.Module, name: str) -> None:
        super().__init__()
        info: Any = body.feature_info
        strides = info.reduction()
        # of several maps of one stride the last knows most
        last = {stride: index for index, stride in enumerate(strides) if STRIDES[0] <= stride <= STRIDES[1]}
        if len(last) < 2 or any(not float(stride).is_integer() or stride & (stride - 1) for stride in last):
            raise UserError(
                f"{name} gives feature maps at strides {', '.join(map(str, strides))}; a feature pyramid needs two or "
                f"more different ones among 4, 8, 16 and 32."
            )
        self.strides = tuple(sorted(last))
        self.levels = tuple(last[stride] for stride in self.strides)
        self.channels = tuple(info.channels()[level] for level in self.levels)
        self.channels_last = str(getattr(body, "output_fmt", "NCHW")).endswith("NHWC")
        self.body = body
        self._check_output(name)
        #: Names of the modules in ``body`` that never learn.
        self._frozen: tuple[str, ...] = ()

    def freeze(self, num_stages: int) -> None:
        """Keep the stem and the first stages as they are, statistics of BatchNorms and all.

        These are the layers that a feature map comes from: that of the least stride for one stage, the next for two.

        Args:
            num_stages: Number of stages, at least 1.

        Raises:
            UserError: There are fewer stages.
        """
        if num_stages > len(self.strides):
            raise UserError(f"frozen_stages is {num_stages}, but the backbone has only {len(self.strides)} stages.")
        parameters = dict(self.body.named_parameters())
        first = next(iter(parameters.values()))
        training = self.training
        self.eval()
        with torch.enable_grad():
            image = torch.zeros(1, 3, *_PROBE, device=first.device, dtype=first.dtype)
            last = self(image)[num_stages - 1].sum()
            learning = [parameter for parameter in parameters.values() if parameter.requires_grad]
            gradients = torch.autograd.grad(last, learning, allow_unused=True)
        for parameter, gradient in zip(learning, gradients, strict=True):
            parameter.requires_grad_(gradient is None)
        self._frozen = tuple(
            name
            for name, module in self.body.named_modules()
            if (own := list(module.parameters())) and not any(parameter.requires_grad for parameter in own)
        )
        self.train(training)

    def train(self, mode: bool = True) -> FeatureMaps:
        """Training or evaluation mode, always the latter for what is frozen."""
        super().train(mode)
        for name in self._frozen:
            self.body.get_submodule(name).eval()
        return self

    def forward(self, x: Tensor) -> list[Tensor]:
        """Images, (B, 3, H, W), to their maps, finest first."""
        maps = self.body(x)
        chosen = [maps[level] for level in self.levels]
        return [item.permute(0, 3, 1, 2).contiguous() for item in chosen] if self.channels_last else chosen

    @torch.no_grad()
    def _check_output(self, name: str) -> None:
        training = self.body.training
        self.body.eval()
        parameter = next(self.body.parameters())
        try:
            maps = self(torch.zeros(1, 3, *_PROBE, device=parameter.device, dtype=parameter.dtype))
        except (RuntimeError, AssertionError, ValueError, TypeError) as error:
            reason = " ".join(str(error).split())[:150]
            raise UserError(f"{name} does not take images of any size, as a detector's are: {reason}") from error
        finally:
            self.body.train(training)
        for item, channels, stride in zip(maps, self.channels, self.strides, strict=True):
            expected = (1, channels, _PROBE[0] // stride, _PROBE[1] // stride)
            if item.shape != expected:
                raise UserError(f"{name} gives a feature map of shape {tuple(item.shape)} instead of {expected}.")


class PyramidBackbone(nn.Module):
    """Images to the levels of a feature pyramid, named as torchvision's detectors want them.

    (B, 3, H, W) → {"0": (B, C, H / 4, W / 4), …, "pool": (B, C, H / 64, W / 64)}

    Args:
        maps: The backbone.
        out_norm: Normalise each feature map by a BatchNorm first, as the authors' detection backbones do.
        channels: C, of every level.
    """

    def __init__(self, maps: FeatureMaps, out_norm: bool = True, channels: int = PYRAMID_CHANNELS) -> None:
        super().__init__()
        self.out_channels = channels
        self.maps = maps
        self.out_norms = nn.ModuleList(nn.BatchNorm2d(n) if out_norm else nn.Identity() for n in maps.channels)
        self.fpn = FeaturePyramidNetwork(list(maps.channels), channels, LastLevelMaxPool())

    def normalised_maps(self, x: Tensor) -> list[Tensor]:
        """What goes into the pyramid, of images (B, 3, H, W): maps (B, channels, height, width), finest first."""
        return [norm(item) for norm, item in zip(self.out_norms, self.maps(x), strict=True)]

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Images, (B, 3, H, W), to the levels of their pyramid by name."""
        return self.fpn(OrderedDict((str(level), item) for level, item in enumerate(self.normalised_maps(x))))


def _is_autocast(x: Tensor) -> bool:
    device = x.device.type
    return torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)


def _exact(x: Tensor) -> Tensor:
    """``x``, under autocast in float32, in which boxes keep their pixels: bfloat16 has no number from 1000 to 1004."""
    return x.float() if _is_autocast(x) else x


class _Anchors(AnchorGenerator):  # type: ignore[misc]
    """torchvision's, which gives anchors the data type of the feature maps; here they are exact."""

    def forward(self, image_list: ImageList, feature_maps: list[Tensor]) -> list[Tensor]:
        """Anchors of each image, (N, 4), xyxy pixels."""
        if _is_autocast(feature_maps[0]):
            # only their shapes, data type and device are looked at
            feature_maps = [item.new_empty(1, dtype=torch.float32).expand(item.shape) for item in feature_maps]
        return super().forward(image_list, feature_maps)


class _ProposalHead(RPNHead):  # type: ignore[misc]
    """torchvision's; what it says of boxes is exact."""

    def forward(self, x: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Of each level, (B, C, H, W), scores, (B, A, H, W), and changes of the anchors, (B, 4 A, H, W)."""
        scores, changes = super().forward(x)
        return [*map(_exact, scores)], [*map(_exact, changes)]


class _BoxPredictor(FastRCNNPredictor):  # type: ignore[misc]
    """torchvision's; what it says of boxes is exact."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Of regions, (N, C), scores of the classes, (N, classes), and changes of the boxes, (N, 4 classes)."""
        scores, changes = super().forward(x)
        return _exact(scores), _exact(changes)


class Detector(FasterRCNN):  # type: ignore[misc]
    """torchvision's Faster R-CNN, and with a head for masks its Mask R-CNN, with timm's parameter groups.

    Attributes:
        architecture: Name of the backbone and the arguments that timm is given for it.
    """

    architecture: tuple[str, dict[str, Any]]

    @property
    def has_masks(self) -> bool:
        """Whether it learns and gives masks."""
        return bool(self.roi_heads.has_mask())

    def no_weight_decay(self) -> set[str]:
        """Names of parameters that should not decay: those of the backbone that timm excepts."""
        own = (name for name, _ in self.backbone.named_parameters())
        return {f"backbone.{name}" for name in undecayed(plain_classifier(*self.architecture), own)}

    def group_matcher(self, coarse: bool = False) -> Callable[[str], tuple[float]]:
        """timm's parameter groups, for layer-wise decay: the backbone's, then all the rest as its last layer."""
        own = (name for name, _ in self.backbone.named_parameters())
        of_backbone = layers(plain_classifier(*self.architecture), own, coarse)
        return lambda name: (of_backbone.get(name.removeprefix("backbone."), math.inf),)

    def find(self, images: Sequence[Tensor]) -> list[dict[str, Tensor]]:
        """``forward`` in evaluation mode with ``box_masks``, (N, 1, 28, 28), in the place of ``masks``, if it has any.

        A hundred masks of a camera's photograph take gigabytes; ``encode_box_masks`` makes one after the other.
        """
        batch, _ = self.transform(list(images))
        proposals, _ = self.rpn(batch, features := self.backbone(batch.tensors))
        found, _ = self.roi_heads(features, proposals, batch.image_sizes)
        for image, resized, one in zip(images, batch.image_sizes, found, strict=True):
            one["boxes"] = resize_boxes(one["boxes"], list(resized), list(image.shape[-2:]))
            if "masks" in one:
                one["box_masks"] = one.pop("masks")
        return found


def create_mask_rcnn(
    name: str,
    num_categories: int,
    *,
    model_args: Mapping[str, Any] | None = None,
    out_norm: bool = True,
    frozen_bn: bool = False,
    drop_path_rate: float | None = None,
    pyramid_channels: int = PYRAMID_CHANNELS,
    img_size: Sequence[int] = IMG_SIZE,
    score_thresh: float = SCORE_THRESH,
    nms_thresh: float = 0.5,
    detections_per_img: int = 100,
    num_proposals: int = 1000,
    num_sampled: int = 512,
    masks: bool = True,
) -> Detector:
    """Mask R-CNN with a feature pyramid on a backbone of timm's registry, untrained; without masks Faster R-CNN.

    The model takes a list of RGB images, (3, H, W) in [0, 1], of any sizes, which it normalises by the backbone's mean
    and standard deviation and resizes. In training it takes targets too (``boxes``, xyxy pixels, (N, 4); ``labels``,
    (N,), from 1 on; ``masks``, (N, H, W), 0 or 1) and returns the losses; in evaluation it returns, for each image,
    ``boxes``, ``labels``, ``scores``, (N,), in [0, 1], and ``masks``, (N, 1, H, W), in [0, 1], all for the image's own
    size. Faster R-CNN neither takes nor gives masks.

    Args:
        name: Backbone; any of timm's whose feature maps make a pyramid.
        num_categories: Kinds of objects, without the background.
        model_args: Arguments of the backbone.
        out_norm: Normalise each feature map by a BatchNorm before the pyramid, as the authors do.
        frozen_bn: The backbone's BatchNorms keep statistics and affine as they are, for small batches. Those of
            ``out_norm`` are new and keep learning.
        drop_path_rate: Stochastic depth; None takes the paper's for S, M and L and the backbone's own for others.
        pyramid_channels: Channels of every level of the pyramid, and with them the width of the heads; beside a small
            backbone, the paper's 256 are most of the detector.
        img_size: Shorter and at most longer side of an image, in pixels.
        score_thresh: Detections of lower scores are left out.
        nms_thresh: Of two boxes of one category with a higher IoU the one of the lower score is left out.
        detections_per_img: Detections in one image at most.
        num_proposals: Proposals in one image at most that the heads look at; twice as many in training, before the
            heads' samples are drawn from them.
        num_sampled: Proposals in one image that the heads learn from, at most a quarter of them on objects.
        masks: Whether there is a head for masks.

    Raises:
        UserError: timm has no such backbone, or its feature maps do not make a pyramid.
    """
    if name.startswith(PREFIX) or name == ARCHITECTURE:
        raise UserError(f"{name} gives no feature maps, which a detector needs; take a backbone of timm, as resnet50.")
    if num_categories < 1:
        raise UserError("A detector needs at least one category.")
    if pyramid_channels < 1:
        raise UserError(f"pyramid_channels={pyramid_channels} must be at least 1.")
    short, long = img_size
    if not 0 < short <= long:
        raise UserError(f"img_size={tuple(img_size)} must be the shorter and the longer side, in pixels.")
    arguments = dict(model_args or {})
    if "features_only" in arguments:
        raise UserError("Model arguments of a detector may not contain features_only: it takes feature maps anyway.")
    if (channels := arguments.get("in_chans", 3)) != 3:
        raise UserError(f"A detector takes images of 3 channels, but {name} is to take {channels}; leave out in_chans.")
    if drop_path_rate is None:
        drop_path_rate = DROP_PATH_RATES.get(split_model_name_tag(name)[0])
    if drop_path_rate is not None:
        arguments.setdefault("drop_path_rate", drop_path_rate)
    network, maps = _create_maps(name, arguments)
    if frozen_bn:
        maps = freeze_batch_norm_2d(maps)
    model = _assemble(
        PyramidBackbone(maps, out_norm, pyramid_channels),
        DetectorTransform((short, long), network.input_config["mean"], network.input_config["std"], maps.strides[-1]),
        num_categories + 1,
        masks,
        box_score_thresh=score_thresh,
        box_nms_thresh=nms_thresh,
        box_detections_per_img=detections_per_img,
        rpn_post_nms_top_n_train=2 * num_proposals,
        rpn_post_nms_top_n_test=num_proposals,
        box_batch_size_per_image=num_sampled,
    )
    model.architecture = name, arguments
    return model.eval()


def _create_maps(name: str, arguments: Mapping[str, Any]) -> tuple[Checkpoint, FeatureMaps]:
    network = create_checkpoint(name, **arguments, features_only=True)
    try:
        return network, FeatureMaps(network.model, name)
    except UserError:
        # windowed transformers take other sizes than their own only when told to
        try:
            network = create_checkpoint(name, **arguments, strict_img_size=False, features_only=True)
            return network, FeatureMaps(network.model, name)
        except (UserError, TypeError):
            pass
        raise


def _assemble(
    backbone: PyramidBackbone, transform: DetectorTransform, num_classes: int, masks: bool, **options: Any
) -> Detector:
    """torchvision's detector with heads as wide as the pyramid, for the strides that there are."""
    strides = (*backbone.maps.strides, 2 * backbone.maps.strides[-1])  # the pooled level comes last
    sizes = tuple((_ANCHOR_SCALE * stride,) for stride in strides)
    channels = backbone.out_channels
    of_masks: dict[str, nn.Module] = {}
    if masks:
        of_masks = {
            "mask_roi_pool": _region_pooling(backbone.maps.strides, _MASK_SIDE),
            "mask_head": MaskRCNNHeads(channels, (channels,) * 4, dilation=1),
            "mask_predictor": MaskRCNNPredictor(channels, channels, num_classes),
        }
    detector = Detector(
        backbone,
        rpn_anchor_generator=_Anchors(sizes, (_ASPECT_RATIOS,) * len(sizes)),
        rpn_head=_ProposalHead(channels, len(_ASPECT_RATIOS)),
        box_roi_pool=_region_pooling(backbone.maps.strides, _BOX_SIDE),
        box_head=TwoMLPHead(channels * _BOX_SIDE**2, 4 * channels),
        box_predictor=_BoxPredictor(4 * channels, num_classes),
        **options,
    )
    for name, module in of_masks.items():
        setattr(detector.roi_heads, name, module)
    detector.transform = transform
    return detector


def _region_pooling(strides: Sequence[int], side: int) -> MultiScaleRoIAlign:
    """Pooling of regions from maps of these strides.

    torchvision's takes the strides from the first image that it sees and keeps them. They are wrong if that image is a
    narrow strip, filled up with more rows of zeros than it has itself.
    """
    levels = [str(level) for level in range(len(strides))]
    pool = MultiScaleRoIAlign(levels, output_size=side, sampling_ratio=2)
    pool.scales = [1 / stride for stride in strides]
    pool.map_levels = LevelMapper(int(math.log2(strides[0])), int(math.log2(strides[-1])))
    return pool


def count_parameters(model: Detector) -> dict[str, int]:
    """Number of parameters of each part: backbone, its output norms, pyramid, proposals, boxes, masks if it has any."""
    parts: dict[str, Sequence[nn.Module]] = {
        "backbone": (model.backbone.maps,),
        "output norms": (model.backbone.out_norms,),
        "pyramid": (model.backbone.fpn,),
        "proposals": (model.rpn,),
        "boxes": (model.roi_heads.box_head, model.roi_heads.box_predictor),
    }
    if model.has_masks:
        parts["masks"] = (model.roi_heads.mask_head, model.roi_heads.mask_predictor)
    return {
        name: sum(parameter.numel() for module in modules for parameter in module.parameters())
        for name, modules in parts.items()
    }
