"""Speed on one GPU: PartialNet beside FasterNet and what else one would use, in less than eight minutes.

    python benchmarks/gpu_suite.py
    python benchmarks/gpu_tables.py                  # the result as Markdown
    python benchmarks/gpu_suite.py --device cpu --quick --runtimes eager    # try it without a GPU

Throughput at batch 256 and latency at batch 1, in bf16, TF32 and fp32; eager PyTorch, its kernels replayed from a CUDA
graph, and torch.compile (replayed from a CUDA graph); channels_last and contiguous; training steps; peak memory;
achieved FLOP/s and bandwidth against a large matrix product and a copy in the same run. Networks of one group are timed
in turn, folded or re-parameterised all alike. The order is by importance, and what does not fit into --minutes is
skipped and named. The result file, benchmarks/results/gpu_<device>.json, is written after every group, so nothing is
lost if the run is cut off.

Runs from a checkout without installation and without a network; needs torch, torchvision, timm and safetensors.
"""

from __future__ import annotations

import faulthandler
import os
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

import torch
from gpu.plan import RUNTIMES, full_plan, possible, quick_plan
from gpu.suite import Suite
from result_file import result_file, result_parser

#: Seconds beyond the time budget after which the process ends, whatever it does.
GRACE_SECONDS = 25


def main(arguments: list[str] | None = None) -> None:
    parser = result_parser(__doc__)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--minutes", type=float, default=7.5, help="time budget, start of Python not counted (7.5)")
    parser.add_argument("--seconds", type=float, help="time to measure each network (1; 0.05 with --quick)")
    parser.add_argument("--compile-seconds", type=float, default=90, help="limit for compiling one network (90)")
    parser.add_argument("--runtimes", nargs="+", choices=list(RUNTIMES), default=list(RUNTIMES))
    parser.add_argument("--quick", action="store_true", help="every kind of job once, tiny")
    options = parser.parse_args(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("PyTorch sees no CUDA device here; --device cpu --quick tries the suite without one.")
    device = torch.device("cuda", torch.cuda.current_device()) if options.device == "cuda" else torch.device("cpu")
    name = torch.cuda.get_device_name() if options.device == "cuda" else "cpu"
    slug = re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_") + ("_quick" if options.quick else "")
    path = result_file(options, f"gpu_{slug}.json")
    seconds = options.seconds if options.seconds is not None else 0.05 if options.quick else 1.0
    suite = Suite(device, path, options.minutes, seconds, options.compile_seconds, options.quick)
    plan = quick_plan() if options.quick else full_plan()
    jobs = list(possible(plan, options.device, options.runtimes))
    # where not even a signal ends what hangs; the result file is as the last job left it
    faulthandler.dump_traceback_later(60 * options.minutes + GRACE_SECONDS, exit=True)
    try:
        results = suite.run(jobs)
    except KeyboardInterrupt:
        print(f"interrupted: {len(suite.results['rows'])} rows are in {path}")
        raise SystemExit(130) from None
    finally:
        faulthandler.cancel_dump_traceback_later()
    for entry in results["skipped"]:
        print(f"skipped: {entry['job']} ({entry['reason']})")
    print(f"{len(results['rows'])} rows, {len(results['failed'])} failures, {results['seconds']:.0f} s")
    print(f"written: {path}\nnext: python benchmarks/gpu_tables.py {path}")


if __name__ == "__main__":
    main()
    # Python would wait for the compiler's processes, up to five minutes where they still work at what was given up
    sys.stdout.flush()
    os._exit(0)
