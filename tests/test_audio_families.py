"""Each family beside the original: what its tower gives, which layers, its sizes, and where its weights come from."""

import copy
import logging
import math
import re
from pathlib import Path

import pytest
import torch
import transformers
from conftest import (
    AUDIO_CONFIGS,
    POOLED,
    VOCABULARY,
    WAVEFORM_NAMES,
    WHISPER_NAMES,
    feature_extractor,
    positions,
    random_audio,
    scatter_weights,
    seamless_config,
    text_config,
    tiny_speechllm,
    whisper_config,
)
from factories_processing import make_tokenizer
from safetensors.torch import load_file, save_file
from transformers import (
    AudioFlamingo3Config,
    AudioFlamingo3ForConditionalGeneration,
    AutoConfig,
    BertConfig,
    BertModel,
    HubertConfig,
    HubertForCTC,
    LlamaForCausalLM,
    ParakeetCTCConfig,
    ParakeetFeatureExtractor,
    ParakeetForCTC,
    ParakeetForTDT,
    ParakeetTDTConfig,
    Qwen2AudioConfig,
    Qwen2AudioForConditionalGeneration,
    Qwen2Config,
    SeamlessM4TFeatureExtractor,
    SeamlessM4Tv2ForSpeechToText,
    Wav2Vec2BertForCTC,
    Wav2Vec2FeatureExtractor,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
)
from transformers.masking_utils import create_bidirectional_mask

from modeling_speechllm import SpeechLLMConfig, SpeechLLMForConditionalGeneration, build_audio_tower, output_length
from modeling_speechllm.audio_encoders import load_encoder
from modeling_speechllm.audio_families import AUDIO_FAMILIES, audio_stages, default_window
from modeling_speechllm.lengths import receptive_field
from processing_speechllm import SpeechLLMProcessor, stage_length
from processing_speechllm.feature_kinds import feature_kind

# The same sums in another order: float32 rounding through a few layers.
CLOSE = {"rtol": 0, "atol": 2e-5}
NO_ADAPTER = [name for name in AUDIO_CONFIGS if not name.endswith("adapter") and name != "seamless"]
NO_ADAPTER.append("seamless-no-adapter")


def tower_of(name, **settings):
    torch.manual_seed(0)
    return scatter_weights(build_audio_tower(AUDIO_CONFIGS[name](), **settings)).eval()


def original(name, encoder, features):
    """transformers' own forward on one unpadded input; a Whisper with as many positions as the audio needs."""
    if name in WAVEFORM_NAMES:
        return encoder(features, output_hidden_states=True)
    if name not in WHISPER_NAMES:
        return encoder(features.transpose(1, 2), output_hidden_states=True)
    encoder, frames = copy.deepcopy(encoder), features.shape[-1] // 2
    encoder.embed_positions.weight.data = encoder.embed_positions.weight[:frames]
    encoder.embed_positions.num_embeddings = encoder.config.max_source_positions = frames
    mask = {"input_features_mask": torch.ones(1, 2 * frames)} if name == "audio-flamingo-3" else {}
    return encoder(features, output_hidden_states=True, **mask)


@pytest.mark.parametrize("half_frames", [2, 7, 14, 20])
@pytest.mark.parametrize("name", AUDIO_CONFIGS)
def test_a_tower_is_the_original_encoder(name, half_frames):
    tower = tower_of(name)
    length = 2 * half_frames if name in WHISPER_NAMES else positions(name, half_frames)[0]
    features, _ = random_audio(tiny_speechllm(name), [length])
    output = tower(features)
    torch.testing.assert_close(output.last_hidden_state, original(name, tower.encoder, features)[0], **CLOSE)
    width = tiny_speechllm(name).config.audio_size
    assert output.last_hidden_state.shape == (1, output_length(length, tower.stages), width)


@pytest.mark.parametrize("name", NO_ADAPTER)
def test_chosen_layers_are_the_original_s_hidden_states(name):
    tower = tower_of(name)
    length = 24 if name in WHISPER_NAMES else positions(name, 24)[0]
    features, _ = random_audio(tiny_speechllm(name), [length])
    expected = original(name, tower.encoder, features)
    states = list(expected.hidden_states)
    assert len(states) == 3
    if name in WHISPER_NAMES[1:]:  # pooled as the output is, so that all have its length
        states = [(state[:, 0::2] + state[:, 1::2]) / 2 for state in states[:2]]
    for number, state in enumerate([*states[:2], expected.last_hidden_state]):
        layer = tower(features, layers=[number]).last_hidden_state[:, :, 0]
        torch.testing.assert_close(layer, state, **CLOSE)
    both = tower(features, layers=[2, 0]).last_hidden_state
    assert both.shape == (*expected.last_hidden_state.shape[:2], 2, 16)
    torch.testing.assert_close(both[:, :, 0], expected.last_hidden_state, **CLOSE)


