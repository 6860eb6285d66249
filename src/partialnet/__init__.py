"""PartialNet: partial-channel vision networks ("Partial Channel Network: Compute Fewer, Perform Better").

``import partialnet`` registers ``partialnet_t0`` … ``partialnet_l`` with timm.
"""

from .checkpoint import load_released
from .fold import fold
from .models import PartialNet

__all__ = ["PartialNet", "fold", "load_released"]
__version__ = "0.1.0"
