"""Lists of networks to compare, with the figures that others published for them: quoted, never measured here."""

from __future__ import annotations

import re
from dataclasses import dataclass

import timm
import torchvision

from partialnet.torchvision_networks import PREFIX

PAPER_SOURCE = "paper, Table 10"
_TIMM_RESULTS = "timm results-imagenet.csv (August 2024)"


@dataclass(frozen=True)
class PaperFigures:
    """A row of Table 10 without its accuracy.

    Attributes:
        params_m: Parameters in millions.
        macs_g: Multiply–adds of one image in billions; the paper's "FLOPs".
        images_per_second_v100: Throughput of an Nvidia V100 in batches of 256.
        images_per_second_mi250: Throughput of an AMD MI250 in batches of 256.
        latency_ms: Latency on one core of an AMD EPYC 73F3, in milliseconds.
    """

    params_m: float
    macs_g: float
    images_per_second_v100: int
    images_per_second_mi250: int
    latency_ms: float


@dataclass(frozen=True)
class PresetRow:
    """A network of a comparison.

    Attributes:
        name: What tables and pictures call it.
        model: A name that ``partialnet.checkpoint.load`` takes.
        img_size: Height and width in pixels that the accuracy belongs to.
        top1_quoted: Published top-1 accuracy on ImageNet-1k in percent; None where none was found.
        top1_source: Where it was published, with the name of the weights.
        paper: The paper's other figures.
    """

    name: str
    model: str
    img_size: int
    top1_quoted: float | None
    top1_source: str
    paper: PaperFigures | None = None

    @property
    def family(self) -> str:
        """The first word of the name, which networks share that differ in size only."""
        return re.split("[ -]", self.name)[0]

    @property
    def size(self) -> str:
        """The part of the name that tells sizes of a family apart; empty for its only member."""
        return self.name.removeprefix(self.family).lstrip(" -")

    @property
    def distilled(self) -> bool:
        """Whether the quoted weights learnt from another network's answers too."""
        return "dist" in self.top1_source.partition(":")[2]

    def exists(self) -> bool:
        """Whether the installed timm or torchvision has it."""
        if not self.model.startswith(PREFIX):
            return bool(timm.is_model(self.model))
        return self.model.removeprefix(PREFIX) in torchvision.models.list_models(torchvision.models)


def _paper(
    name: str,
    model: str,
    params_m: float,
    macs_g: float,
    v100: int,
    mi250: int,
    latency_ms: float,
    top1: float,
    img_size: int = 224,
) -> PresetRow:
    figures = PaperFigures(params_m, macs_g, v100, mi250, latency_ms)
    return PresetRow(name, model, img_size, top1, PAPER_SOURCE, figures)