@pytest.mark.parametrize("name", NO_ADAPTER)
def test_layers_of_a_padded_batch_are_those_of_its_members(name):
    tower = tower_of(name, window=7)
    lengths = positions(name, 9, 40)
    features, mask = random_audio(tiny_speechllm(name), lengths)
    batch = tower(features, mask, layers=[0, 1, 2])
    for row, length in enumerate(lengths):
        alone = tower(features[row : row + 1, ..., :length], layers=[0, 1, 2]).last_hidden_state[0]
        torch.testing.assert_close(batch.last_hidden_state[row, : len(alone)], alone, **CLOSE)
        assert not batch.last_hidden_state[row, len(alone) :].any()


@pytest.mark.parametrize("name", ["wav2vec2-adapter", "w2v-bert-adapter", "seamless"])
def test_layers_before_an_adapter_are_refused_with_the_remedy(name):
    features, _ = random_audio(tiny_speechllm(name), positions(name, 9))
    with pytest.raises(ValueError, match="ends in an adapter.*add_adapter=False"):
        tower_of(name)(features, layers=[0])
    with pytest.raises(ValueError, match="ends in an adapter.*add_adapter=False"):
        tiny_speechllm(name, connector={"type": "stack_mlp", "layers": "all"})


def test_eager_attention_in_seamless_is_exact_or_refused():
    features, mask = random_audio(tiny_speechllm("seamless-no-adapter"), [9, 40])
    features[0, :, 9:] = 9.0
    outputs = {}
    for attention in ("sdpa", "eager"):
        config = seamless_config(add_adapter=False, speech_encoder_chunk_size=50, attn_implementation=attention)
        torch.manual_seed(0)
        outputs[attention] = scatter_weights(build_audio_tower(config)).eval()(features, mask).last_hidden_state
    torch.testing.assert_close(outputs["eager"], outputs["sdpa"], **CLOSE)
    config = seamless_config(attn_implementation="eager")
    with pytest.raises(ValueError, match="chunks of 7 positions.*sdpa"):
        build_audio_tower(config)(features, mask)


def test_pad_to_window_is_the_original_whisper_on_the_original_features():
    extractor = WhisperFeatureExtractor(feature_size=8, chunk_length=1)
    tower = build_audio_tower(whisper_config(max_source_positions=50), pad_to_window=True).eval()
    scatter_weights(tower)
    waveform = torch.randn(5000).numpy() * 0.1
    padded = extractor(waveform, sampling_rate=16000, return_tensors="pt").input_features  # one padded second
    expected = tower.encoder(padded).last_hidden_state
    mask = torch.arange(100)[None] < 32  # ceil(5000 / 160) valid mel frames
    output = tower(padded, mask)
    assert int(output.lengths) == 16
    assert torch.equal(output.last_hidden_state, expected[:, :16])


@pytest.mark.parametrize("name", WHISPER_NAMES[1:])
def test_pad_to_window_is_the_original_pooled_encoder_that_masks_the_silence(name):
    extractor = WhisperFeatureExtractor(feature_size=8, chunk_length=1)
    config = type(AUDIO_CONFIGS[name]())(**POOLED | {"max_source_positions": 50})
    tower = scatter_weights(build_audio_tower(config, pad_to_window=True)).eval()
    waveforms = [torch.randn(size).numpy() * 0.1 for size in (5000, 16000)]
    padded = extractor(waveforms, sampling_rate=16000, return_tensors="pt").input_features
    mask = torch.arange(100) < torch.tensor([[32], [100]])
    if name == "qwen2-audio":  # its whole model makes the mask outside of the encoder
        frames = torch.arange(50) < torch.tensor([[16], [50]])
        frames = create_bidirectional_mask(
            config=config, inputs_embeds=torch.zeros(2, 50, 1), attention_mask=frames.long()
        )
        expected = tower.encoder(padded, attention_mask=frames).last_hidden_state
    else:
        expected = tower.encoder(padded, input_features_mask=mask).last_hidden_state
    output = tower(padded, mask)
    assert output.lengths.tolist() == [8, 25]
    torch.testing.assert_close(output.last_hidden_state[0, :8], expected[0, :8], **CLOSE)
    torch.testing.assert_close(output.last_hidden_state[1], expected[1], **CLOSE)


