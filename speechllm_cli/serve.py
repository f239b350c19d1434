"""`speechllm serve`: a SpeechLLM behind OpenAI's API; the work is in `speechllm.serving`."""

import argparse
from importlib import util
from pathlib import Path
from typing import Any

from .loading import CommandError, embedded, load_pipeline, report
from .pages import page

PACKAGES = ("fastapi", "uvicorn", "openai", "opentelemetry", "python_multipart")
DESCRIPTION = """\
Answers requests of OpenAI's API about recordings, by the server of transformers: chat completions and responses, with
input_audio and audio_url, streamed or not. It answers one request after the other; see {page} for more.
"""
EXAMPLE = """\
60 seconds with it:
  speechllm serve &
  curl http://127.0.0.1:8000/v1/models
  curl http://127.0.0.1:8000/v1/chat/completions -H "Content-Type: application/json" -d @- <<END
  {"messages": [{"role": "user", "content": [
    {"type": "input_audio", "input_audio": {"data": "$(base64 -w0 speechllm/small/examples/guitars.ogg)"}},
    {"type": "text", "text": "Transcribe the speech."}]}]}
  END

Local files are not read for clients, unless --allow-local-files is given. There are no keys and no encryption: leave
it on this machine's own address, or put a proxy that has them before it.
"""


def add_parser(commands: Any) -> None:
    """Adds `serve` to the subparsers."""
    parser = commands.add_parser(
        "serve",
        help="serve a model behind OpenAI's API",
        description=DESCRIPTION.format(page=page("serving")),
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "model", nargs="?", metavar="MODEL", help="a SpeechLLM checkpoint, or small (the default) or nano"
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at (127.0.0.1: this machine alone)")
    parser.add_argument("--port", type=port_number, default=8000, help="port to listen at (8000); 0 takes a free one")
    parser.add_argument("--served-model-name", metavar="NAME", help="what clients call the model (MODEL as given)")
    parser.add_argument("--device", help="cpu, cuda, cuda:1, mps, ... (an accelerator if there is one)")
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], help="precision (the checkpoint's)")
    parser.add_argument("--max-body", type=_size, default=200, metavar="MIB", help="largest request in MiB (200)")
    parser.add_argument(
        "--allow-local-files", action="store_true", help="let clients name files of this machine as audio_url"
    )
    parser.add_argument(
        "--refuse-urls", action="store_true", help="fetch no http(s) address for clients; data: addresses stay"
    )
    parser.set_defaults(run=run)


def port_number(text: str) -> int:
    """Raises an `ArgumentTypeError` for text that is no port."""
    if not (text.isdecimal() and int(text) < 2**16):
        raise argparse.ArgumentTypeError(f"{text!r} is no port; give a number from 0 to 65535")
    return int(text)


def _size(text: str) -> int:
    if not (text.isdecimal() and int(text) > 0):
        raise argparse.ArgumentTypeError(f"{text!r} is no size in MiB; give a whole number from 1 up")
    return int(text)


def check_packages() -> None:
    """
    Raises:
        CommandError: a package of the extra is not installed.
    """
    missing = [name for name in PACKAGES if util.find_spec(name) is None]
    if missing:
        raise CommandError(
            f"serving needs packages that are not installed ({', '.join(missing)}). Run: "
            'pip install "speechllm[serve]"'
        )


def run(arguments: argparse.Namespace) -> int:
    """Serves until interrupted (then 130); returns 2 if it cannot begin."""
    try:
        check_packages()
        bound = _bind(arguments.host, arguments.port)
        with bound:
            return _serve(arguments, bound)
    except CommandError as error:
        report(error)
        return 2


def _bind(host: str, port: int) -> Any:
    from speechllm.serving.server import open_port

    try:
        return open_port(host, port)
    except OSError as error:
        raise CommandError(
            f"cannot listen at {host}, port {port}: {error.strerror or error}. Give a free --port (0 finds one) and "
            "an address of this machine as --host."
        ) from error


def _check_device(device: str) -> None:
    import torch

    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        found = str(error).splitlines()[0].rstrip(".")
        raise CommandError(f"--device {device} cannot be used: {found}. Give cpu, or what there is.") from error


def _repository(model: str | None) -> list[str]:
    """The repository that a folder was exported for, by its facts; nothing where these cannot be read."""
    import speechllm
    from hub_cards import read_facts

    if model is None or model in speechllm.MODELS:
        return []
    try:
        name = read_facts(Path(model).expanduser()).get("model", {}).get("repository")
    except (ValueError, OSError):
        return []
    return [name] if isinstance(name, str) else []


def _serve(arguments: argparse.Namespace, bound: Any) -> int:
    try:
        from speechllm.serving.server import build_app, run_app
    except ImportError as error:
        raise CommandError(str(error)) from error
    options = {key: getattr(arguments, key) for key in ("device", "dtype") if getattr(arguments, key) is not None}
    name = arguments.served_model_name or arguments.model or embedded()
    if arguments.device is not None:
        _check_device(arguments.device)
    print(f"Loading {arguments.model or embedded()}", flush=True)
    pipe = load_pipeline(arguments.model, **options)
    others = [] if arguments.served_model_name else _repository(arguments.model)
    allowed = arguments.allow_local_files, not arguments.refuse_urls
    try:
        app = build_app(pipe, name, arguments.max_body * 2**20, *allowed, others)
    except ImportError as error:
        raise CommandError(str(error)) from error
    host, port = bound.getsockname()[:2]
    address = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    def ready() -> None:
        print(f"Ready: {name} on {pipe.device}, at {address}/v1 (Ctrl-C ends it)", flush=True)

    run_app(app, bound, ready)
    return 0
