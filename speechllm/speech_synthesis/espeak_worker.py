"""A process that speaks with espeak-ng; `espeak.py` starts this file by its path and talks to it over its pipes.

It imports nothing but ctypes and espeakng-loader, so it has no threads and its forks are cheap. espeak-ng keeps state
between calls and is not re-entrant, so each utterance is synthesised in a fork that has only initialised the library:
the result does not depend on what was said before, and a voice that crashes the library costs one utterance.

Requests and replies are lines of JSON: {"text", "voice", "rate", "pitch"} -> {"bytes", "rate"}, followed by that many
bytes of int16 samples at that rate, or {"error"}. The first line it writes is {"version"}.
"""

import ctypes
import json
import os
import sys

import espeakng_loader

SYNCHRONOUS = 2  # AUDIO_OUTPUT_SYNCHRONOUS: no thread of its own, so that forking is safe
RATE, PITCH = 1, 3  # espeak_PARAMETER
CHARACTERS = 1  # espeakCHARS_UTF8
UNKNOWN_VOICE = 3  # exit status of a fork


def initialise() -> tuple[ctypes.CDLL, list[bytes], int]:
    """The library, the list that its callback fills with int16 samples, and its sampling rate in Hz."""
    library = ctypes.CDLL(str(espeakng_loader.get_library_path()))
    chunks: list[bytes] = []

    @ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p)
    def receive(samples, count, events):
        if count > 0 and samples:
            chunks.append(ctypes.string_at(samples, 2 * count))
        return 0

    rate = library.espeak_Initialize(SYNCHRONOUS, 0, str(espeakng_loader.get_data_path()).encode(), 0)
    library.espeak_SetSynthCallback(receive)
    library.receive = receive  # the callback must outlive this call
    return library, chunks, rate


def synthesise(library: ctypes.CDLL, chunks: list[bytes], request: dict) -> bytes:
    """int16 samples at the library's rate; called once per fork, which it ends if there is no such voice."""
    _, _, variant = request["voice"].partition("+")
    known = not variant or os.path.isfile(os.path.join(espeakng_loader.get_data_path(), "voices", "!v", variant))
    if not known or library.espeak_SetVoiceByName(request["voice"].encode()) != 0:  # it ignores unknown variants
        os._exit(UNKNOWN_VOICE)
    library.espeak_ng_SetRandSeed(ctypes.c_long(1))  # it seeds the unsteadiness of some voices with the time
    library.espeak_SetParameter(RATE, request["rate"], 0)
    library.espeak_SetParameter(PITCH, request["pitch"], 0)
    encoded = request["text"].encode() + b"\0"
    library.espeak_Synth(encoded, len(encoded), 0, CHARACTERS, 0, 1, None, None)
    library.espeak_Synchronize()
    return b"".join(chunks)


def speak(library: ctypes.CDLL, chunks: list[bytes], request: dict) -> tuple[bytes, str]:
    """The samples that a fork made, and what went wrong, if anything."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.close(reader)
            with os.fdopen(writer, "wb") as stream:
                stream.write(synthesise(library, chunks, request))
            status = 0
        finally:
            os._exit(status)
    os.close(writer)
    with os.fdopen(reader, "rb") as stream:
        samples = stream.read()
    _, status = os.waitpid(child, 0)
    if os.waitstatus_to_exitcode(status) == UNKNOWN_VOICE:
        return b"", "no such voice"
    if status != 0:
        return b"", "the library crashed"
    return samples, "" if samples else "it gave no sound"


def main() -> None:
    """Answers requests until standard input ends."""
    library, chunks, rate = initialise()
    library.espeak_Info.restype = ctypes.c_char_p
    version = library.espeak_Info(None).decode().split()[0]
    sys.stdout.buffer.write(json.dumps({"version": version}).encode() + b"\n")
    sys.stdout.buffer.flush()
    for line in sys.stdin.buffer:
        samples, error = speak(library, chunks, json.loads(line))
        reply = {"error": error} if error else {"bytes": len(samples), "rate": rate}
        sys.stdout.buffer.write(json.dumps(reply).encode() + b"\n" + (b"" if error else samples))
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
