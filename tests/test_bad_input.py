"""Every bad input gives an error (or a warning) that names what was found and what to do about it."""

import io
import struct
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from factories_processing import RATE, encoded, make_processor, sine

from processing_speechllm.audio import AudioError, load_audio
from processing_speechllm.mp3_frames import frame_size

ARRAY = r"audio array of shape \(.*\): "


def write(folder: Path, name: str, content: bytes) -> str:
    (folder / name).write_bytes(content)
    return str(folder / name)


def cut(format: str, share: float = 0.6, **kwargs) -> bytes:
    content = encoded(sine(2.0), format=format, **kwargs)
    return content[: int(len(content) * share)]


def stripped_mp3() -> bytes:
    """An MP3 cut within a frame, without the first frame, which tells the length."""
    content = encoded(sine(2.0), format="MP3")
    return content[frame_size(content[:4])[0] : -50]


def wav_header_only() -> bytes:
    return encoded(sine())[:40]


BAD_AUDIO = {
    # name: (source, finding, remedy)
    "missing file": (lambda d: str(d / "gone.wav"), "gone.wav: no such file", "Check the path"),
    "directory": (lambda d: str(d), ": is a directory", "Pass an audio file inside it"),
    "empty file": (
        lambda d: write(d, "e.wav", b""),
        r"e.wav: the file is empty \(0 bytes\)",
        "Record or copy it again",
    ),
    "empty bytes": (lambda d: b"", r"audio bytes \(0 bytes\): the file is empty", "Record or copy it again"),
    "text file": (
        lambda d: write(d, "notes.wav", b"Hello, I am a text.\n" * 9),
        "notes.wav: is a text file",
        "Pass an",
    ),
    "text in UTF-8": (
        lambda d: write(d, "n.mp3", "Übergröße ".encode() * 99),
        "n.mp3: is a text file",
        "Pass an audio",
    ),
    "other binary": (lambda d: write(d, "x.bin", bytes(range(256)) * 9), "x.bin: .*soundfile", "Convert|Export"),
    "truncated WAV": (
        lambda d: write(d, "t.wav", cut("WAV")),
        "t.wav: truncated WAV: .* 64000 bytes",
        "Copy or export",
    ),
    "WAV cut in its header": (lambda d: wav_header_only(), "truncated WAV: the file ends before", "Copy or export"),
    "truncated FLAC": (lambda d: write(d, "t.flac", cut("FLAC")), "t.flac: .*FLAC.* truncated", "Copy or export"),
    "truncated Ogg": (lambda d: write(d, "t.ogg", cut("OGG")), "t.ogg: truncated Ogg: .* last page", "Copy or export"),
    "Ogg cut in a page's header": (lambda d: encoded(sine(), format="OGG")[:40], "truncated Ogg", "Copy or export"),
    "truncated MP3": (lambda d: write(d, "t.mp3", cut("MP3")), "t.mp3: truncated MP3", "Copy or export"),
    "truncated MP3, no header": (lambda d: stripped_mp3(), "truncated MP3: .* last frame", "Copy or export"),
    "text file object": (lambda d: io.StringIO("no audio"), "reads text, not bytes", "binary mode"),
    "zero samples": (lambda d: (np.zeros(0, np.float32), RATE), ARRAY + "holds zero samples", "Record again"),
    "zero samples in a file": (lambda d: encoded(sine(0.0)), "holds zero samples", "Record again"),
    "NaN": (
        lambda d: (np.r_[sine(), np.nan], RATE),
        ARRAY + "1 of 8001 samples are NaN or inf",
        "Repair or re-export",
    ),
    "infinity": (lambda d: (np.r_[sine(), [np.inf, -np.inf]], RATE), "2 of 8002 samples are NaN or inf", "Repair or"),
    "int16 as floats": (
        lambda d: (np.round(sine() * 32767), RATE),
        ARRAY + "the samples range from -9830 to 9830",
        r"16-bit integers, divide by 2\*\*15 or pass them as int16",
    ),
    "faint int16 as floats": (
        lambda d: (np.round(sine() * 10), RATE),
        ARRAY + "the samples range from -3 to 3",
        r"divide by 2\*\*7",
    ),
    "resampled int24 as floats": (lambda d: (sine() * 2.0**23, RATE), "full scale of 1.0", r"divide by 2\*\*23\."),
    "int16 as floats in a file": (
        lambda d: write(d, "f.wav", encoded(sine() * 32768, subtype="FLOAT")),
        "f.wav: the samples range from -98",
        r"divide by 2\*\*15",
    ),
    "1e30": (lambda d: (sine() * 1e30, RATE), "range from -3e\\+29 to 3e\\+29", "No recording has such amplitudes"),
    "1e300": (lambda d: (sine().astype(float) * 1e300, RATE), "to 3e\\+299", "repair or export it again"),
    "1e300 in a file": (
        lambda d: encoded(sine().astype(float) * 1e300, subtype="DOUBLE"),
        "to 3e\\+299",
        "repair or export it again",
    ),
    "overflow in resampling": (lambda d: (sine(rate=8000) * 3e38, 8000), "range from -9e\\+37", "export it again"),
    "overflow in mixing": (
        lambda d: (np.full((2, 800), 3e38, np.float32), RATE),
        "range from 3e\\+38 to 3e\\+38",
        "export it again",
    ),
    "complex": (lambda d: (sine() + 1j, RATE), ARRAY + "dtype complex", "float samples"),
    "int64": (lambda d: (np.arange(9000), RATE), ARRAY + "dtype int64 is not audio", "int16, int32 or uint8"),
    "bool": (lambda d: (sine() > 0, RATE), ARRAY + "dtype bool is not audio", "float samples"),
    "strings": (lambda d: (["a.wav", "b.wav"], RATE), "audio list of 2 values: dtype str", "Pass one audio"),
    "objects": (lambda d: (np.array([{}, {}]), RATE), ARRAY + "dtype object is not audio", "float samples"),
    "ragged lists": (lambda d: ([[0.1, 0.2], [0.3]], RATE), "is no regular array", "Pass one audio at a time"),
    "3-D array": (lambda d: (np.zeros((2, 1, 800), np.float32), RATE), ARRAY + "has 3 dimensions", "go in a list"),
    "square array": (lambda d: (np.ones((2, 2), np.float32), RATE), "which side is the channels", "Mix it to mono"),
    "99 channels": (lambda d: (np.ones((99, 800), np.float32), RATE), "which side is the channels", "Mix it to mono"),
    "missing rate": (lambda d: sine(), ARRAY + "the sampling rate is missing", r"pass \(array, rate\)"),
    "rate None": (lambda d: (sine(), None), "the sampling rate is missing", r"pass \(array, rate\)"),
    "missing rate in a dict": (lambda d: {"array": sine()}, "the sampling rate is missing", "sampling_rate=..."),
    "zero rate": (lambda d: (sine(), 0), "the sampling rate 0 is not positive", "in Hz, for example 16000"),
    "negative rate": (lambda d: (sine(), -16000), "the sampling rate -16000 is not positive", "for example 16000"),
    "rate in kHz": (lambda d: (sine(), 16), "a sampling rate of 16 Hz is none of audio", "in Hz, for example 16000"),
    "rate of 1e12": (lambda d: (sine(), 1e12), "a sampling rate of 1e\\+12 Hz is none", "in Hz, for example 16000"),
    "NaN rate": (lambda d: (sine(), float("nan")), "the sampling rate nan is not positive", "for example 16000"),
    "text as rate": (lambda d: (sine(), "16k"), "the sampling rate '16k' is not a number", "for example 16000"),
    "(rate, array)": (lambda d: (RATE, sine()), r"came as \(rate, array\)", "Swap the two"),
    "None": (lambda d: None, "audio is None, which is no audio", "Pass a path, bytes"),
    "number": (lambda d: 3.5, "audio is 3.5, which is no audio", "Pass a path, bytes"),
    "unknown object": (lambda d: object(), "audio is a object, which is no audio", "Pass a path, bytes"),
    "dict without audio": (
        lambda d: {"text": "hi"},
        r"dict with keys \['text'\] holds no audio",
        "Pass a path, bytes",
    ),
    "name too long": (
        lambda d: "recordings/" * 999 + "a.wav",
        r"\.\.\. \(10994 characters\): cannot be",
        "Check the path",
    ),
    "home of nobody": (lambda d: "~nobody-of-this-name/a.wav", "~nobody-of-this-name/a.wav: is no path", "spelling"),
    "NUL in the name": (lambda d: "a\0.wav", "is no path that can be read", "Check its spelling"),
    "device": (lambda d: "/dev/zero", "/dev/zero: is a device", "Pass an audio file"),
    "file as folder": (lambda d: write(d, "a.wav", b"x") + "/b.wav", "a.wav/b.wav: cannot be read", "Check the path"),
    "number as path": (lambda d: {"path": 3}, "path or url is a int, not text", "Pass a path, bytes"),
    "list as url": (lambda d: {"url": ["a.wav"]}, "path or url is a list, not text", "Pass a path, bytes"),
    "file object that fails": (
        lambda d: SimpleNamespace(name="a.wav", read=lambda: (_ for _ in ()).throw(OSError("stale handle"))),
        r"a.wav: cannot be read \(stale handle\)",
        "Open the audio file again",
    ),
    "array that fails": (
        lambda d: (SimpleNamespace(__array__=0, detach=lambda: (_ for _ in ()).throw(RuntimeError("no data"))), RATE),
        r"is no regular array \(no data\)",
        "Pass one audio at a time",
    ),
    "no Base64": (lambda d: "UklGR" * 13, "read as Base64, as there is no such file", "base64.b64encode"),
    "Base64 of no audio": (lambda d: "_/+A" * 20, "80 characters, read as Base64.*soundfile", "Export|Convert"),
    "number as Base64": (lambda d: {"data": 7, "format": "wav"}, "holds a int, not Base64", "Pass the audio file in"),
    "data address without content": (
        lambda d: "data:audio/wav;base64",
        "has no comma",
        "Write data:audio/wav;base64,",
    ),
    "empty data address": (
        lambda d: "data:audio/wav;base64,",
        "audio/wav;base64, 0 characters: .* empty",
        "Record or",
    ),
    "bytes that are none": (lambda d: {"bytes": "RIFF"}, '"bytes" holds a str', "Pass the content"),
    "broken decoder": (
        lambda d: SimpleNamespace(get_all_samples=lambda: (_ for _ in ()).throw(RuntimeError("bad packet"))),
        r"torchcodec cannot decode it \(bad packet\)",
        "Export the file again",
    ),
}


