"""What goes wrong with a runner rather than with a step, in a line: which runner, why, and the way out.

Before a pipeline runs, `check` refuses what can't work. While it runs elsewhere, `wait_watched` notices that the job
server is gone, for which Beam may wait forever. What a runner raises all the same is put into words by `told`.
"""

from __future__ import annotations

import contextlib
import difflib
import os
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator, MutableMapping
from queue import Empty, SimpleQueue
from typing import Any

from apache_beam.options.pipeline_options import PipelineOptions, PortableOptions, StandardOptions
from apache_beam.options.pipeline_options_validator import PipelineOptionsValidator
from apache_beam.runners import runner as beam_runners

from sharding.errors import MillError, RequestError

NO_USE = {
    "DaskRunner": "it computes a pipeline's last collection alone, and loses side inputs",
    "BundleBasedDirectRunner": "it holds every collection in memory",
    "InteractiveRunner": "it is for notebooks",
}
"""Runners that exist and can't run the mill, and why."""

ANSWER_S = 10.0
"""A job server that doesn't answer for so long isn't there."""

POLL_S, GONE_AFTER = 5.0, 3
"""A job is asked for its state so often; after so many times without an answer its server is gone."""

_LOOPBACK = ("localhost", "127.0.0.1", "::1")
_PROXIES = ("http_proxy", "https_proxy", "grpc_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY")

_GONE = (
    "its job server is gone, and the job with it; see why it ended, start it again, and run again: what was generated "
    "is in the ledger"
)

_CAUSES: tuple[tuple[str, str], ...] = (
    (
        r"Unable to fetch remote prism binary",
        "Prism isn't here and can't be downloaded; build it (`make prism`, or `go install "
        "github.com/apache/beam/sdks/v2/go/cmd/prism@vVERSION` with your Beam's version) and add --prism_location=PATH",
    ),
    (
        r"Unable to parse binary URL",
        "--prism_location names no file that is here; `make prism` builds one, and without the option Beam fetches the "
        "one of its version",
    ),
    (
        r"Unable to fetch remote job server jar",
        "its job server can't be downloaded; add --spark_job_server_jar=PATH or --flink_job_server_jar=PATH, or start "
        "one and take --runner=PortableRunner --job_endpoint=HOST:PORT",
    ),
    (
        r"Unable to parse jar URL|No such file or directory: '?(?:java|[^']*prism)|Cannot find (?:java|prism)",
        "what starts its job server isn't here; see docs/runners.md",
    ),
    (
        r"SDK worker disconnected",
        "one of its workers ended in the middle of a step, by itself or killed; see what it said last and whether "
        "memory ran out, and run again: what was generated is in the ledger",
    ),
    (r"Socket closed|Stream removed|Connection reset|recvmsg", _GONE),
    (
        r"StatusCode\.UNAVAILABLE|failed to connect to all addresses|FutureTimeoutError",
        "its job server or its workers can't be reached; see that they run, and that --job_endpoint and "
        "--environment_config name them",
    ),
    (
        r"didn't get control connection|timed? ?out waiting for.*worker|no worker|worker .*(?:never|not) connect",
        "no worker came to it; see that the worker pool runs, with the environment's bin first on PATH",
    ),
)
"""What is in an error's text → what it means and what to do."""


def check(options: PipelineOptions) -> None:
    """Refuse a runner that can't run the mill, or that lacks what it needs.

    Raises:
        RequestError: the runner is unknown, is of no use, or an option that it needs is missing or wrong.
    """
    name = runner_name(options)
    if name in NO_USE:
        raise RequestError(f"--runner={name} can't run the mill: {NO_USE[name]}; docs/runners.md has those that do")
    try:
        runner = beam_runners.create_runner(options.view_as(StandardOptions).runner)
    except (ValueError, ImportError, AttributeError) as error:
        close = difflib.get_close_matches(name, StandardOptions.KNOWN_RUNNER_NAMES, 1)
        meant = f"; did you mean {close[0]}?" if close else ""
        raise RequestError(
            f"--runner={name} is no runner of Beam{meant}: docs/runners.md has those that work"
        ) from error
    if is_in_process(options):
        return
    if wrong := PipelineOptionsValidator(options, runner).validate():
        raise RequestError(f"--runner={name}: {' '.join(dict.fromkeys(map(str, wrong)))}")


def runner_name(options: PipelineOptions) -> str:
    """The runner as a user calls it."""
    return (options.view_as(StandardOptions).runner or "").rpartition(".")[2]


def is_in_process(options: PipelineOptions) -> bool:
    """Whether it is Beam's local runner, in this process."""
    return runner_name(options) == "FnApiRunner"


def check_answers(options: PipelineOptions) -> None:
    """See that the job server that the options name is there, and the workers' pool of a runner on this machine.

    Raises:
        RequestError: nothing answers there.
    """
    portable = options.view_as(PortableOptions)
    if ":" in (endpoint := portable.job_endpoint or ""):  # else the runner starts one itself
        _check_address("job_endpoint", endpoint, "job server")
    # A pool on the nodes of a cluster is no business of this machine.
    if runner_name(options) == "PrismRunner" and portable.environment_type == "EXTERNAL":
        address = portable.environment_config or portable.lookup_environment_option("external_service_address")
        _check_address("environment_config", address, "pool of workers")


