"""Where an audio's content lies: a file, an http(s) address, a `data:` address or Base64 -> the bytes, and a name.

What is unusual here:
- No hidden network: an http(s) address is fetched only when it is given as a url.
- Local files can be refused (`allow_local_files=False`), so that who may send chats to a server cannot read its disk.
  Nothing is looked up on the disk then, as whether a file exists is an answer too.
- Messages name a `data:` address by its kind and size, never by its content.
"""

import base64
import binascii
import os
import re
import stat
import time
from pathlib import Path
from typing import Any
from urllib.parse import unquote, unquote_to_bytes, urlsplit

from .audio_decoding import AudioError

BASE64 = re.compile(r"[A-Za-z0-9+/_\-\s]{64,}={0,2}\s*")  # shorter holds no audio: a WAV's header takes 60 characters

SCHEME = re.compile(r"([a-z][a-z0-9+.-]+)://", re.IGNORECASE)
MAX_DOWNLOAD = 2**30  # bytes behind an address; some never end
MAX_SECONDS = 600.0  # of a download; some never end either


def is_url(text: str) -> bool:
    """Whether a string is an http(s) address."""
    return text.lower().startswith(("http://", "https://"))


def read_address(address: str | os.PathLike, allow_local_files: bool = True, fetch: bool = False) -> tuple[str, bytes]:
    """
    The content behind a path, `file:` address, `data:` address, Base64 string or, with `fetch`, http(s) address.

    Returns:
        the name for messages, and the content.

    Raises:
        AudioError: nothing there, not readable, or refused.
    """
    text = address if isinstance(address, str) else os.fsdecode(address)
    start = text[:8].lower()
    if start.startswith("data:"):
        return _read_data_address(text)
    if is_url(text):
        if not fetch:
            raise AudioError(f'{text}: a web address is not fetched unasked. Pass {{"url": "{text}"}} to download it.')
        return text, _fetch(text)
    if start.startswith("file://"):
        try:
            text = unquote(urlsplit(text).path)
        except ValueError as error:  # half of an IPv6 host
            raise AudioError(
                f"{shortened(text)}: is no address ({error}). Write file:///path/to/audio.wav."
            ) from error
    elif isinstance(address, str) and BASE64.fullmatch(text) and not (allow_local_files and _exists(text)):
        missing = ", as there is no such file" * allow_local_files
        name = f"{text[:24]}... ({len(text)} characters, read as Base64{missing})"
        return name, from_base64(name, text)
    if text[:1].isspace() and (SCHEME.match(text.lstrip()) or text.lstrip()[:5].lower() == "data:"):
        raise AudioError(f"{shortened(text)!r}: begins with white space, as no address does. Take it away.")
    if start[:7] != "file://" and (scheme := SCHEME.match(text)):
        raise AudioError(
            f"{shortened(text)}: addresses of {scheme[1]}:// are not read here. Give an http(s) or data: address, or "
            "the file's content."
        )
    if not allow_local_files:
        raise AudioError(
            f"{shortened(text)}: local files are refused here (`allow_local_files` is False). Send the audio itself, "
            "as a data: address, as Base64 or as an http(s) url."
        )
    return text, _read_file(text)


def from_base64(name: str, text: Any) -> bytes:
    """Base64 text, in the common or the url-safe alphabet, with or without its padding -> bytes."""
    if isinstance(text, (bytes, bytearray)):
        text = bytes(text).decode("latin-1")
    if not isinstance(text, str):
        raise AudioError(f"{name}: holds a {type(text).__name__}, not Base64 text. Pass the audio file in Base64.")
    plain = "".join(text.split()).rstrip("=").replace("-", "+").replace("_", "/")
    try:
        return base64.b64decode(plain + "=" * (-len(plain) % 4), validate=True)
    except (binascii.Error, ValueError) as error:
        raise AudioError(
            f"{name}: is no valid Base64 ({error}). Encode the audio file's bytes with base64.b64encode."
        ) from error


def shortened(text: str, longest: int = 200) -> str:
    """A string for a message: its beginning, and how long it is, if it is long."""
    return text if len(text) <= longest else f"{text[:60]}... ({len(text)} characters)"


def _read_data_address(text: str) -> tuple[str, bytes]:
    """`data:[type][;parameters][;base64],content` (RFC 2397)."""
    head, comma, body = text.partition(",")
    kind = head[5:].lower()
    name = f"data: address {shortened(kind, 60) or 'without a type'}, {len(body)} characters"
    if not comma:
        raise AudioError(f"{name}: has no comma before its content. Write data:audio/wav;base64,UklGR...")
    if kind.endswith(";base64"):
        return name, from_base64(name, unquote(body))
    try:
        return name, unquote_to_bytes(body)
    except UnicodeEncodeError as error:
        raise AudioError(
            f"{name}: holds half a character ({error.reason}). Write data:audio/wav;base64,..."
        ) from error


def _fetch(url: str) -> bytes:
    """The content behind an http(s) address that the user gave as a url."""
    from huggingface_hub.utils import get_session

    content, begun = bytearray(), time.monotonic()
    try:
        with get_session().stream("GET", url, follow_redirects=True, timeout=30) as response:
            response.raise_for_status()
            for piece in response.iter_bytes():
                content += piece
                if len(content) > MAX_DOWNLOAD:
                    break
                if time.monotonic() - begun > MAX_SECONDS:
                    raise TimeoutError(f"{len(content) / 2**20:.1f} MiB after {MAX_SECONDS:g} s, and no end")
    except Exception as error:  # httpx has a tree of errors; any of them means that there is no audio
        raise AudioError(f"{url}: cannot be downloaded ({error}). Check the address and the network.") from error
    if len(content) > MAX_DOWNLOAD:
        raise AudioError(
            f"{url}: is larger than {MAX_DOWNLOAD >> 20} MiB. Give an address of compressed audio, or download it and "
            "pass its path."
        )
    return bytes(content)


def _exists(path: str) -> bool:
    try:
        return os.path.exists(path)
    except ValueError:  # a NUL in it
        return False


def _read_file(path: str) -> bytes:
    name = shortened(path)
    if not path:
        raise AudioError("The name of the audio file is empty. Give its path.")
    try:
        file = Path(path).expanduser()
        mode = file.stat().st_mode
        if stat.S_ISDIR(mode):
            raise AudioError(f"{name}: is a directory. Pass an audio file inside it.")
        if stat.S_ISCHR(mode) or stat.S_ISBLK(mode) or stat.S_ISSOCK(mode):
            raise AudioError(f"{name}: is a device, not a file. Pass an audio file.")
        return file.read_bytes()
    except FileNotFoundError as error:
        start = "" if file.is_absolute() else f" (relative to {os.getcwd()})"
        raise AudioError(f"{name}: no such file. Check the path{start}.") from error
    except OSError as error:
        raise AudioError(f"{name}: cannot be read ({error.strerror}). Check the path and its permissions.") from error
    except AudioError:
        raise
    except (ValueError, RuntimeError) as error:  # a NUL in the path; the home folder of a user who has none
        raise AudioError(f"{name}: is no path that can be read ({error}). Check its spelling.") from error


__all__ = ["from_base64", "read_address"]