@pytest.mark.parametrize("case", BAD_AUDIO)
def test_bad_audio_is_refused_with_finding_and_remedy(case, tmp_path):
    make, finding, remedy = BAD_AUDIO[case]
    source = make(tmp_path)
    with pytest.raises(AudioError, match=f"(?s){finding}.*({remedy})"):
        load_audio(source)
    assert issubclass(AudioError, ValueError)


BAD_FOR_MODEL = {
    # name: (kind, source, finding, remedy); the processor knows the model's limits
    "under one Whisper frame": (
        "whisper",
        (sine()[:319], RATE),
        r"319 samples \(19.9 ms\)",
        r"320 samples \(20.0 ms\)",
    ),
    "under one wav2vec2 frame": ("waveform", (sine()[:399], RATE), r"399 samples", r"400 samples \(25.0 ms\)"),
    "under one frame at 8 kHz": ("whisper", (sine(0.01, 8000), 8000), r"160 samples \(10.0 ms\)", "320 samples"),
    "array over the limit": (
        "whisper",
        (sine(2.5), RATE),
        "2.5 s of audio are over the limit of 2 s",
        "split the audio",
    ),
    "file over the limit": (
        "whisper",
        encoded(sine(2.5)),
        "2.5 s of audio are over the limit of 2 s",
        "split the audio",
    ),
    "NaN": ("whisper", (np.full(800, np.nan), RATE), "800 of 800 samples are NaN", "Repair or re-export"),
}


