"""A kernel of Triton: the smallest one, compiled and run as those of a training are.

Apart from the other probes because Triton comes with torch's CUDA builds only.
"""

import triton
import triton.language as tl

ROWS = 1000  # not a multiple of BLOCK, so that the mask is used
BLOCK = 256


@triton.jit  # type: ignore[untyped-decorator]
def double(source, target, count, block: tl.constexpr):  # type: ignore[no-untyped-def]
    """Write twice every number of `source` to `target`."""
    places = tl.program_id(0) * block + tl.arange(0, block)
    inside = places < count
    tl.store(target + places, 2 * tl.load(source + places, mask=inside), mask=inside)


def run(device: str) -> float:
    """Run the kernel on a device; returns the largest error, which should be 0."""
    import torch

    source = torch.arange(ROWS, dtype=torch.float32, device=device)
    target = torch.full_like(source, -1.0)
    double[(triton.cdiv(ROWS, BLOCK),)](source, target, ROWS, block=BLOCK)
    return float((target - 2 * source).abs().max())
