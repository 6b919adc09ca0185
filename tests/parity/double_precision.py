"""A pytest plugin that makes seqrun compute in float64 instead of float32.

`pytest -p parity.double_precision tests/parity` compares the twins with rounding out of the way.
What differs in float32 alone is rounding; what differs here as well is a fault.
"""

from __future__ import annotations

import os
import re
import sys
from importlib.machinery import PathFinder, SourceFileLoader
from types import CodeType

import torch

TOLERANCE = 1e-9
"""On every number: a rounding error is 2^-53 = 1e-16, and no case amplifies it by more than 1e6."""


class Float64Loader(SourceFileLoader):
    """Compile a module with `float64` wherever its source says `float32`."""

    def get_code(self, fullname: str) -> CodeType:
        """Return the code; cached bytecode is neither read nor written."""
        source = re.sub(rb"\bfloat32\b", b"float64", self.get_data(self.path))
        return self.source_to_code(source, self.path)


class Float64Finder(PathFinder):
    """Find the modules of seqrun."""

    @classmethod
    def find_spec(cls, fullname, path=None, target=None):  # type: ignore[no-untyped-def]
        """Return the usual specification with the loader above, or None for other modules."""
        if fullname.partition(".")[0] != "seqrun":
            return None
        spec = super().find_spec(fullname, path, target)
        if spec is not None and isinstance(spec.loader, SourceFileLoader):
            spec.loader = Float64Loader(spec.loader.name, spec.loader.path)
        return spec


assert "seqrun" not in sys.modules, "give this plugin with -p, so that it comes first"
os.environ["JAX_ENABLE_X64"] = "1"
torch.set_default_dtype(torch.float64)
sys.meta_path.insert(0, Float64Finder)
