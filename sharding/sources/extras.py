"""What a format says whose packages aren't installed."""

from __future__ import annotations

from sharding.errors import RequestError
from sharding.sources.config import Source


def absent(source: Source, what: str) -> RequestError:
    """That a package is missing which datatrove's readers need; `what` says which."""
    return RequestError(
        f"{source.key}.format: {source.config.format} needs datatrove and what it reads with: "
        f"pip install 'thoughtmill[datatrove]' ({what})"
    )
