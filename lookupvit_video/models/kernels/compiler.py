"""Whether there is a compiler for what PyTorch generates: C++ on CPUs, C around Triton's kernels on GPUs."""

import os
import shutil

from lookupvit_video.errors import UserError


def require_compiler(use: str, device_type: str, instead: str) -> None:
    """Refuse what would end in a traceback of torch, after the model has been built.

    Args:
        use: what needs the compiler, as the user gave it, such as ``--compile``.
        device_type: of the device it runs on, such as ``cpu``; others than ``cpu`` and ``cuda`` pass.
        instead: what to do without a compiler.

    Raises:
        UserError: there is none.
    """
    if device_type == "cpu":
        # imported here: they take a second
        from torch._inductor.cpp_builder import get_cpp_compiler
        from torch._inductor.exc import InvalidCxxCompiler

        try:
            get_cpp_compiler()
        except InvalidCxxCompiler:
            needed = "a C++ compiler: install g++ (apt install g++), or set the environment variable CXX"
            raise UserError(f"{use} needs {needed}; {instead}") from None
    elif device_type == "cuda" and not (os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")):
        # Triton looks for these
        needed = "a C compiler: install gcc (apt install gcc), or set the environment variable CC"
        raise UserError(f"{use} needs {needed}; {instead}")
