"""For those who write or check kernels: inputs for every op, and the one rule that decides whether a result is right.

for name, args in samples("layer_norm", torch.float32):
    assert_parity("layer_norm", args, backend="triton", gradients=True)
"""

from .parity import assert_parity, nan_filled_outputs
from .samples import Sample, samples

__all__ = ["Sample", "assert_parity", "nan_filled_outputs", "samples"]
