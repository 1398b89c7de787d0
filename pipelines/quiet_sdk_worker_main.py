"""`python -m pipelines.quiet_sdk_worker_main`: Beam's worker process, whose log goes to its runner and nowhere else.

Beam's own writes thirty lines for each start. What ends a worker is still seen: a traceback is no log.
"""

from __future__ import annotations

import logging
import runpy

BEAMS_OWN = "apache_beam.runners.worker.sdk_worker_main"

if __name__ == "__main__":
    # Beam adds a handler for standard error only where there is none.
    logging.getLogger().addHandler(logging.NullHandler())
    runpy.run_module(BEAMS_OWN, run_name="__main__", alter_sys=True)
