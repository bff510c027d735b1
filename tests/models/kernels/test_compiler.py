"""A missing compiler is one line, for each way of compiling a model."""

import pytest
import torch._inductor.config

from lookupvit_video.errors import UserError
from lookupvit_video.models.kernels.compiler import require_compiler


@pytest.fixture
def no_compiler(monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CC", raising=False)
    with torch._inductor.config.patch({"cpp.cxx": ("/no/such/compiler",)}):
        yield


def test_a_missing_compiler_is_told_with_what_to_do(no_compiler):
    with pytest.raises(UserError, match=r"^--compile needs a C\+\+ compiler: .* variable CXX; leave it out$"):
        require_compiler("--compile", "cpu", "leave it out")
    with pytest.raises(UserError, match=r"^--compile needs a C compiler: .* variable CC; leave it out$"):
        require_compiler("--compile", "cuda", "leave it out")
    require_compiler("--compile", "mps", "leave it out")
