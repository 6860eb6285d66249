"""Training of tiny detectors on the sets of ``coco_sets``."""

from training_runs import ON_ONE_CORE, TINY

from partialnet.detection.config import DetectionConfig

CONFIG = DetectionConfig(
    model_args=TINY,
    img_size=(48, 80),
    pyramid_channels=32,
    num_proposals=20,
    num_sampled=16,
    epochs=2,
    batch_size=2,
    warmup_epochs=0.5,
    lr=1e-3,
    lr_scaling="none",
    val_share=0.3,
    **ON_ONE_CORE,
)