@pytest.mark.parametrize("case", BAD_FOR_MODEL)
@pytest.mark.parametrize("entry", ["call", "chat"])
def test_the_processor_refuses_audio_its_model_cannot_take(case, entry):
    kind, source, finding, remedy = BAD_FOR_MODEL[case]
    processor = make_processor(kind, max_audio_seconds=2.0)
    with pytest.raises(AudioError, match=f"(?s){finding}.*({remedy})"):
        if entry == "call":
            processor(text="<|audio|>", audio=source)
        else:
            processor.apply_chat_template(processor.instruction_chat([source], "Transcribe."), tokenize=True)


@pytest.mark.parametrize(("kind", "least"), [("whisper", 320), ("waveform", 400)])
def test_the_shortest_audio_named_in_the_error_is_accepted(kind, least):
    processor = make_processor(kind)
    assert processor.min_samples == least
    ids = processor(text="<|audio|>", audio=(sine()[:least], RATE))["input_ids"]
    assert (ids == processor.audio_token_id).sum() == 1


@pytest.mark.parametrize(
    ("blocks", "audios", "finding"),
    [
        (2, 1, "has 2 audio blocks .*but 1 audios were given"),
        (1, 3, "has 1 audio blocks .*but 3 audios were given"),
        (0, 1, "has 0 audio blocks .*but 1 audios were given"),
        (1, 0, "has 1 audio blocks .*but 0 audios were given"),
    ],
)
@pytest.mark.parametrize("entry", ["call", "chat"])
def test_blocks_and_audios_that_do_not_pair_up_are_counted(blocks, audios, finding, entry):
    processor = make_processor()
    audio = [(sine(), RATE)] * audios
    with pytest.raises(ValueError, match=f"{finding}.*Give one audio per block"):
        if entry == "call":
            processor(text="<|audio|>" * blocks + "hello", audio=audio or None)
        else:
            content = [{"type": "audio"}] * blocks + [{"type": "text", "text": "hello"}]
            processor.apply_chat_template([{"role": "user", "content": content}], tokenize=True, audio=audio)


