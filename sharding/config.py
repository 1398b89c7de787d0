"""What every config section shares: strict validation.

The sections are frozen keyword-only dataclasses beside the code they configure; `pipelines.config` composes them.
"""

from pydantic import ConfigDict

STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
