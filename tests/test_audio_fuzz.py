"""No file, however damaged, gets anything but samples or an `AudioError` with its name out of the loader."""

import random
import warnings
from pathlib import Path

import numpy as np
import pytest
import soundfile
from factories_processing import RATE, encoded, sine

from processing_speechllm.audio import AudioError, load_audio

SEEDS = Path(__file__).parent / "audio_files"  # 0.3 s of a 440 Hz sine in containers that soundfile does not know
CASES = 600
LIMIT = 60.0  # seconds; what a damaged header may make of 0.3


def undamaged() -> dict[str, bytes]:
    """One short file of every container and coding that soundfile writes, and of some that torchcodec reads."""
    files = {path.name: path.read_bytes() for path in sorted(SEEDS.iterdir())}
    for container in sorted(set(soundfile.available_formats()) - {"SD2"}):  # it writes a second file, "._"
        for coding in sorted(soundfile.available_subtypes(container)):
            try:
                content = encoded(sine(0.3), 8000 if container == "WVE" else RATE, format=container, subtype=coding)
            except soundfile.LibsndfileError:  # listed, but not written by this build
                continue
            files[f"{container}.{coding}"] = content
    return files


FILES = undamaged()


def damaged(content: bytes, chance: random.Random) -> bytes:
    """The content cut, with bytes changed (mostly of its header), taken out or put in, or several of these."""
    content = bytearray(content)
    for _ in range(chance.choice([1, 1, 2, 4])):
        reach = chance.choice([64, 256, max(len(content), 1)])
        place = chance.randrange(min(reach, len(content)) or 1)
        kind = chance.choice(["cut", "bits", "bytes", "largest", "remove", "insert", "swap"])
        if kind == "cut":
            del content[place:]
        elif kind == "bits" and content:
            content[place] ^= 1 << chance.randrange(8)
        elif kind == "bytes":
            content[place : place + 4] = chance.randbytes(4)
        elif kind == "largest":
            content[place : place + 4] = chance.choice([b"\xff\xff\xff\xff", b"\xff\xff\xff\x7f", bytes(4)])
        elif kind == "remove":
            del content[place : place + chance.randrange(1, 40)]
        elif kind == "insert":
            content[place:place] = chance.randbytes(chance.randrange(1, 40))
        else:
            content = content[place:] + content[:place]
    return bytes(content)


def outcome(source, name: str) -> str:
    """ "samples" or "refused"; fails if an error is not an `AudioError` that begins with the audio's name."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # silence, an early end
        try:
            samples = load_audio(source, max_seconds=LIMIT)
        except AudioError as error:
            assert str(error).startswith(name) and len(str(error)) < 1000
            return "refused"
    assert samples.dtype == np.float32 and samples.ndim == 1 and np.isfinite(samples).all()
    return "samples"


@pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")  # what soundfile prints on the way
@pytest.mark.parametrize("part", range(6))
def test_damaged_files_give_samples_or_an_audio_error(part):
    names = sorted(FILES)
    outcomes = []
    for case in range(part, CASES, 6):
        chance = random.Random(case)
        name = names[case % len(names)]
        source = {"bytes": damaged(FILES[name], chance), "path": f"{name}-{case}"}
        outcomes.append(outcome(source, f"{name}-{case}: "))
    assert {"samples", "refused"} == set(outcomes)  # else nothing was tried


def test_a_damaged_file_on_the_disk_is_named_by_its_path(tmp_path):
    for name in sorted(FILES):
        path = tmp_path / name
        path.write_bytes(FILES[name][: len(FILES[name]) // 2])
        outcome(path, str(path))


# Codings that libsndfile reads from front to end only.
ONE_WAY = ("GSM610", "G721_32", "G723_24", "G723_40", "NMS_ADPCM_16", "NMS_ADPCM_24", "NMS_ADPCM_32")


@pytest.mark.parametrize("name", [name for name in FILES if name.endswith(ONE_WAY) and "RAW" not in name])
def test_codings_that_cannot_be_wound_back_are_read(name):
    loaded, expected = load_audio(FILES[name]), sine(0.3)
    assert 0 <= len(loaded) - len(expected) <= 320  # they come in blocks, of which the last is filled up
    aligned = max(np.dot(loaded[lag : lag + 4000], expected[:4000]) for lag in range(40))
    assert aligned > 0.9 * np.dot(expected[:4000], expected[:4000])
