"""Processor and model count audio tokens alike, for every length."""

import numpy as np
import pytest
import torch
from conftest import AUDIO_CONFIGS, WHISPER_NAMES, feature_extractor, text_config, tiny_speechllm
from factories_processing import make_tokenizer

from modeling_speechllm import output_length
from modeling_speechllm.lengths import minimum_input, receptive_field, stage_length
from processing_speechllm import SpeechLLMProcessor
from processing_speechllm import stage_length as processor_length


def naive_length(length, kernel, stride, padding=0, ceil=False, tokens=1):
    """Counts window positions one by one."""
    size, places, start = length + 2 * padding if length else 0, 0, 0
    while start + kernel <= size or (ceil and size > 0 and (start == 0 or start + kernel - stride < size)):
        places, start = places + 1, start + stride
    return places * tokens


EXTRAS = [{}, {"padding": 1}, {"padding": 4}, {"ceil": True}, {"ceil": True, "tokens": 3}]
# With `ceil` a stride wider than the kernel would skip inputs: no stage does that.
STAGES = [
    {"kernel": kernel, "stride": stride, **extra}
    for kernel in (1, 2, 3, 8)
    for stride in (1, 2, 3, 8)
    for extra in EXTRAS
    if stride <= kernel or not extra.get("ceil")
]


@pytest.mark.parametrize("stage", STAGES, ids=str)
def test_the_formula_counts_windows(stage):
    lengths = list(range(40))
    expected = [naive_length(length, **stage) for length in lengths]
    assert [stage_length(length, **stage) for length in lengths] == expected
    assert stage_length(torch.tensor(lengths), **stage).tolist() == expected
    assert [processor_length(length, [stage]) for length in lengths] == expected
    shortest = next(length for length in range(1, 40) if stage_length(length, **stage))
    assert minimum_input([stage]) == shortest


def test_receptive_field_of_wav2vec2():
    assert receptive_field(tiny_speechllm("hubert").config.audio_stages) == (400, 320)


@pytest.mark.slow
@pytest.mark.parametrize("connector", [{"stride": 4}, {"stride": 3, "width": 7}, {"stride": 1}], ids=str)
@pytest.mark.parametrize("audio", [*AUDIO_CONFIGS, *(f"{name}-padded" for name in WHISPER_NAMES)])
def test_processor_and_model_agree_from_one_frame_up(audio, connector):
    pad_to_window, audio = audio.endswith("-padded"), audio.removesuffix("-padded")
    tokenizer = make_tokenizer()
    model = tiny_speechllm(
        audio,
        text=text_config(vocab_size=len(tokenizer)),
        audio_token_id=len(tokenizer),
        connector=connector,
        pad_to_window=pad_to_window,
    )
    processor = SpeechLLMProcessor.from_parts(feature_extractor(audio), tokenizer, model.config)
    rng = np.random.default_rng(0)
    shortest = processor.min_samples
    lengths = list(range(shortest, shortest + 700, 37)) + [6401, 13000]  # the last ones span windows
    for samples in lengths:
        inputs = processor(
            text=processor.audio_token, audio=rng.normal(0, 0.1, samples).astype("float32"), sampling_rate=16000
        )
        audio_tokens = model.get_audio_features(inputs["input_features"], inputs["input_features_mask"]).pooler_output
        assert len(audio_tokens) == inputs["input_ids"].shape[1] == processor.audio_token_count(samples)
        assert torch.isfinite(inputs["input_features"]).all()
        units = int(inputs["input_features_mask"].sum())
        frames = output_length(units, model.config.audio_stages)
        assert len(audio_tokens) == output_length(frames, model.config.connector_stages)