def _check_address(option: str, address: str, what: str) -> None:
    host, _, port = address.rpartition(":")
    until = time.monotonic() + ANSWER_S
    while True:
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=ANSWER_S).close()
            return
        except (OSError, ValueError, OverflowError) as error:
            if time.monotonic() >= until or not isinstance(error, OSError):
                raise RequestError(
                    f"--{option}={address}: no {what} answers there ({error}); start it, or name another"
                ) from error
            time.sleep(0.5)


def check_loopback() -> None:
    """See that processes of this machine reach each other, as workers do their runner.

    Raises:
        MillError: they don't.
    """
    try:
        with socket.create_server(("127.0.0.1", 0)) as server:
            # By name, as Beam does.
            socket.create_connection(("localhost", server.getsockname()[1]), timeout=ANSWER_S).close()
    except OSError as error:
        raise MillError(
            f"worker processes reach their runner over loopback, and localhost can't be reached here ({error}): bring "
            "it up (`ip link set lo up`; 127.0.0.1 is localhost in /etc/hosts), or take --workers 1 on the local runner"
        ) from error


def uses_loopback(options: PipelineOptions) -> bool:
    """Whether a runner that isn't in this process has a server or workers on this machine."""
    portable = options.view_as(PortableOptions)
    here = runner_name(options) in ("PrismRunner", "SparkRunner", "FlinkRunner")
    return here or portable.environment_type == "LOOPBACK" or portable.job_endpoint == "embed"


def without_proxy(environment: MutableMapping[str, str] = os.environ) -> None:
    """Have runner and workers on this machine talk to each other without a proxy, where one is set.

    gRPC would ask it for localhost, and wait.
    """
    if not any(environment.get(name) for name in _PROXIES):
        return
    spared = [host for name in ("no_proxy", "NO_PROXY") for host in environment.get(name, "").split(",") if host]
    if "*" not in spared:
        environment["no_proxy"] = ",".join(dict.fromkeys((*spared, *_LOOPBACK)))


def told(error: BaseException, runner: str) -> MillError | None:
    """What a runner raised, in words; None where it isn't known."""
    text = f"{type(error).__name__}: {error}"
    for pattern, meaning in _CAUSES:
        if re.search(pattern, text, re.IGNORECASE):
            return MillError(f"{runner}: {meaning}")
    if _is_rpc(type(error)):
        return MillError(f"{runner}: its job server failed ({_first_line(error)}); see its log, and run again")
    return None


def _first_line(error: BaseException) -> str:
    details = getattr(error, "details", None)
    return str(details() if callable(details) else error).partition("\n")[0]


def wait_watched(result: Any, runner: str) -> Any:
    """Wait for a job's end, and for as long as its server answers.

    Args:
        result: of `pipeline.run()`.
        runner: its name.

    Returns:
        The state that the job ended with.

    Raises:
        MillError: the server is gone.
        Exception: whatever the job raised.
    """
    ended: SimpleQueue[tuple[Any, BaseException | None]] = SimpleQueue()

    def wait() -> None:
        try:
            ended.put((result.wait_until_finish(), None))
        except BaseException as error:  # noqa: BLE001 - raised below, on the thread that waits
            ended.put((None, error))

    threading.Thread(target=wait, name="thoughtmill-job", daemon=True).start()
    without_answer = 0
    with _quiet_threads():
        while True:
            try:
                state, error = ended.get(timeout=POLL_S)
            except Empty:
                answered = _within(lambda: result.state, POLL_S)
                without_answer = 0 if answered else without_answer + 1
                if without_answer >= GONE_AFTER:
                    raise MillError(f"{runner}: {_GONE}") from None
                continue
            if error is not None:
                raise error
            return state


@contextlib.contextmanager
def _quiet_threads() -> Iterator[None]:
    """Has Beam's own threads, which mind the channels to a server, end without a traceback where it is gone.

    Also those that notice it later than whoever waits for the job: behind an error it stays so.
    """

    def heard(failed: threading.ExceptHookArgs) -> None:
        if not _is_rpc(failed.exc_type):
            before(failed)

    before, threading.excepthook = threading.excepthook, heard
    yield
    threading.excepthook = before


def _is_rpc(kind: type[BaseException]) -> bool:
    return any(parent.__name__ == "RpcError" for parent in kind.__mro__)


def cancel(result: Any) -> None:
    """Ask for a job's end, without waiting for a server that may be gone."""
    _within(result.cancel, POLL_S)


def _within(ask: Callable[[], object], seconds: float) -> bool:
    """Whether something is answered in that time, and without an error."""
    answered = threading.Event()

    def run() -> None:
        with contextlib.suppress(Exception):
            ask()
            answered.set()

    threading.Thread(target=run, daemon=True).start()
    return answered.wait(seconds)
