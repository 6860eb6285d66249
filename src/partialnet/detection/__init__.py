"""Object detection and instance segmentation: Mask R-CNN with a partial-channel backbone."""
