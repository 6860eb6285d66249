"""Peak memory of training a detector, computed without a GPU.

    python benchmarks/detection_memory.py --model partialnet_s

writes benchmarks/results/detection_memory.json. A training step runs on fake tensors, which have a shape, a type and no
content, and PyTorch's ``MemTracker`` adds up what lives at every moment: weights, gradients, AdamW's two averages, what
the backward pass needs, and its temporary tensors. What depends on the images' content has its largest size: 512
regions of each image in the boxes' head, 128 of them in the masks'. Not in it: what the CUDA context takes (about 0.5
GB), workspaces of cuDNN, the allocator's fragments, the choice of proposals and the losses' targets (some ten
megabytes), and the true objects' masks, which ``--objects`` adds.

bf16 is autocast's for the CPU; which operators it casts differs from CUDA's in details.
"""

from __future__ import annotations

import logging
from typing import Any

import torch
from result_file import result_file, result_parser
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed._tools.mem_tracker import MemTracker

from partialnet.bench import environment
from partialnet.detection.model import create_mask_rcnn
from partialnet.files import write_json

#: Regions of one image that torchvision's heads learn from: all, and the share that are objects.
REGIONS, OBJECT_REGIONS = 512, 128


class StepByParts(nn.Module):
    """All layers of a detector on inputs of fixed sizes, in the order of a training step."""

    def __init__(self, detector: Any) -> None:
        super().__init__()
        self.backbone, self.rpn_head = detector.backbone, detector.rpn.head
        heads = detector.roi_heads
        self.boxes = nn.Sequential(heads.box_head, heads.box_predictor)
        self.masks = nn.Sequential(heads.mask_head, heads.mask_predictor)

    def forward(self, images: Tensor) -> Tensor:
        levels = self.backbone(images)
        objectness, deltas = self.rpn_head(list(levels.values()))
        scores, boxes = self.boxes(self._regions(levels, REGIONS * len(images), 7))
        masks = self.masks(self._regions(levels, OBJECT_REGIONS * len(images), 14))
        outputs = [*objectness, *deltas, scores, boxes, masks]
        return torch.stack([output.float().square().mean() for output in outputs]).sum()

    def _regions(self, levels: dict[str, Tensor], count: int, side: int) -> Tensor:
        """As many values as RoIAlign gives, in float32 like its, with a gradient for every level."""
        level = [item.float().mean((0, 2, 3)) for name, item in levels.items() if name != "pool"]
        return torch.stack(level).sum(0)[None, :, None, None].expand(count, -1, side, side).clone()


def peak_bytes(name: str, batch_size: int, size: tuple[int, int], bf16: bool, frozen_bn: bool) -> dict[str, int]:
    """Largest memory of a training step by kind, at its peak, in bytes."""
    logging.getLogger("torch.distributed._tools").setLevel(logging.ERROR)
    detector = create_mask_rcnn(name, 80, frozen_bn=frozen_bn).train()
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        for module in detector.modules():
            for key, parameter in list(module._parameters.items()):
                if parameter is not None:
                    module._parameters[key] = nn.Parameter(mode.from_tensor(parameter.detach()))
            for key, buffer in list(module._buffers.items()):
                if buffer is not None:
                    module._buffers[key] = mode.from_tensor(buffer)
        step = StepByParts(detector)
        optimizer = torch.optim.AdamW(step.parameters(), lr=1e-4)
        images = torch.empty(batch_size, 3, *size)
        tracker = MemTracker()
        tracker.track_external(step, optimizer, images)
        with tracker:
            for _ in range(2):  # AdamW has its averages from the second step on
                with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                    loss = step(images)
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
                tracker.reset_mod_stats()
        snapshot = tracker.get_tracker_snapshot("peak")[torch.device("cpu")]
    return {str(getattr(kind, "value", kind)): int(value) for kind, value in snapshot.items()}


def main() -> None:
    parser = result_parser(__doc__)
    parser.add_argument("--model", nargs="+", default=["partialnet_s", "partialnet_m", "partialnet_l"])
    parser.add_argument("--batch-size", type=int, default=2)
    parser.add_argument("--size", type=int, nargs=2, default=(800, 1344), help="height and width after filling up")
    parser.add_argument("--objects", type=int, default=20, help="true objects in an image")
    arguments = parser.parse_args()
    path = result_file(arguments, "detection_memory.json")
    setting = {"batch_size": arguments.batch_size, "size": list(arguments.size), "objects": arguments.objects}
    height, width = arguments.size
    truth = arguments.batch_size * arguments.objects * height * width
    rows = []
    for name in arguments.model:
        for bf16 in (True, False):
            found = peak_bytes(name, arguments.batch_size, (height, width), bf16, False)
            total = found["Total"] + truth
            rows.append(
                {
                    "model": name,
                    "precision": "bf16" if bf16 else "fp32",
                    "peak_gb": round(total / 1e9, 3),
                    "by_kind_gb": {kind: round(value / 1e9, 3) for kind, value in found.items() if kind != "Total"}
                    | {"true masks": round(truth / 1e9, 3)},
                }
            )
            print(f"{name:14}{rows[-1]['precision']:6}{rows[-1]['peak_gb']:8.2f} GB  {rows[-1]['by_kind_gb']}")
            content = {
                "environment": environment(),
                "method": "computed: fake tensors",
                "setting": setting,
                "rows": rows,
            }
            write_json(path, content)
    print(f"written: {path}")


if __name__ == "__main__":
    main()