#: Table 10, in its order. It prints no image sizes; these give its multiply–adds.
PAPER = (
    _paper("ShuffleNetV2 x1.5", "torchvision:shufflenet_v2_x1_5", 3.5, 0.30, 5315, 6642, 13.7, 72.6),
    _paper("MobileNetV2", "mobilenetv2_100", 3.5, 0.31, 3924, 7359, 13.7, 72.0),
    _paper("FasterNet-T0", "fasternet_t0", 3.9, 0.34, 8546, 10612, 10.5, 71.9),
    _paper("MobileViT-XXS", "mobilevit_xxs", 1.3, 0.42, 2900, 3321, 16.7, 69.0, 256),
    _paper("MobileViTv2-0.5", "mobilevitv2_050", 1.4, 0.46, 3094, 3135, 15.8, 70.2, 256),
    _paper("PartialNet-T0", "partialnet_t0", 4.3, 0.25, 7777, 11744, 12.2, 73.9),
    _paper("EfficientNet-B0", "efficientnet_b0", 5.3, 0.39, 2934, 3344, 22.7, 77.1),
    _paper("GhostNet x1.3", "ghostnet_130", 7.4, 0.24, 3788, 3620, 16.7, 75.7),
    _paper("ShuffleNetV2 x2", "torchvision:shufflenet_v2_x2_0", 7.4, 0.59, 4290, 5371, 22.6, 74.9),
    _paper("MobileNetV2 x1.4", "mobilenetv2_140", 6.1, 0.60, 2615, 4142, 21.7, 74.7),
    _paper("FasterNet-T1", "fasternet_t1", 7.6, 0.85, 4648, 7198, 22.2, 76.2),
    _paper("EfficientViT-B1-192", "efficientvit_b1", 9.1, 0.38, 4072, 3912, 19.3, 77.7, 192),
    _paper("MobileViT-XS", "mobilevit_xs", 2.3, 1.05, 1663, 1884, 32.8, 74.8, 256),
    _paper("PartialNet-T1", "partialnet_t1", 7.8, 0.55, 4403, 7379, 21.5, 78.1),
    _paper("EfficientNet-B1", "efficientnet_b1", 7.8, 0.70, 1730, 1583, 35.5, 79.1, 240),
    _paper("ResNet50", "resnet50", 25.6, 4.11, 1258, 3135, 94.8, 78.8),
    _paper("FasterNet-T2", "fasternet_t2", 15.0, 1.91, 2455, 4189, 43.7, 78.9),
    _paper("PoolFormer-S12", "poolformer_s12", 11.9, 1.82, 1927, 3558, 56.1, 77.2),
    _paper("MobileViT-S", "mobilevit_s", 5.6, 2.03, 1219, 1370, 52.4, 78.4, 256),
    _paper("MobileViTv2-1.0", "mobilevitv2_100", 4.9, 1.85, 1391, 1543, 41.5, 78.1, 256),
    _paper("EfficientViT-B1", "efficientvit_b1", 9.1, 0.52, 3072, 3387, 25.7, 79.4),
    _paper("PartialNet-T2", "partialnet_t2", 12.6, 1.03, 3074, 4761, 35.2, 80.2),
    _paper("EfficientNet-B3", "efficientnet_b3", 12.0, 1.80, 768, 926, 73.5, 81.6, 300),
    _paper("ConvNeXt-T", "convnext_tiny", 28.6, 4.47, 902, 1103, 99.4, 82.1),
    _paper("FasterNet-S", "fasternet_s", 31.1, 4.56, 1261, 2243, 96.0, 81.3),
    _paper("PoolFormer-S36", "poolformer_s36", 30.9, 5.00, 675, 1092, 152.4, 81.4),
    _paper("MobileViTv2-1.5", "mobilevitv2_150", 10.6, 4.00, 812, 1000, 104.4, 80.4, 256),
    _paper("MobileViTv2-2.0", "mobilevitv2_200", 18.5, 7.50, 551, 684, 103.7, 81.2, 256),
    _paper("Swin-T", "swin_tiny_patch4_window7_224", 28.3, 4.51, 808, 1192, 107.1, 81.3),
    _paper("PartialNet-S", "partialnet_s", 29.0, 2.71, 1559, 2422, 72.5, 82.1),
    _paper("EfficientNet-B4", "efficientnet_b4", 19.0, 4.20, 356, 442, 156.9, 82.9, 380),
    _paper("ConvNeXt-S", "convnext_small", 50.2, 8.71, 510, 610, 185.5, 83.1),
    _paper("FasterNet-M", "fasternet_m", 53.5, 8.74, 621, 1098, 181.6, 83.0),
    _paper("PoolFormer-M36", "poolformer_m36", 56.2, 8.80, 444, 721, 244.3, 82.1),
    _paper("Swin-S", "swin_small_patch4_window7_224", 49.6, 8.77, 477, 732, 199.1, 83.0),
    _paper("PartialNet-M", "partialnet_m", 61.3, 6.69, 799, 1280, 155.3, 83.1),
    _paper("EfficientNet-B5", "efficientnet_b5", 30.0, 9.90, 246, 313, 333.3, 83.6, 456),
    _paper("ConvNeXt-B", "convnext_base", 88.6, 15.38, 322, 430, 317.1, 83.8),
    _paper("FasterNet-L", "fasternet_l", 93.5, 15.52, 384, 709, 312.5, 83.5),
    _paper("PoolFormer-M48", "poolformer_m48", 73.5, 11.59, 335, 556, 322.3, 82.5),
    _paper("Swin-B", "swin_base_patch4_window7_224", 87.8, 15.47, 315, 520, 333.8, 83.5),
    _paper("PartialNet-L", "partialnet_l", 104.3, 11.91, 426, 765, 272.5, 83.9),
)


def _timm(name: str, weights: str, top1: float, img_size: int = 224) -> PresetRow:
    return PresetRow(name, weights.partition(".")[0], img_size, top1, f"{_TIMM_RESULTS}: {weights}")


