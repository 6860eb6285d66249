"""How PyTorch is set up while something is measured."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch._dynamo import config as dynamo_config

#: Compiled variants of one class of networks, one for each network and batch size: beyond PyTorch's limit of eight, a
#: network would silently run uncompiled. The limit is Dynamo's: torch.compiler.config has none in PyTorch 2.8.
_MOST_VARIANTS = 256


@contextmanager
def torch_settings(threads: int) -> Iterator[None]:
    """Within it PyTorch computes with ``threads`` CPU threads, without TF32, and compiles as many variants as it takes.

    All three belong to the process and are given back. PyTorch's own choice is TF32 in convolutions but not in matrix
    products, which is neither float32 nor TF32.
    """
    before = torch.get_num_threads(), torch.backends.cudnn.allow_tf32, dynamo_config.recompile_limit
    torch.set_num_threads(threads)
    torch.backends.cudnn.allow_tf32 = False
    dynamo_config.recompile_limit = max(dynamo_config.recompile_limit, _MOST_VARIANTS)
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]
        dynamo_config.recompile_limit = before[2]
