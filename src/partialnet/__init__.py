"""PartialNet: partial-channel vision networks ("Partial Channel Network: Compute Fewer, Perform Better").

``import partialnet`` registers ``partialnet_t0`` … ``partialnet_l`` with timm, and the converted ``resnet50_pat``,
``mobilenetv2_100_pat`` and ``convnext_tiny_pat``.
"""

from . import torchvision_networks as _torchvision_networks  # noqa: F401 - registers torchvision's classifiers
from .checkpoint.foreign import load_released
from .folding import fold
from .models import PartialNet
from .search import planned as _planned  # noqa: F401 - registers planned networks with timm
from .surgery import converted as _converted  # noqa: F401 - registers converted networks with timm
from .surgery import replace_convs

__all__ = ["PartialNet", "fold", "load_released", "replace_convs"]
__version__ = "0.1.0"
