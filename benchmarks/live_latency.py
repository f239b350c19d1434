"""How long after the end of speech does the first word of the answer come, on the page's live tab?

    python -m benchmarks.live_latency
    python -m benchmarks.live_latency --base-url http://localhost:8000/v1 --pause 0.3

The packaged recordings go, followed by silence, in real time through what the page does with a microphone: pieces as
long as the browser's, voice activity detection, a request to a server by OpenAI's API, its streamed answer. Without
`--base-url` the server is `speechllm serve nano`, or of `--model`. Speech ends at the last 20 ms that are within 40 dB
of the loudest. The browser's own share is not in it: to take up sound, to post a piece, to show a word.
"""

import argparse
import json
import os
import platform
import statistics
import time
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import soxr

import speechllm
from processing_speechllm.audio import load_audio
from speechllm.page.client import Client
from speechllm.page.conversation import Conversation
from speechllm.page.live import PAUSE
from speechllm.page.microphones import CHUNK, Microphones
from speechllm.page.server import serving

RATE = 48_000  # of a sound card
BEFORE, BEHIND = 0.5, 3.0  # seconds of silence around a recording
PARTS = {
    "pause": "end of speech to turn sent",
    "answer": "turn sent to first word",
    "all": "end of speech to first word",
}


def end_of_speech(samples: np.ndarray) -> float:
    """Seconds from the beginning of samples (samples,) at `RATE` to the end of the last 20 ms within 40 dB of the
    loudest."""
    size = RATE // 50
    frames = samples[: len(samples) // size * size].reshape(-1, size)
    level = np.sqrt((frames**2).mean(axis=1))
    return (int(np.flatnonzero(level > level.max() / 100)[-1]) + 1) / 50


def measure(client: Client, samples: np.ndarray, instruction: str, pause: float) -> dict[str, float]:
    """
    Seconds of each of `PARTS` for one recording, samples (samples,) at `RATE`.

    Raises:
        RuntimeError: no turn was found in it.
    """
    silences = [np.zeros(round(RATE * seconds), dtype=np.float32) for seconds in (BEFORE, BEHIND)]
    stream = np.concatenate([silences[0], samples, silences[1]])
    microphones, size = Microphones(), round(RATE * CHUNK)
    microphones.hear("warm-up", RATE, pause, stream[:size].tobytes())
    started = time.perf_counter()
    for first in range(0, len(stream) - size + 1, size):
        time.sleep(max(0.0, started + (first + size) / RATE - time.perf_counter()))  # until it is spoken
        turns = microphones.hear("live", RATE, pause, stream[first : first + size].tobytes())["turns"]
        if turns:
            (recording,) = microphones.take(turns[-1])
            spoken = started + BEFORE + end_of_speech(samples)
            sent = time.perf_counter()
            for turn in Conversation().ask(client, instruction, recording):
                if turn.answer.text:
                    now = time.perf_counter()
                    return {"pause": sent - spoken, "answer": now - sent, "all": now - spoken}
    raise RuntimeError("no turn, or no answer")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base-url", help="of a server that runs already")
    parser.add_argument("--model", help="its name there; without --base-url a folder or Hub id")
    parser.add_argument("--instruction", default="Transcribe the speech.")
    parser.add_argument("--pause", type=float, default=PAUSE, help="seconds that end a turn")
    parser.add_argument("--repeats", type=int, default=3, help="times that each recording is spoken")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the times as JSON")
    arguments = parser.parse_args()

    paths = sorted((Path(speechllm.NANO) / "examples").glob("*.wav"))
    recordings = {path.name: soxr.resample(load_audio(str(path)), 16_000, RATE) for path in paths}
    with ExitStack() as stack:
        if arguments.base_url is None:
            base_url, _ = stack.enter_context(serving(arguments.model or "nano"))
            client = Client(base_url)
        else:
            client = Client(arguments.base_url, arguments.model)
        measure(client, next(iter(recordings.values())), arguments.instruction, arguments.pause)  # loads, connects
        rows = [
            {"recording": name} | measure(client, samples, arguments.instruction, arguments.pause)
            for _ in range(arguments.repeats)
            for name, samples in recordings.items()
        ]
    print(
        f"{len(rows)} turns, pause {arguments.pause:g} s, {client.model}, {os.cpu_count()} cores, {platform.machine()}"
    )
    print("seconds                        median   longest")
    for part, title in PARTS.items():
        values = [row[part] for row in rows]
        print(f"{title:29}  {statistics.median(values):7.2f}  {max(values):8.2f}")
    if arguments.out is not None:
        arguments.out.write_text(json.dumps({"settings": vars(arguments) | {"out": None}, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
