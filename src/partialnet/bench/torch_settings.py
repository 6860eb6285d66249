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
    """Within it PyTorch computes with ``threads`` CPU threads, without TF32 and by the fastest of cuDNN's convolutions,
    and compiles as many variants as it takes.

    All four belong to the process and are given back. PyTorch's own choice is TF32 in convolutions but not in matrix
    products, which is neither float32 nor TF32; and it guesses which of cuDNN's convolutions is the fastest.
    """
    cudnn = torch.backends.cudnn
    before = torch.get_num_threads(), cudnn.allow_tf32, dynamo_config.recompile_limit, cudnn.benchmark
    torch.set_num_threads(threads)
    cudnn.allow_tf32, cudnn.benchmark = False, True
    dynamo_config.recompile_limit = max(dynamo_config.recompile_limit, _MOST_VARIANTS)
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        cudnn.allow_tf32, cudnn.benchmark = before[1], before[3]
        dynamo_config.recompile_limit = before[2]
