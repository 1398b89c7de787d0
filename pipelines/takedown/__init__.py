"""Takedown: documents leave an output, and don't come back. `thoughtmill remove OUTPUT --ids FILE`.

    ids ─► what holds them, stage by stage ─► new files and manifests, prepared aside ─► journal ─┬─► into their places
                                              (nothing is touched until here)                     ├─► ledger
                                                                                                  └─► card, _SUCCESS

Until the journal is there the output is as it was; from then on it goes on to the end, by the same command again if it
is killed, and nothing else is done to the output before. Files without any of the documents keep their bytes.
"""

from __future__ import annotations

from pipelines.takedown.removing import Removed, remove

__all__ = ["Removed", "remove"]
