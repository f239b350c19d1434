"""What vLLM's Transformers backend asks of a SpeechLLM, held without vLLM; benchmarks/serving runs vLLM itself."""

import importlib
import sys
import tomllib
from importlib import metadata
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import AUDIO_CONFIGS, feature_extractor, text_config, tiny_speechllm
from factories_processing import make_tokenizer
from transformers import AttentionInterface, Gemma3TextConfig, GraniteConfig
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from modeling_speechllm import SpeechLLMModel
from processing_speechllm import SpeechLLMProcessor

CLOSE = {"atol": 1e-5, "rtol": 1e-4}
CONNECTORS = [
    {"type": "stack_mlp", "stride": 1, "width": 3},
    {"type": "conv", "convolutions": 2},
    {"type": "window_qformer", "width": 6, "queries": 2, "hidden_size": 16, "heads": 2, "ffn_size": 32},
]
SMALL = {
    **{"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1},
    **{"num_attention_heads": 4, "num_key_value_heads": 2},
}
SECONDS = (0.9, 0.31, 2.2, 0.31)  # the third is longer than a window of the tiny Whisper


@pytest.fixture
def vllm_attention(monkeypatch):
    """The name under which vLLM registers its own attention."""
    AttentionInterface.register("vllm", sdpa_attention_forward)
    yield
    AttentionInterface._global_mapping.pop("vllm", None)


def parts(audio, connector=None, **changes):
    """A tiny SpeechLLM and its processor."""
    tokenizer = make_tokenizer()
    text = text_config(vocab_size=len(tokenizer))
    model = tiny_speechllm(audio, text=text, audio_token_id=len(tokenizer), connector=connector, **changes)
    return model, SpeechLLMProcessor.from_parts(feature_extractor(audio), tokenizer, model.config)


def noise(seconds, seed=0):
    return np.random.default_rng(seed).normal(0, 0.1, round(16000 * seconds)).astype("float32")


@pytest.mark.parametrize(
    ("audio", "connector"),
    [*((name, CONNECTORS[0]) for name in AUDIO_CONFIGS), *(("whisper", connector) for connector in CONNECTORS[1:])],
    ids=lambda value: value if isinstance(value, str) else value["type"],
)
def test_a_clip_alone_gives_its_slice_of_the_flat_features(audio, connector):
    """vLLM keeps what it made of an audio and splits flat features by the counts of the processor."""
    model, processor = parts(audio, connector)
    clips = [noise(seconds, seed) for seed, seconds in enumerate(SECONDS)]
    text = " ".join([processor.audio_token] * len(clips))
    options = {"sampling_rate": 16000, "return_text_replacement_offsets": True}
    together = processor(text=text, audio=clips, **options)
    replacements = [entry["replacement"] for entry in together["text_replacement_offsets"][0]]
    counts = [text.count(processor.audio_token) for text in replacements]
    told = processor._get_num_multimodal_tokens(audio_lengths=[len(clip) for clip in clips])
    assert counts == told["num_audio_tokens"] and min(counts) > 0
    flat = model.model.get_audio_features(
        together["input_features"], return_dict=True, input_features_mask=together["input_features_mask"]
    ).pooler_output
    assert flat.shape == (sum(counts), 32)
    for clip, own in zip(clips, flat.split(counts), strict=True):
        alone = processor(text=processor.audio_token, audio=[clip], sampling_rate=16000)
        features = model.model.get_audio_features(
            alone["input_features"], return_dict=True, input_features_mask=alone["input_features_mask"]
        ).pooler_output
        torch.testing.assert_close(features, own, **CLOSE)


def test_a_mask_may_be_a_list_of_masks():
    """So vLLM hands over one of several audios of unequal lengths."""
    model, processor = parts("whisper")
    inputs = processor(text=processor.audio_token, audio=noise(0.9), sampling_rate=16000)
    features, mask = inputs["input_features"], inputs["input_features_mask"]
    expected = model.model.get_audio_features(features, mask).pooler_output
    given = model.model.get_audio_features(features, return_dict=True, input_features_mask=[mask[0]]).pooler_output
    assert torch.equal(given, expected)


def test_stacked_frames_are_a_tensor_of_their_own():
    """oneDNN under vLLM crashes on the view whose rows overlap."""
    model, processor = parts("whisper", CONNECTORS[0])
    seen = []
    hook = model.model.multi_modal_projector.linear_1.register_forward_pre_hook(
        lambda module, inputs: seen.append(inputs[0].is_contiguous())
    )
    inputs = processor(text=processor.audio_token, audio=noise(0.9), sampling_rate=16000)
    model.get_audio_features(inputs["input_features"], inputs["input_features_mask"])
    hook.remove()
    assert seen == [True]


def under_vllm(text=None, **changes):
    """The base model as vLLM builds it: with its attention in the LLM."""
    config = tiny_speechllm(text=text, **changes).config
    config.text_config._attn_implementation = "vllm"
    return config


@pytest.mark.parametrize("scaled", [False, True])
def test_placeholders_beyond_the_table_are_embedded_where_vllm_asks_the_table(vllm_attention, scaled):
    text = None
    if scaled:  # a class of its own, which multiplies
        text = Gemma3TextConfig(**SMALL, head_dim=8)
    config = under_vllm(text)
    table = SpeechLLMModel(config).get_input_embeddings()
    ids = torch.tensor([[5, config.audio_token_id, 7]])
    assert config.audio_token_id == table.num_embeddings
    embedded = table(ids)
    torch.testing.assert_close(embedded[:, [0, 2]], table(ids[:, [0, 2]]))
    assert isinstance(table, torch.nn.Embedding) and type(table).__name__ in (
        "Embedding",
        "Gemma3TextScaledWordEmbedding",
    )


def test_vllm_is_not_told_to_leave_out_the_head(vllm_attention):
    """It has a head of its own, and loads those weights that the base model does not call unexpected."""
    assert "lm_head" in SpeechLLMModel._keys_to_ignore_on_load_unexpected[0]
    assert not SpeechLLMModel(under_vllm())._keys_to_ignore_on_load_unexpected


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"connector": {"type": "ctc_compress", "vocabulary": 8, "hidden_size": 16, "heads": 2, "ffn_size": 16}},
            "connector ctc_compress leaves audio tokens out.*which vLLM cannot. Serve this model with `speechllm",
        ),
        (
            {"text": GraniteConfig(**SMALL, logits_scaling=8.0)},
            "changes its logits by logits_scaling.*Install speechllm beside vLLM",
        ),
    ],
    ids=["places left out", "scaled logits"],
)
def test_what_vllm_would_lose_in_silence_is_refused(vllm_attention, settings, message):
    config = under_vllm(**settings)
    with pytest.raises(ValueError, match=message):
        SpeechLLMModel(config)


