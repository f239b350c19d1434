"""`speechllm serve` as a process of the page's own: started, waited for, ended with the page."""

import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from .recordings import PageError

GRACE = 10.0  # seconds that a server has to end by itself


def free_port() -> int:
    """A port of this machine that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def serve_command(model: str | None, port: int) -> list[str]:
    """The command that serves a model, the embedded one if None, on a port of this machine."""
    return [sys.executable, "-m", "speechllm_cli", "serve", *([model] if model else []), "--port", str(port)]


@contextmanager
def serving(
    model: str | None, command: Callable[[str | None, int], Sequence[str]] = serve_command, patience: float = 1800.0
) -> Iterator[tuple[str, subprocess.Popen]]:
    """
    A server of `model` for as long as the block runs; what it prints goes where this process prints.

    Args:
        model: folder or Hub id; None for the embedded one.
        command: makes the server's command from the model and a port.
        patience: seconds to wait until it answers; it may have to download the model.

    Returns:
        its base address, and the process.

    Raises:
        PageError: it ended, or does not answer.
    """
    port = free_port()
    process = subprocess.Popen(command(model, port))
    try:
        base_url = f"http://127.0.0.1:{port}/v1"
        wait_until_ready(f"{base_url}/models", process, patience)
        yield base_url, process
    finally:
        process.terminate()
        try:
            process.wait(GRACE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def wait_until_ready(url: str, process: subprocess.Popen, patience: float, pause: float = 0.2) -> None:
    """
    Returns once `url` answers.

    Raises:
        PageError: the process has ended, or time is up.
    """
    end = time.monotonic() + patience
    while time.monotonic() < end:
        if process.poll() is not None:
            raise PageError(
                f"the server ended with status {process.returncode} before it answered; above is what it said. Try it "
                "alone: speechllm serve MODEL"
            )
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except (OSError, urllib.error.URLError):
            time.sleep(pause)
    raise PageError(f"the server does not answer at {url} after {patience:.0f} s. Try it alone: speechllm serve MODEL")


__all__ = ["free_port", "serve_command", "serving", "wait_until_ready"]