BAD_CHATS = {
    "empty chat": ([], "conversation is empty", "at least one message"),
    "image block": ([{"role": "user", "content": [{"type": "image"}]}], "kind 'image' cannot be used", '"audio"'),
    "bare string block": ([{"role": "user", "content": ["hi"]}], "kind 'str' cannot be used", '"type": "text"'),
    "text block without text": ([{"role": "user", "content": [{"type": "text"}]}], "kind 'text'", '"text": ...'),
    "empty chat in a list": (
        [[{"role": "user", "content": "hi"}], []],
        r"is empty \(chat 1\)",
        "at least one message",
    ),
    "one message alone": ({"role": "user", "content": "hi"}, "conversation is a dict", "list of messages"),
    "text as chat": ("hello", "conversation is a str", "list of messages"),
    "number as chat": (3, "conversation is a int", "list of messages"),
    "chats and messages": ([[{"role": "user", "content": "a"}], {"role": "user"}], "mixes chats and", "Pass one chat"),
    "text as message": (["hello"], "message 0 is a str, not a message", "Write it as"),
    "no role": ([{"content": "hi"}], "message 0 has no role", '"user" or "assistant"'),
    "number as role": ([{"role": 3, "content": "hi"}], "message 0 has the role 3", '"user" or "assistant"'),
    "no content": ([{"role": "user"}], "message 0 has no content", 'or "" if it is to be empty'),
    "None as content": ([{"role": "user", "content": None}], "message 0 has no content", "Give it text or blocks"),
    "dict as content": (
        [{"role": "user", "content": {"type": "text", "text": "hi"}}],
        "message 0 has a dict as content",
        "Put the block into a list",
    ),
    "number as content": ([{"role": "user", "content": 7}], "message 0 has a int as content", "list of blocks"),
    "second of a batch": (
        [[{"role": "user", "content": "hi"}], [{"role": "user", "content": "hi"}, {"role": "user", "content": 7.5}]],
        "chat 1, message 1 has a float as content",
        "list of blocks",
    ),
    "block that is None": ([{"role": "user", "content": [None]}], "kind 'NoneType' cannot be used", '"type": "text"'),
    "audio under an unknown key": (
        [{"role": "user", "content": [{"type": "audio", "file": "a.wav"}]}],
        "kind 'audio' has 'file', but no audio under a known key",
        "Use one of: audio",
    ),
    "audio_url without a url": (
        [{"role": "user", "content": [{"type": "audio_url", "audio_url": {}}]}],
        "audio_url of an audio block has no url",
        '"audio_url": {"url"',
    ),
    "input_audio without data": (
        [{"role": "user", "content": [{"type": "input_audio", "input_audio": {"format": "wav"}}]}],
        "input_audio of an audio block has no data",
        '"data": "<Base64>"',
    ),
    "input_audio of nothing": (
        [{"role": "user", "content": [{"type": "input_audio"}]}],
        "kind 'input_audio' has no audio under a known key",
        "Use one of: audio",
    ),
    "two sources": (
        [{"role": "user", "content": [{"type": "audio", "path": "a.wav", "url": "b.wav"}]}],
        "has path and url",
        "Keep one",
    ),
}


