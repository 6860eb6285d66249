"""Partial attention in a network of your own, from its definition to an exported file.

    python examples/own_network.py                      # all of it, in half a minute, on random images
    partialnet --import examples/own_network.py convert smallnet --dry-run
    partialnet --import examples/own_network.py convert smallnet -o runs/smallnet
    partialnet --import examples/own_network.py train digits --model runs/smallnet --epochs 5 -o runs/digits
    partialnet --import examples/own_network.py export runs/digits

``register_model`` gives the network a name, under which all commands know it, before and after its conversion.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from timm.models import register_model
from torch import Tensor, nn

from partialnet import fold, replace_convs
from partialnet.checkpoint import create_checkpoint, load
from partialnet.deploy.export import export
from partialnet.surgery.converted import convert_checkpoint


class SmallNet(nn.Module):
    """A small CNN with a regular, a strided and a depthwise convolution, for images of 32×32."""

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.num_classes = num_classes
        # what timm asks a network for: its images, and the layer that answers
        self.pretrained_cfg = {"input_size": (3, 32, 32), "classifier": "classifier"}
        self.features = nn.Sequential(
            nn.Conv2d(3, 16, 3, padding=1),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, stride=2, padding=1),
            nn.BatchNorm2d(32),
            nn.ReLU(),
            nn.Conv2d(32, 32, 5, padding=2, groups=32),
            nn.BatchNorm2d(32),
            nn.ReLU(),
            nn.Conv2d(32, 64, 3, stride=2, padding=1),
            nn.BatchNorm2d(64),
            nn.ReLU(),
        )
        self.classifier = nn.Linear(64, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) → (B, num_classes)."""
        return self.classifier(self.features(x).mean((2, 3)))


@register_model
def smallnet(pretrained: bool = False, num_classes: int = 10, **kwargs: object) -> SmallNet:
    """What ``timm.create_model("smallnet")`` builds; timm gives more arguments than this network has."""
    return SmallNet(num_classes)


def train(model: nn.Module, steps: int = 3) -> None:
    """Your images and labels go here; or let ``partialnet train`` do it."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    model.train()
    for _ in range(steps):
        images, labels = torch.rand(8, 3, 32, 32), torch.randint(2, (8,))
        loss = nn.functional.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()


def main(folder: Path) -> None:
    """Convert, train, save, load, fold, export."""
    print(replace_convs(SmallNet(), dry_run=True).table())  # what would be replaced, what not and why

    checkpoint = create_checkpoint("smallnet", ["cat", "dog"], num_classes=2)
    checkpoint, surgery = convert_checkpoint(checkpoint, select="regular", split_ratio=1 / 4)
    print(f"\n{surgery.before.macs_g:.4f} → {surgery.after.macs_g:.4f} G multiply–adds")
    train(checkpoint.model)

    checkpoint.save(folder / "smallnet")  # the surgery is part of config.json
    again = load(folder / "smallnet")  # the same layers, the same weights
    folded = fold(again.model)  # no BatchNorm left
    with torch.no_grad():
        images = torch.rand(2, 3, 32, 32)
        torch.testing.assert_close(folded(images), checkpoint.model(images), rtol=1e-4, atol=1e-5)
    export(again, folder / "smallnet.onnx")  # compared with PyTorch before it is put in place
    print(f"Written: {folder / 'smallnet'}/, {folder / 'smallnet.onnx'}")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs"))