def test_positions_of_the_seamless_extractor_are_what_its_own_mask_leaves():
    extractor = SeamlessM4TFeatureExtractor()
    stages = feature_kind(extractor).stages(extractor)
    for samples in range(560, 2000, 41):
        own = extractor(torch.randn(samples).numpy(), sampling_rate=16000, return_tensors="np")
        assert int(own["attention_mask"].sum()) == stage_length(samples, stages)


# --- Sizes ---

SIZES = {  # width, layers, features per position, default window in frames
    "whisper": (16, 2, 8, 20),
    "wav2vec2-group-norm": (16, 2, None, 1500),
    "wav2vec2-adapter": (16, 2, None, 750),
    "w2v-bert": (16, 2, 8, 1500),
    "w2v-bert-adapter": (8, 2, 8, 750),
    "seamless": (16, 2, 8, 188),
    "seamless-no-adapter": (16, 2, 8, 1500),
    "parakeet": (16, 2, 8, 375),
    "qwen2-audio": (16, 2, 8, 10),
    "audio-flamingo-3": (16, 2, 8, 10),
}


@pytest.mark.parametrize("name", SIZES)
def test_the_config_knows_the_encoder_s_sizes(name):
    width, layers, features, window = SIZES[name]
    config = SpeechLLMConfig.from_parts(AUDIO_CONFIGS[name](), text_config())
    assert (config.audio_size, config.audio_feature_size, config.audio_window) == (width, features, window)
    if name in NO_ADAPTER:
        config.connector["layers"] = "all"
        assert config.audio_layers == list(range(layers + 1))
    if name in WHISPER_NAMES:
        with pytest.raises(ValueError, match=f"audio_window={window + 1} frames must be from 1 to {window}"):
            SpeechLLMConfig.from_parts(AUDIO_CONFIGS[name](), text_config(), audio_window=window + 1)
    else:
        with pytest.raises(ValueError, match="pad_to_window is Whisper's pretrained behaviour"):
            SpeechLLMConfig.from_parts(AUDIO_CONFIGS[name](), text_config(), pad_to_window=True)


@pytest.mark.parametrize("name", AUDIO_CONFIGS)
def test_a_saved_model_reloads_with_the_same_output(name, tmp_path):
    model = tiny_speechllm(name)
    features, mask = random_audio(model, positions(name, 9, 30))
    model.save_pretrained(tmp_path)
    reloaded = type(model).from_pretrained(tmp_path)
    assert reloaded.config.audio_config.model_type == model.config.audio_config.model_type
    expected = model.get_audio_features(features, mask).pooler_output
    assert torch.equal(reloaded.get_audio_features(features, mask).pooler_output, expected)


# --- Loading ---


def parakeet_whole(config_class, model_class, **settings):
    encoder = AUDIO_CONFIGS["parakeet"]().to_dict()
    return model_class(config_class(encoder_config=encoder, vocab_size=12, pad_token_id=0, **settings))


def audio_llm(config_class, model_class, name):
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "vocab_size": 40}
    text = Qwen2Config(**sizes, num_attention_heads=2, num_key_value_heads=2)
    return model_class(config_class(audio_config=AUDIO_CONFIGS[name](), text_config=text))