def _authors(name: str, model: str, top1: float, repository: str, img_size: int = 224) -> PresetRow:
    # timm's table does not list these weights, which are the authors'
    return PresetRow(name, model, img_size, top1, f"authors' table, {repository}: {model}.in1k")


#: What one would choose from today. Weights of ImageNet-1k alone, undistilled where a family has such.
MODERN = (
    *(row for row in PAPER if row.family == "PartialNet"),
    _timm("RepViT-M0.9", "repvit_m0_9.dist_450e_in1k", 79.058),
    _timm("RepViT-M1.0", "repvit_m1_0.dist_450e_in1k", 80.446),
    _timm("RepViT-M1.1", "repvit_m1_1.dist_450e_in1k", 81.302),
    _timm("RepViT-M1.5", "repvit_m1_5.dist_450e_in1k", 82.520),
    _timm("RepViT-M2.3", "repvit_m2_3.dist_450e_in1k", 83.742),
    _authors("SHViT-S1", "shvit_s1", 72.8, "github.com/ysj9909/SHViT"),
    _authors("SHViT-S2", "shvit_s2", 75.2, "github.com/ysj9909/SHViT"),
    _authors("SHViT-S3", "shvit_s3", 77.4, "github.com/ysj9909/SHViT"),
    _authors("SHViT-S4", "shvit_s4", 79.4, "github.com/ysj9909/SHViT", 256),
    _timm("MobileNetV4-Conv-S", "mobilenetv4_conv_small.e2400_r224_in1k", 73.730),
    _timm("MobileNetV4-Conv-M", "mobilenetv4_conv_medium.e500_r224_in1k", 79.092),
    _timm("MobileNetV4-Hybrid-M", "mobilenetv4_hybrid_medium.e500_r224_in1k", 80.438),
    _timm("MobileNetV4-Conv-L", "mobilenetv4_conv_large.e500_r256_in1k", 81.864, 256),
    _timm("EfficientViT-B0", "efficientvit_b0.r224_in1k", 71.404),
    _timm("EfficientViT-B1", "efficientvit_b1.r224_in1k", 79.240),
    _timm("EfficientViT-B2", "efficientvit_b2.r224_in1k", 82.162),
    _timm("EfficientViT-B3", "efficientvit_b3.r224_in1k", 83.444),
    _authors("StarNet-S1", "starnet_s1", 73.6, "github.com/ma-xu/Rewrite-the-Stars"),
    _authors("StarNet-S2", "starnet_s2", 74.7, "github.com/ma-xu/Rewrite-the-Stars"),
    _authors("StarNet-S3", "starnet_s3", 77.4, "github.com/ma-xu/Rewrite-the-Stars"),
    _authors("StarNet-S4", "starnet_s4", 78.8, "github.com/ma-xu/Rewrite-the-Stars"),
    _timm("LeViT-128S", "levit_128s.fb_dist_in1k", 76.522),
    _timm("LeViT-128", "levit_128.fb_dist_in1k", 78.486),
    _timm("LeViT-192", "levit_192.fb_dist_in1k", 79.850),
    _timm("LeViT-256", "levit_256.fb_dist_in1k", 81.506),
    _timm("LeViT-384", "levit_384.fb_dist_in1k", 82.598),
    _timm("FastViT-T8", "fastvit_t8.apple_in1k", 76.184, 256),
    _timm("FastViT-T12", "fastvit_t12.apple_in1k", 79.276, 256),
    _timm("FastViT-S12", "fastvit_s12.apple_in1k", 79.920, 256),
    _timm("FastViT-SA12", "fastvit_sa12.apple_in1k", 80.840, 256),
    _timm("FastViT-SA24", "fastvit_sa24.apple_in1k", 82.706, 256),
    _timm("FastViT-SA36", "fastvit_sa36.apple_in1k", 83.504, 256),
    _timm("MobileOne-S0", "mobileone_s0.apple_in1k", 71.398),
    _timm("MobileOne-S1", "mobileone_s1.apple_in1k", 75.774),
    _timm("MobileOne-S2", "mobileone_s2.apple_in1k", 77.504),
    _timm("MobileOne-S3", "mobileone_s3.apple_in1k", 78.002),
    _timm("MobileOne-S4", "mobileone_s4.apple_in1k", 79.450),
)

PRESETS = {"paper": PAPER, "modern": MODERN}
