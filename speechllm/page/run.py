"""`speechllm demo --web`: the page, and the server that it starts where it is given none."""

import errno
import signal
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .client import MAX_TOKENS, Client
from .hearing import Hearing
from .microphones import Microphones, add_route
from .recordings import PageError
from .samples import load_samples
from .server import free_port, serving

ABOUT = {  # of the models in the package, what people should know before they ask
    "nano": "This model is tiny and was trained on spoken requests of a small closed world, by synthetic voices in "
    "six languages: begin with one of the recordings below. Of anything else it understands nothing. It learned "
    "single questions, so that it forgets earlier turns unless you tick the box.",
    "small": "This model hears spoken English. It writes down what is said, rephrases it, and chooses among labels "
    "that you give it; what it says beyond the words, its small language model often makes up. It learned single "
    "questions, so that it forgets earlier turns unless you tick the box.",
}


@dataclass(frozen=True)
class PageSettings:
    """
    Args:
        model: name in the package, folder or Hub id of what is served, the default if None; with `base_url` its name
            there.
        base_url: of a server that runs already; None to start one.
        key: for that server.
        host, port: where the page is.
        max_new_tokens: longest answer.
    """

    model: str | None = None
    base_url: str | None = None
    key: str | None = None
    host: str = "127.0.0.1"
    port: int = 7860
    max_new_tokens: int = MAX_TOKENS


def run_page(settings: PageSettings) -> int:
    """
    Shows the page until it is interrupted.

    Returns:
        0.

    Raises:
        PageError: there is no server to talk to, or none any more, or the port is taken.
    """
    import speechllm

    port = settings.port or free_port()
    check_place(settings.host, port)  # before a model is loaded
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # so that the server is ended too
    with ExitStack() as stack:
        process, hearing = None, None
        if settings.base_url is None:
            print(f"Starting the server: speechllm serve {settings.model or ''}".rstrip(), flush=True)
            base_url, process = stack.enter_context(serving(settings.model))
            client = Client(base_url, max_tokens=settings.max_new_tokens)
            name = settings.model or speechllm.DEFAULT
            hearing = Hearing(speechllm.MODELS.get(name, name))
        else:
            client = Client(settings.base_url, settings.model, settings.key, settings.max_new_tokens)
        own = (settings.model or speechllm.DEFAULT) if settings.base_url is None else None
        stack.enter_context(shown(client, hearing, settings.host, port, own if own in ABOUT else None))
        print(f"The page is at http://{settings.host}:{port} (Ctrl-C ends it)", flush=True)
        wait(process)
    return 0


def check_place(host: str, port: int) -> None:
    """
    Raises:
        PageError: this machine cannot listen there.
    """
    try:
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as place:
            place.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            place.bind((host, port))
    except OSError as error:
        raise PageError(not_listening(host, port, error)) from error


def not_listening(host: str, port: int, error: OSError) -> str:
    """What is said where the page cannot be shown."""
    if error.errno in (None, errno.EADDRINUSE):  # gradio's own error has no number
        return f"port {port} is taken. Choose another: --port {port + 1}"
    found = f"cannot listen at {host}, port {port}: {error.strerror or error}."
    return f"{found} Give an address of this machine as --host, and a free --port."


@contextmanager
def shown(
    client: Client, hearing: Hearing | None, host: str, port: int, embedded: str | None = None
) -> Iterator[None]:
    """
    The page, for as long as the block runs.

    Args:
        client: who answers.
        hearing: tells what was heard; None where that is not known.
        host, port: where the page is.
        embedded: which of the models in the package answers, None for another.

    Raises:
        PageError: the port is taken.
    """
    import speechllm

    from .handlers import Handlers
    from .layout import CSS, build, head, theme

    folder = Path(speechllm.MODELS[embedded or speechllm.DEFAULT]) / "examples"
    microphones = Microphones()
    handlers = Handlers(client, hearing, load_samples(folder), microphones)
    title = f"the model {embedded}" if embedded else Path(client.model).name
    page = build(handlers, title, ABOUT.get(embedded, ""), remembers=embedded is None)
    try:
        app, _, _ = page.queue(default_concurrency_limit=None).launch(
            server_name=host,
            server_port=port,
            allowed_paths=[str(folder)],
            prevent_thread_lock=True,
            quiet=True,
            theme=theme(),
            css=CSS,
            head=head(),
            footer_links=[],
            show_error=True,
        )
    except OSError as error:
        raise PageError(not_listening(host, port, error)) from error
    add_route(app, microphones)
    try:
        yield
    finally:
        page.close(verbose=False)
        microphones.close()
        if hearing is not None:
            hearing.close()


def wait(process: Any) -> None:
    """Until Ctrl-C.

    Raises:
        PageError: the server, if it is ours, ends before.
    """
    try:
        while process is None or process.poll() is None:
            time.sleep(0.5)
    except KeyboardInterrupt:
        print()
        return
    raise PageError(f"the server ended with status {process.returncode}; above is what it said")


__all__ = ["PageSettings", "run_page", "shown"]