@pytest.mark.parametrize("case", BAD_CHATS)
def test_bad_chats_are_refused(case):
    chat, finding, remedy = BAD_CHATS[case]
    with pytest.raises(ValueError, match=f"{finding}.*{remedy}"):
        make_processor().apply_chat_template(chat, tokenize=True)


def test_what_a_template_raises_is_an_error_with_the_roles():
    template = "{% if messages[0]['role'] != 'user' %}{{ raise_exception('The user begins') }}{% endif %}"
    chat = [{"role": "assistant", "content": "hi"}]
    with pytest.raises(ValueError, match=r"cannot lay out this chat: The user begins \(roles: assistant\).*Give it"):
        make_processor().apply_chat_template(chat, chat_template=template)
    with pytest.raises(ValueError, match="cannot lay out this chat: .*Give it the roles"):
        make_processor().apply_chat_template(chat, chat_template="{{ messages[0]['content'] + 3 }}")


def test_a_message_without_content_may_call_a_tool():
    chat = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": None, "tool_calls": [{"name": "f"}]}]
    template = "{% for message in messages %}{{ message['content'] or message['tool_calls'][0]['name'] }}{% endfor %}"
    assert make_processor().apply_chat_template(chat, chat_template=template) == "hif"


def test_a_wav_of_unknown_length_is_no_truncated_wav():
    content = bytearray(encoded(sine(), subtype="PCM_16"))
    position = content.index(b"data") + 4
    content[position : position + 4] = struct.pack("<I", 0xFFFFFFFF)  # as written into a pipe
    content[4:8] = struct.pack("<I", 0xFFFFFFFF)
    assert len(load_audio(bytes(content))) == len(sine())


def test_silence_warns_through_the_processor():
    with pytest.warns(UserWarning, match="samples are zero.*Check the microphone"):
        make_processor()(text="<|audio|>", audio=(np.zeros(1600, np.float32), RATE))