def test_trained_parts_alone_are_refused_under_vllm(vllm_attention):
    config = under_vllm()
    config.trained_groups = ["connector"]
    with pytest.raises(ValueError, match="trained parts alone .connector., and vLLM does not .* speechllm export"):
        SpeechLLMModel(config)


# --- The plugin, on stand-ins for the parts of vLLM that it extends ---


class BackendModel:
    """Stands for the backend's model: keeps its config, and gives logits."""

    def __init__(self, *, vllm_config, prefix=""):
        self.config = vllm_config.model_config.hf_config
        self.model = SpeechLLMModel(self.config)

    def compute_logits(self, hidden_states):
        return hidden_states


class BackendInfo:
    """Stands for what the backend knows of a model."""

    def __init__(self, processor, max_model_len):
        self.processor = processor
        self.ctx = SimpleNamespace(model_config=SimpleNamespace(max_model_len=max_model_len))

    def get_hf_processor(self):
        return self.processor

    def _get_audio_sampling_rate(self):
        return 16000.0


class BackendPart:
    """Stands for the backend's makers of dummy inputs and of a model's inputs."""

    def __init__(self, info):
        self.info = info

    def _get_dummy_audios(self, length, num_audios, overrides):
        return [np.zeros(length)] * num_audios

    def _get_modality_field_names(self, modality):
        return {"audio_embeds"}

    def _apply_hf_processor_main(self, mm_items, hf_kwargs):
        try:
            return self.info.processor(text="<|audio|>", audio=mm_items, **hf_kwargs)
        except ValueError as error:
            raise ValueError(f"Failed on {mm_items}") from error


@pytest.fixture
def plugin(monkeypatch):
    """The plugin's module, and what was registered."""
    registered = {}
    registry = SimpleNamespace(register_processor=lambda *args, **kwargs: lambda cls: cls)
    contents = {
        "vllm": {"ModelRegistry": SimpleNamespace(register_model=registered.__setitem__)},
        "vllm.model_executor.models.transformers": {"TransformersMultiModalForCausalLM": BackendModel},
        "vllm.model_executor.models.transformers.multimodal": {
            "MultiModalProcessingInfo": BackendInfo,
            "MultiModalDummyInputsBuilder": BackendPart,
            "MultiModalProcessor": BackendPart,
        },
        "vllm.model_executor.layers.linear": {"LinearBase": torch.nn.Linear},
        "vllm.multimodal": {"MULTIMODAL_REGISTRY": registry},
        "vllm.model_executor": {},
        "vllm.model_executor.layers": {},
        "vllm.model_executor.models": {},
    }
    for name, values in contents.items():
        module = ModuleType(name)
        vars(module).update(values)
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.delitem(sys.modules, "speechllm.serving.vllm_model", raising=False)
    yield importlib.import_module("speechllm.serving.vllm_model"), registered
    monkeypatch.delitem(sys.modules, "speechllm.serving.vllm_model", raising=False)


