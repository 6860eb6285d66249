"""Partial attention in a neck as detectors of the YOLO family have it: strides, upsampling, concatenations.

    python examples/detector_neck.py

The neck takes three maps of a backbone, goes up, comes down again by strided convolutions and concatenates on the way.
Each convolution keeps its shape when a PATConv takes its place, so that everything around it stays as it is. Such a
network has no name in timm's registry and needs none: the options of the surgery beside the weights build it again.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import Tensor, nn

from partialnet import fold, replace_convs


def conv(in_channels: int, out_channels: int, kernel_size: int = 3, stride: int = 1) -> nn.Sequential:
    """Convolution, BatchNorm, SiLU."""
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel_size, stride, kernel_size // 2, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.SiLU(),
    )


class CrossStage(nn.Module):
    """Half of the channels goes through a residual pair of 3×3 convolutions; all parts are concatenated."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        half = out_channels // 2
        self.enter = conv(in_channels, out_channels, 1)
        self.first, self.second = conv(half, half), conv(half, half)
        self.leave = conv(3 * half, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in, H, W) → (B, out, H, W)."""
        kept, worked = self.enter(x).chunk(2, 1)
        return self.leave(torch.cat([kept, worked, worked + self.second(self.first(worked))], 1))


class Neck(nn.Module):
    """Maps at strides 8, 16 and 32 in, the same out.

    Args:
        channels: Of the three maps.
    """

    def __init__(self, channels: tuple[int, int, int] = (64, 128, 256)) -> None:
        super().__init__()
        fine, middle, coarse = channels
        self.up_middle = CrossStage(middle + coarse, middle)
        self.up_fine = CrossStage(fine + middle, fine)
        self.down_fine = conv(fine, fine, stride=2)
        self.down_middle = CrossStage(fine + middle, middle)
        self.down_coarse = conv(middle, middle, stride=2)
        self.last = CrossStage(middle + coarse, coarse)

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        """Three maps, (B, C, H, W) each, the finest first."""
        fine, middle, coarse = maps
        middle = self.up_middle(torch.cat([self._enlarge(coarse, middle), middle], 1))
        fine = self.up_fine(torch.cat([self._enlarge(middle, fine), fine], 1))
        middle = self.down_middle(torch.cat([self.down_fine(fine), middle], 1))
        coarse = self.last(torch.cat([self.down_coarse(middle), coarse], 1))
        return [fine, middle, coarse]

    @staticmethod
    def _enlarge(x: Tensor, like: Tensor) -> Tensor:
        return nn.functional.interpolate(x, size=like.shape[-2:])


class Detector(nn.Module):
    """A backbone of strided convolutions, the neck, and one 1×1 convolution for boxes and classes on each map."""

    def __init__(self, num_outputs: int = 85) -> None:
        super().__init__()
        self.stem = nn.Sequential(conv(3, 16, stride=2), conv(16, 32, stride=2))
        self.stages = nn.ModuleList([conv(32, 64, stride=2), conv(64, 128, stride=2), conv(128, 256, stride=2)])
        self.neck = Neck()
        self.heads = nn.ModuleList([nn.Conv2d(channels, num_outputs, 1) for channels in (64, 128, 256)])

    def forward(self, x: Tensor) -> list[Tensor]:
        """(B, 3, H, W) → three maps of outputs."""
        x = self.stem(x)
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return [head(x) for head, x in zip(self.heads, self.neck(maps), strict=True)]


def main(folder: Path) -> None:
    """Convert the neck, use it, save it, load it, fold it, export it."""
    detector = Detector().eval()
    images = torch.rand(2, 3, 200, 312)  # no multiple of 32: odd maps on the way
    # the neck's 3×3 convolutions only; the backbone stays
    surgery = replace_convs(detector, select=lambda name, layer: name.startswith("neck."), input_size=(3, 200, 312))
    print(surgery.table())
    converted = surgery.model.eval()
    with torch.no_grad():
        assert [x.shape for x in converted(images)] == [x.shape for x in detector(images)]

    folder.mkdir(parents=True, exist_ok=True)
    torch.save({"surgery": surgery.recipe, "weights": converted.state_dict()}, folder / "detector.pt")
    stored = torch.load(folder / "detector.pt", weights_only=True)
    again = replace_convs(Detector(), **stored["surgery"], input_size=(3, 200, 312)).model.eval()
    again.load_state_dict(stored["weights"])

    folded = fold(again)  # no BatchNorm left
    with torch.no_grad():
        for ours, theirs in zip(folded(images), converted(images), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)
    torch.onnx.export(folded, (images[:1],), folder / "detector.onnx", dynamo=True, external_data=False, verbose=False)
    print(f"Written: {folder / 'detector.pt'}, {folder / 'detector.onnx'}")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs"))
