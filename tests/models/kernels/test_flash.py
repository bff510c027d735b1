"""The Triton kernels compile for GPUs that are not here, and fit into their shared memory."""

import pytest
import torch

pytest.importorskip("triton")

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from lookupvit_video.models.kernels.flash import _column_kernel, _row_kernel, blocks

SHARED = {
    80: 163 * 1024,
    86: 99 * 1024,
    90: 227 * 1024,
}  # bytes of a block; CUDA C++ programming guide, "compute capabilities"
POINTERS = {torch.bfloat16: "*bf16", torch.float16: "*fp16", torch.float32: "*fp32"}


def compiled(kernel, dtype, capability, constants):
    signature = {}
    for name in kernel.arg_names:
        if name in constants:
            signature[name] = "constexpr"
        elif name.endswith("_ptr"):
            signature[name] = "*fp32" if name in ("lse_ptr", "shift_ptr") else POINTERS[dtype]
        elif name.endswith("strides"):
            signature[name] = ("i32", "i32", "i32")
        else:
            signature[name] = "fp32" if name == "scale" else "i32"
    values = {(kernel.arg_names.index(name),): value for name, value in constants.items()}
    target = GPUTarget("cuda", capability, 32)
    return triton.compile(ASTSource(kernel, signature, values), target=target)


@pytest.mark.parametrize("capability", SHARED)
@pytest.mark.parametrize(("dtype", "head_dim"), [(torch.bfloat16, 64), (torch.float16, 128), (torch.float32, 64)])
def test_kernels_compile_and_fit(dtype, head_dim, capability):
    constants = {**blocks(head_dim, dtype), "GRADIENTS": True}
    for kernel, wanted in ((_row_kernel, "TIMES_COLUMNS"), (_column_kernel, "TIMES_ROWS")):
        found = compiled(kernel, dtype, capability, {**constants, wanted: True})
        assert found.asm["cubin"]
        assert 0 < found.metadata.shared <= SHARED[capability]