def test_vllm_finds_the_plugin_and_the_plugin_names_the_class(plugin):
    pyproject = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text(encoding="utf-8"))
    (point,) = [
        metadata.EntryPoint(name, value, "vllm.general_plugins")
        for name, value in pyproject["project"]["entry-points"]["vllm.general_plugins"].items()
    ]
    module, registered = plugin
    for _ in range(2):  # vLLM calls it in each of its processes, and may do so twice
        point.load()()
    assert registered == {"SpeechLLMForConditionalGeneration": "speechllm.serving.vllm_model:SpeechLLMForVLLM"}
    assert module.SpeechLLMForVLLM.get_placeholder_str("audio", 1) == "<|audio|>"


@pytest.mark.parametrize(("max_model_len", "tokens"), [(10**6, 384), (100, 100)])
def test_the_longest_audio_is_what_processor_and_server_take(plugin, max_model_len, tokens):
    """384 of the tiny LLM's 512 positions are left for audio."""
    module, _ = plugin
    _, processor = parts("whisper")
    info = module.ProcessingInfo(processor, max_model_len)
    assert info.get_max_audio_tokens() == tokens == processor.audio_token_count(info.longest_audio)
    assert processor.audio_token_count(info.longest_audio + 1) > tokens
    audios = module.DummyInputs(info).get_dummy_mm_data(0, {"audio": 2}, {})["audio"]
    assert [len(audio) for audio in audios] == [info.longest_audio] * 2 and all(audio.all() for audio in audios)


def test_the_plugin_s_processor_speaks_in_our_own_words(plugin):
    module, _ = plugin
    _, processor = parts("wav2vec2-layer-norm")
    made = module.Processor(module.ProcessingInfo(processor, 512))
    assert {"input_features", "input_features_mask"} <= made._get_modality_field_names("audio")
    with pytest.raises(ValueError, match="^audio array of shape .3,.: 3 samples .* shorter than one encoder frame"):
        made._apply_hf_processor_main([np.ones(3, dtype="float32")], {"sampling_rate": 16000})
    with pytest.raises(ValueError, match="^Failed on"):
        made._apply_hf_processor_main([noise(0.5)] * 2, {"sampling_rate": 16000})


def vllm_config(text=None, connector=None, is_moe=False, lora_config=None):
    config = tiny_speechllm(text=text, connector=connector, audio_token_id=3).config
    return SimpleNamespace(model_config=SimpleNamespace(hf_config=config, is_moe=is_moe), lora_config=lora_config)


def test_granite_s_divisor_becomes_the_factor_that_vllm_reads_once(plugin):
    module, _ = plugin
    config = vllm_config(GraniteConfig(**SMALL, logits_scaling=8.0))
    for _ in range(2):
        module.SpeechLLMForVLLM(vllm_config=config)
        text = config.model_config.hf_config.text_config
        assert (text.logit_scale, text.logits_scaling) == (0.125, 1)


@pytest.mark.parametrize("connector", [{"type": "conv", "convolutions": 2}, None])
def test_vllm_s_linear_layers_get_no_transposed_frames(plugin, connector):
    module, _ = plugin
    config = vllm_config(connector=connector)
    served = module.SpeechLLMForVLLM(vllm_config=config)
    seen = []
    for layer in served.model.multi_modal_projector.modules():
        if isinstance(layer, torch.nn.Linear):
            layer.register_forward_pre_hook(lambda layer, inputs: seen.append(inputs[0].is_contiguous()))
    served.model.get_audio_features(torch.randn(1, 8, 40))
    assert len(seen) == 2 and all(seen)


def test_the_placeholder_is_never_answered(plugin):
    module, _ = plugin
    logits = module.SpeechLLMForVLLM(vllm_config=vllm_config()).compute_logits(torch.ones(2, 64))
    assert torch.isneginf(logits[:, 3]).all() and (logits.isfinite().sum(-1) == 63).all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"is_moe": True}, "mixture of experts .llama.*`speechllm serve`"),
        ({"lora_config": object()}, "Adapters apart.*speechllm export FOLDER OUT --merge"),
    ],
)
def test_what_the_plugin_does_not_serve_is_refused(plugin, settings, message):
    module, _ = plugin
    with pytest.raises(ValueError, match=message):
        module.SpeechLLMForVLLM(vllm_config=vllm_config(**settings))
