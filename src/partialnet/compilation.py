"""What to tell the user where PyTorch's compiler fails."""

from __future__ import annotations

from torch._dynamo.exc import BackendCompilerFailed
from torch._inductor.runtime.cache_dir_utils import cache_dir

from .messages import first_line


def why_not_compiled(error: BackendCompilerFailed) -> str:
    """What the compiler says, and which folder to delete if files that it left there are the reason.

    The compiler keeps what it has compiled, and takes a file that a killed process left half-written for a whole one.
    """
    reason = error.inner_exception
    said = f"{type(reason).__name__}: {first_line(reason).removesuffix('.')}"
    return f"{said}. If an earlier compilation was killed, its files may be damaged: delete {cache_dir()!r}."