WHOLE = {  # a whole checkpoint and the encoder in it
    "whisper": lambda: WhisperForConditionalGeneration(whisper_config()),
    "hubert": lambda: HubertForCTC(HubertConfig(**AUDIO_CONFIGS["hubert"]().to_dict() | {"vocab_size": 9})),
    "w2v-bert": lambda: Wav2Vec2BertForCTC(type(AUDIO_CONFIGS["w2v-bert"]())(
        **AUDIO_CONFIGS["w2v-bert"]().to_dict() | {"vocab_size": 9})),
    "seamless": lambda: SeamlessM4Tv2ForSpeechToText(seamless_config()),
    "parakeet-ctc": lambda: parakeet_whole(ParakeetCTCConfig, ParakeetForCTC),
    "parakeet-tdt": lambda: parakeet_whole(
        ParakeetTDTConfig, ParakeetForTDT, decoder_hidden_size=8, num_decoder_layers=1, blank_token_id=11),
    "qwen2-audio": lambda: audio_llm(Qwen2AudioConfig, Qwen2AudioForConditionalGeneration, "qwen2-audio"),
    "audio-flamingo-3": lambda: audio_llm(
        AudioFlamingo3Config, AudioFlamingo3ForConditionalGeneration, "audio-flamingo-3"),
}  # fmt: skip
PARTS = {"hubert": "hubert", "w2v-bert": "wav2vec2_bert", "seamless": "speech_encoder", "whisper": "model.encoder"}
PARTS |= {"parakeet-ctc": "encoder", "parakeet-tdt": "encoder"}


@pytest.fixture(params=WHOLE)
def whole(request, tmp_path):
    """A checkpoint of the whole model, one of its encoder alone, and that encoder."""
    torch.manual_seed(1)
    model = WHOLE[request.param]()
    encoder = scatter_weights(model.get_submodule(PARTS.get(request.param, "model.audio_tower")))
    model.save_pretrained(tmp_path / "whole")
    encoder.save_pretrained(tmp_path / "encoder")
    return tmp_path, encoder


def test_an_encoder_loads_from_whole_and_encoder_only_checkpoints(whole):
    folder, expected = whole
    for name in ("whole", "encoder"):
        encoder = load_encoder(str(folder / name))
        assert type(encoder) is type(expected)
        assert encoder.config.model_type == expected.config.model_type
        assert encoder.config.name_or_path == str(folder / name)
        state = encoder.state_dict()
        assert state.keys() == expected.state_dict().keys()
        for key, value in expected.state_dict().items():
            assert torch.equal(state[key], value), key
        config = SpeechLLMConfig.from_parts(str(folder / name), text_config())
        assert config.audio_config.model_type == expected.config.model_type


def test_missing_encoder_weights_are_refused_by_name(whole):
    folder, _ = whole
    for name in ("whole", "encoder"):
        path = folder / name / "model.safetensors"
        weights = load_file(path)
        norms = ("layers.1.final_layer_norm.weight", "layers.1.norm_out.weight")
        key = next(key for key in weights if key.endswith(norms) and "decoder" not in key)
        last = key[key.index("layers.1") :]
        del weights[key]
        save_file(weights, path, metadata={"format": "pt"})
        with pytest.raises(ValueError, match=f"lacks 1 encoder weights, the first: .*{last}"):
            load_encoder(str(folder / name))


@pytest.mark.parametrize("name", WHOLE)
def test_a_whole_model_in_place_of_the_encoder_is_refused(name):
    model = WHOLE[name]()
    with pytest.raises(ValueError, match=f"{type(model).__name__} is not the encoder alone, a .*Give that part"):
        build_audio_tower(model.config, encoder=model)


def test_older_checkpoints_of_audio_llms_load_too(tmp_path):
    """Their encoder is at the top, not in a base model."""
    model = WHOLE["qwen2-audio"]()
    model.save_pretrained(tmp_path)
    expected = model.model.audio_tower.state_dict()
    weights = {f"audio_tower.{key}": value for key, value in expected.items()}
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    state = load_encoder(str(tmp_path)).state_dict()
    assert all(torch.equal(state[key], value) for key, value in expected.items())


def test_loading_an_encoder_from_a_whole_model_is_silent(whole, caplog, monkeypatch):
    folder, _ = whole
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    load_encoder(str(folder / "encoder"))
    load_encoder(str(folder / "whole"))
    assert not caplog.records
    assert transformers.utils.logging.get_verbosity() == logging.WARNING


