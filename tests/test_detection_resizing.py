"""A detector sees an image in one size and with the same pixels, whoever shows it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from partialnet.detection.annotations import Instances
from partialnet.detection.checkpoint import create_detector
from partialnet.detection.exported import Canvas
from partialnet.detection.prediction import detect
from partialnet.detection.resizing import DetectorTransform, resized_size
from partialnet.detection.transforms import prepare, to_tensor

PLAIN = [0.0] * 3, [1.0] * 3


@pytest.mark.parametrize("img_size", [(800, 1333), (320, 512), (96, 128)])
def test_sizes_are_those_of_torchvision(img_size: tuple[int, int]) -> None:
    resize = GeneralizedRCNNTransform(*img_size, *PLAIN).eval()
    ours = DetectorTransform(img_size, *PLAIN).eval()
    rng = np.random.default_rng(0)
    for height, width in rng.integers(20, 900, (30, 2)).tolist():
        image = torch.zeros(1, height, width).expand(3, -1, -1)
        expected = resize([image])[0].image_sizes[0]
        assert resized_size((height, width), img_size) == ours([image])[0].image_sizes[0] == expected


def test_a_strip_keeps_a_pixel_and_a_canvas_has_the_last_word() -> None:
    assert resized_size((3, 400), (48, 80)) == (1, 80)
    assert resized_size((400, 3), (48, 80)) == (80, 1)
    assert resized_size((60, 40), (48, 80)) == (72, 48)
    assert resized_size((60, 40), (48, 80), room=(48, 80)) == (48, 32)
    assert resized_size((30, 40), (48, 80), room=(96, 96)) == (48, 64)


def test_pixels_of_a_small_photo_are_those_of_torchvision() -> None:
    image = torch.rand(3, 30, 44)
    normalisation = [0.4, 0.5, 0.6], [0.2, 0.3, 0.4]
    ours, theirs = (
        transform.eval()([image])[0].tensors
        for transform in (DetectorTransform((64, 96), *normalisation), GeneralizedRCNNTransform(64, 96, *normalisation))
    )
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


def test_objects_are_resized_with_their_image_in_training() -> None:
    """As by torchvision's transform, for those who train a detector by a loop of their own."""
    target = {"boxes": torch.tensor([[3.0, 4, 20, 18]]), "labels": torch.tensor([1]), "masks": torch.zeros(1, 30, 44)}
    target["masks"][:, 4:18, 3:20] = 1
    target["masks"] = target["masks"].byte()
    image = torch.rand(3, 30, 44)
    (ours,), (theirs,) = (
        transform.train()([image], [target])[1]
        for transform in (DetectorTransform((64, 96), *PLAIN), GeneralizedRCNNTransform(64, 96, *PLAIN))
    )
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert target["boxes"].tolist() == [[3, 4, 20, 18]]


def test_training_images_that_were_resized_stay() -> None:
    transform = DetectorTransform((40, 64), *PLAIN, 16, resizes_training=False)
    image = torch.rand(3, 24, 30)
    for training, size in ((True, (24, 30)), (False, (40, 50))):
        assert transform.train(training)([image])[0].image_sizes == [size]


def test_a_large_photo_looks_alike_in_training_evaluation_prediction_and_on_a_canvas(tmp_path: Path) -> None:
    """Noise, five times as large as the detector sees it: leaving out pixels would be another picture."""
    arguments = {"embed_dim": 16, "depths": (1, 1, 1, 1)}
    detector = create_detector(
        "partialnet_t0", {1: "cat"}, model_args=arguments, img_size=(48, 80), pyramid_channels=16, num_proposals=5
    )
    noise = np.random.default_rng(0).integers(0, 256, (240, 400, 3), np.uint8)
    photo = Image.fromarray(noise)
    photo.save(tmp_path / "noise.png")
    seen: list[Tensor] = []

    def look(module: nn.Module, args: tuple[Tensor]) -> None:
        seen.append(args[0])

    def run(canvas: Tensor, image_size: Tensor) -> list[Tensor]:
        assert image_size.tolist() == [48, 80]
        seen.append(canvas)
        return [torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), torch.zeros(0), torch.zeros(0, 28, 28)]

    detector.model.backbone.register_forward_pre_hook(look)  # type: ignore[union-attr]
    pixels = to_tensor(photo).float().div(255)
    with torch.no_grad():
        detector.model([pixels])
        detector.model.find([pixels])  # type: ignore[operator]
    list(detect(detector, [tmp_path / "noise.png"]))
    Canvas(run, (64, 96), detector.model.transform)([pixels])  # type: ignore[arg-type]
    nothing = Instances(np.zeros((0, 4)), np.zeros(0, int), np.zeros(0), np.zeros(0, bool), ())
    learnt, _ = prepare(photo, nothing, (240, 400), resized_size((240, 400), (48, 80)))
    assert learnt.shape == (3, 48, 80)
    # means over 5×5 pixels and more
    assert learnt.float().std() < noise.std() / 4
    mean, std = (torch.tensor(values)[:, None, None] for values in (detector.mean, detector.std))
    assert len(seen) == 4
    for batch in seen:
        shown = (batch[0, :, :48, :80] * std + mean) * 255
        assert (shown - learnt).abs().max() < 1.01  # numbers from 0 to 255 are rounded
