"""Audio by address: paths, file: and data: addresses, Base64; and servers that refuse their own disk."""

import base64

import numpy as np
import pytest
from factories_processing import encoded, sine

from processing_speechllm.audio import AudioError, load_audio

WAV = encoded(sine(), subtype="FLOAT")
TEXT = base64.b64encode(WAV).decode()
ADDRESSES = {
    "Base64": TEXT,
    "Base64 in lines": base64.encodebytes(WAV).decode(),
    "Base64 for urls": base64.urlsafe_b64encode(WAV).decode(),
    "Base64 without padding": TEXT.rstrip("="),
    "data address": f"data:audio/wav;base64,{TEXT}",
    "data address in capitals": f"DATA:audio/x-wav;codecs=1;BASE64,{TEXT}",
    "data address without a type": f"data:;base64,{TEXT}",
    "data address, escaped": "data:audio/wav," + "".join(f"%{byte:02x}" for byte in WAV),
    "data address, Base64 escaped": f"data:audio/wav;base64,{TEXT.replace('+', '%2B').replace('/', '%2F')}",
}
FORMS = {
    "string": lambda text: text,
    "path": lambda text: {"path": text},
    "url": lambda text: {"url": text},
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", ADDRESSES)
@pytest.mark.parametrize("allowed", [True, False])
def test_audio_in_an_address_is_decoded(kind, form, allowed):
    loaded = load_audio(FORMS[form](ADDRESSES[kind]), allow_local_files=allowed)
    np.testing.assert_array_equal(loaded, sine())


@pytest.mark.parametrize("source", [{"data": TEXT, "format": "wav"}, {"base64": TEXT}, {"data": TEXT.encode()}])
def test_base64_under_the_keys_of_openai_and_transformers_is_decoded(source):
    np.testing.assert_array_equal(load_audio(source, allow_local_files=False), sine())


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("allowed", [True, False])
@pytest.mark.parametrize(
    ("address", "found"),
    [
        ("ftp://example.org/a.wav", "ftp://example.org/a.wav: addresses of ftp:// are not read here. Give an http"),
        ("s3://bucket/a.wav", "addresses of s3:// are not read"),
        (" https://example.org/a.wav", "' https://example.org/a.wav': begins with white space"),
        ("\nfile:///a.wav", "begins with white space"),
        (f" data:audio/wav;base64,{TEXT}", "begins with white space"),
    ],
)
def test_an_address_that_is_not_read_says_so_and_not_that_a_file_is_missing(address, found, form, allowed):
    with pytest.raises(AudioError, match=found):
        load_audio(FORMS[form](address), allow_local_files=allowed)


def test_a_file_address_is_a_path(tmp_path):
    path = tmp_path / "my clip.wav"
    path.write_bytes(WAV)
    np.testing.assert_array_equal(load_audio(path.as_uri()), sine())
    np.testing.assert_array_equal(load_audio({"url": path.as_uri()}), sine())


def test_a_file_whose_name_could_be_base64_is_a_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / ("a" * 80)).write_bytes(WAV)
    np.testing.assert_array_equal(load_audio("a" * 80), sine())


@pytest.mark.parametrize("exists", [True, False])
@pytest.mark.parametrize(
    "form", [*FORMS.values(), lambda text: __import__("pathlib").Path(text), lambda text: "file://" + text]
)
def test_local_files_can_be_refused_and_are_then_not_looked_at(form, exists, tmp_path):
    path = tmp_path / "clip.wav"
    if exists:
        path.write_bytes(WAV)
    with pytest.raises(AudioError, match="clip.wav: local files are refused here.*data: address") as error:
        load_audio(form(str(path)), allow_local_files=False)
    assert "no such file" not in str(error.value)


def test_messages_name_a_data_address_by_its_kind_and_size():
    with pytest.raises(AudioError, match=r"^data: address audio/wav;base64, 40000 characters: ") as error:
        load_audio("data:audio/wav;base64," + "UklG" * 10_000)
    assert len(str(error.value)) < 500