def test_an_adapter_can_be_left_out_also_of_a_trained_part(tmp_path):
    WHOLE["seamless"]().save_pretrained(tmp_path / "seamless")
    scatter_weights(LlamaForCausalLM(text_config()), 2).save_pretrained(tmp_path / "llm")
    encoder = load_encoder(str(tmp_path / "seamless"), config=seamless_config(add_adapter=False))
    assert encoder.adapter is None
    model = SpeechLLMForConditionalGeneration.from_parts(
        audio=encoder,
        text=str(tmp_path / "llm"),
        connector={"type": "stack_mlp", "layers": [0, 1]},
        audio_token_id=VOCABULARY,
    )
    features, mask = random_audio(model, [12])
    output = model.get_audio_features(features, mask)
    assert output.last_hidden_state.shape == (1, 12, 2, 16)
    model.save_pretrained(tmp_path / "trained", trained_only=True)
    reloaded = SpeechLLMForConditionalGeneration.from_pretrained(tmp_path / "trained")
    assert torch.equal(reloaded.get_audio_features(features, mask).pooler_output, output.pooler_output)


@pytest.mark.parametrize("name", ["qwen2-audio", "seamless", "parakeet-ctc"])
def test_a_speechllm_takes_the_encoder_and_extractor_of_a_whole_checkpoint(name, tmp_path):
    WHOLE[name]().save_pretrained(tmp_path / "audio")
    feature_extractor(name.removesuffix("-ctc")).save_pretrained(tmp_path / "audio")
    tokenizer = make_tokenizer()
    tokenizer.save_pretrained(tmp_path / "llm")
    LlamaForCausalLM(text_config(vocab_size=len(tokenizer))).save_pretrained(tmp_path / "llm")
    parts = {"audio": str(tmp_path / "audio"), "text": str(tmp_path / "llm")}
    model = SpeechLLMForConditionalGeneration.from_parts(**parts)
    processor = SpeechLLMProcessor.from_parts(**parts, config=model.config)
    processor.save_pretrained(tmp_path / "processor")
    processor = SpeechLLMProcessor.from_pretrained(tmp_path / "processor")
    clips = [torch.randn(size).numpy() * 0.1 for size in (9000, 30000)]
    inputs = processor(text=["<|audio|>", "<|audio|> what"], audio=clips, sampling_rate=16000)
    assert model.generate(**inputs, max_new_tokens=3).shape[0] == 2
    for row, clip in enumerate(clips):  # features of each clip are computed alone
        alone = processor(text="<|audio|>", audio=clip, sampling_rate=16000)["input_features"][0]
        assert torch.equal(inputs["input_features"][row, :, : alone.shape[-1]], alone)


def test_unknown_family_lists_the_supported_ones(tmp_path):
    small = BertConfig(vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
    BertModel(small).save_pretrained(tmp_path)
    listed = "'bert' of .*Supported families: whisper, wav2vec2.*parakeet_encoder.*and the encoders of parakeet_ctc"
    with pytest.raises(ValueError, match=listed):
        load_encoder(str(tmp_path))
    with pytest.raises(ValueError, match="'bert'. Supported families: whisper"):
        SpeechLLMConfig.from_parts(str(tmp_path), text_config())


# --- Documentation ---

ROW = re.compile(
    r"\| `(?P<family>[^`]+)` \| [^|]+ \| (?P<input>\d+) (?P<kind>[a-z ]+) "
    r"\| (?P<rate>[\d.]+) \| (?P<window>\d+) \| (?P<padded>yes|no) \|"
)
EXTRACTORS = {
    "samples": Wav2Vec2FeatureExtractor,
    "stacked mel frames": SeamlessM4TFeatureExtractor,
    "mel frames": WhisperFeatureExtractor,
}


def test_the_documented_table_is_what_the_code_does():
    page = (Path(__file__).parent.parent / "docs/encoders.md").read_text(encoding="utf-8")
    rows = [match.groupdict() for match in ROW.finditer(page)]
    assert {row["family"] for row in rows} == set(AUDIO_FAMILIES)
    for row in rows:
        extractor = EXTRACTORS[row["kind"]]()
        if row["family"] == "parakeet_encoder":
            extractor = ParakeetFeatureExtractor()
        strides = math.prod(stage["stride"] for stage in feature_kind(extractor).stages(extractor))
        assert int(row["input"]) == extractor.sampling_rate / strides
        config = AutoConfig.for_model(row["family"])
        assert float(row["rate"]) == int(row["input"]) / receptive_field(audio_stages(config))[1], row
        assert int(row["window"]) == default_window(config), row
        settings = {"audio_config": config, "text_config": text_config(), "pad_to_window": True}
        if row["padded"] == "yes":
            SpeechLLMConfig(**settings)
        else:
            with pytest.raises(ValueError, match="pad_to_window"):
                SpeechLLMConfig(**settings)
