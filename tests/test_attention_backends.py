"""Attention without plans for each length: where it is chosen, and that the user's own choice stays."""

import pytest
import torch
from conftest import random_audio, tiny_speechllm
from factories_training import tiny_parts, tone_rows
from torch.nn.attention import SDPBackend, sdpa_kernel

from modeling_speechllm.attention_backends import attention_for_any_length
from trainers import SpeechImitationConfig, SpeechImitationTrainer
from trainers.cache.config import EncodeConfig
from trainers.cache.encode import encode_dataset


def enabled() -> bool:
    return torch.backends.cuda.cudnn_sdp_enabled()


@pytest.fixture(autouse=True)
def with_cudnn():
    before = enabled()
    torch.backends.cuda.enable_cudnn_sdp(True)
    yield
    torch.backends.cuda.enable_cudnn_sdp(before)


def test_it_is_off_inside_and_as_it_was_outside():
    with pytest.raises(KeyError), attention_for_any_length():
        assert not enabled()
        raise KeyError
    assert enabled()
    torch.backends.cuda.enable_cudnn_sdp(False)
    with attention_for_any_length():
        assert not enabled()
    assert not enabled()


def test_a_user_who_allows_cudnn_alone_gets_it():
    with sdpa_kernel(SDPBackend.CUDNN_ATTENTION), attention_for_any_length():
        assert enabled()


@pytest.mark.slow
def test_training_encoding_and_generation_plan_for_no_length(tmp_path):
    model, processor = tiny_parts()
    seen = []
    model.model.audio_tower.register_forward_pre_hook(lambda *_: seen.append(enabled()))
    settings = {"max_steps": 1, "use_cpu": True, "save_strategy": "no", "eval_strategy": "steps", "eval_steps": 1}
    args = SpeechImitationConfig(str(tmp_path / "run"), **settings)
    rows = tone_rows(2, answered=True)
    SpeechImitationTrainer(model, args, train_dataset=rows, eval_dataset=rows, processing_class=processor).train()
    encode_dataset(model, processor, rows, EncodeConfig(output_dir=str(tmp_path / "cache")))
    assert len(seen) >= 3 and not any(seen) and enabled()
    model = tiny_speechllm()
    model.model.audio_tower.register_forward_pre_hook(lambda *_: seen.append(enabled()))
    features, mask = random_audio(model, [40])
    count = int(model.get_audio_features(features, mask).connector.lengths)
    seen.clear()
    ids = torch.tensor([[7, *[model.config.audio_token_id] * count, 6]])
    model.generate(input_ids=ids, input_features=features, input_features_mask=mask, max_new_tokens=2)
    assert seen == [False] and enabled()
