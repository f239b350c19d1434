"""Merging, batches, generation, gradients, data types."""

import runpy

import pytest
import torch
from conftest import (
    AUDIO_CONFIGS,
    VOCABULARY,
    enable_checkpointing,
    positions,
    random_audio,
    text_config,
    tiny_speechllm,
)
from torch.nn import functional as F
from transformers import DynamicCache

from modeling_speechllm import older_transformers
from modeling_speechllm.modeling_speechllm import CACHE

CLOSE = {"rtol": 0, "atol": 2e-5}


def prompt(model, lengths, text=(5, 6), tail=(7, 8)):
    """Ids of one prompt: text, then each audio's placeholders followed by a separator, then the tail."""
    from modeling_speechllm import output_length

    ids = list(text)
    for length in lengths:
        frames = output_length(length, model.config.audio_stages)
        ids += [model.config.audio_token_id] * output_length(frames, model.config.connector_stages) + [9]
    return ids + list(tail)


def pad(prompts, side, extra=0):
    size = max(map(len, prompts)) + extra
    ids = [[0] * (size - len(p)) + p if side == "left" else p + [0] * (size - len(p)) for p in prompts]
    mask = [
        [0] * (size - len(p)) + [1] * len(p) if side == "left" else [1] * len(p) + [0] * (size - len(p))
        for p in prompts
    ]
    return torch.tensor(ids), torch.tensor(mask)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("audio", AUDIO_CONFIGS)
def test_a_batch_equals_its_members_alone(audio, side):
    """0 to 4 audios per prompt, text padded on either side, features padded with rubbish."""
    model = tiny_speechllm(audio)
    per_prompt = [positions(audio, *counts) for counts in ([9], [], [3, 50], [12, 1, 30, 22])]
    prompts = [prompt(model, lengths) for lengths in per_prompt]
    features, features_mask = random_audio(model, sum(per_prompt, []))
    padded, padded_mask = F.pad(features, (0, 37), value=5.0), F.pad(features_mask, (0, 37))
    input_ids, attention_mask = pad(prompts, side, extra=3)
    position_ids = (attention_mask.cumsum(-1) - 1).clamp(min=0)
    batch = model(
        input_ids=input_ids,
        attention_mask=attention_mask,
        position_ids=position_ids,
        input_features=padded,
        input_features_mask=padded_mask,
    ).logits
    row = 0
    for number, (ids, lengths) in enumerate(zip(prompts, per_prompt, strict=True)):
        own = {}
        if lengths:
            own = {
                "input_features": features[row : row + len(lengths), ..., : max(lengths)],
                "input_features_mask": features_mask[row : row + len(lengths), : max(lengths)],
            }
        row += len(lengths)
        alone = model(input_ids=torch.tensor([ids]), **own).logits[0]
        torch.testing.assert_close(batch[number][attention_mask[number].bool()], alone, **CLOSE)


def test_ids_and_embeddings_give_the_same(model):
    features, mask = random_audio(model, [11, 26])
    input_ids = torch.tensor([prompt(model, [11, 26])])
    expected = model(input_ids=input_ids, input_features=features, input_features_mask=mask).logits
    embeds = model.get_input_embeddings()(input_ids.masked_fill(input_ids == VOCABULARY, 0))
    both = model(input_ids=input_ids, inputs_embeds=embeds, input_features=features, input_features_mask=mask)
    assert torch.equal(both.logits, expected)
    with pytest.raises(ValueError, match="no row in the LLM's embedding table.*Pass input_ids together"):
        model(inputs_embeds=embeds, input_features=features, input_features_mask=mask)

    inside = tiny_speechllm(audio_token_id=3)  # a placeholder with a row of its own is found by its embedding
    input_ids = torch.tensor([prompt(inside, [11, 26])])
    expected = inside(input_ids=input_ids, input_features=features, input_features_mask=mask).logits
    embeds = inside.get_input_embeddings()(input_ids)
    logits = inside(inputs_embeds=embeds, input_features=features, input_features_mask=mask).logits
    assert torch.equal(logits, expected)


@pytest.mark.parametrize("name", ["cache", "past_key_values"])
def test_the_cache_is_taken_by_its_name_in_every_transformers(model, name):
    input_ids = torch.tensor([[5, 7, 9, 11]])
    whole = model(input_ids=input_ids).logits
    for part in (model, model.model):
        first = part(input_ids=input_ids[:, :3], use_cache=True)
        second = part(input_ids=input_ids[:, 3:], **{name: first[CACHE]})
        assert second[CACHE].get_seq_length() == 4
    second = model(input_ids=input_ids[:, 3:], **{name: model(input_ids=input_ids[:, :3], use_cache=True)[CACHE]})
    torch.testing.assert_close(second.logits, whole[:, 3:])

    settings = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    cache = DynamicCache(config=model.config.text_config)
    assert torch.equal(model.generate(input_ids, **{name: cache}, **settings), model.generate(input_ids, **settings))
    assert cache.get_seq_length() >= input_ids.shape[1]


def test_a_mismatch_states_both_counts(model):
    features, mask = random_audio(model, [16])
    with pytest.raises(ValueError, match=r"prompt has 3 audio placeholders, 1 audio\(s\) give 2 audio tokens"):
        model(input_ids=torch.tensor([[5, 64, 64, 64]]), input_features=features, input_features_mask=mask)
    with pytest.raises(ValueError, match="3 audio placeholders but no input_features"):
        model(input_ids=torch.tensor([[5, 64, 64, 64]]))
    with pytest.raises(ValueError, match="neither input_ids nor inputs_embeds"):
        model()


@pytest.mark.parametrize("settings", [{"num_beams": 3, "num_return_sequences": 2}, {"num_return_sequences": 1}])
def test_beams_with_several_audios_per_prompt_equal_single_prompts(settings):
    model = tiny_speechllm()
    per_prompt = [[9, 30], [14], [3, 8, 21]]
    features, mask = random_audio(model, sum(per_prompt, []))
    input_ids, attention_mask = pad([prompt(model, lengths) for lengths in per_prompt], "left")
    settings = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "eos_token_id": None} | settings
    batch = model.generate(
        input_ids=input_ids,
        attention_mask=attention_mask,
        input_features=features,
        input_features_mask=mask,
        **settings,
    )
    copies, row = settings["num_return_sequences"], 0
    assert torch.equal(batch[:, : input_ids.shape[1]], input_ids.repeat_interleave(copies, dim=0))
    for number, lengths in enumerate(per_prompt):
        own = slice(row, row + len(lengths))
        alone = model.generate(
            input_ids=torch.tensor([prompt(model, lengths)]),
            input_features=features[own],
            input_features_mask=mask[own],
            **settings,
        )
        assert torch.equal(batch[number * copies : (number + 1) * copies, -6:], alone[:, -6:])
        row += len(lengths)


def test_generation_from_embeddings_gives_the_new_tokens_only(model):
    features, mask = random_audio(model, [16])
    input_ids = torch.tensor([prompt(model, [16])])
    audio = {"input_features": features, "input_features_mask": mask, "max_new_tokens": 5, "do_sample": False}
    full = model.generate(input_ids=input_ids, **audio)
    embeds, _ = model.model.get_inputs_embeds(input_ids, None, features, mask)
    assert torch.equal(model.generate(inputs_embeds=embeds, max_new_tokens=5, do_sample=False), full[:, -5:])


def test_generation_matches_a_loop_of_forwards(model):
    features, mask = random_audio(model, [16, 23])
    input_ids = torch.tensor([prompt(model, [16, 23])])
    generated = model.generate(
        input_ids=input_ids,
        input_features=features,
        input_features_mask=mask,
        max_new_tokens=6,
        do_sample=False,
        eos_token_id=None,
        repetition_penalty=1.0,
    )
    for _ in range(6):
        logits = model(input_ids=input_ids, input_features=features, input_features_mask=mask).logits
        input_ids = torch.cat([input_ids, logits[:, -1:].argmax(-1)], dim=1)
    assert torch.equal(generated, input_ids)


def test_an_id_beyond_the_embeddings_is_refused(model):
    """Unlike a placeholder's, it would be read as another token."""
    beyond = torch.tensor([[1, model.config.text_config.vocab_size + 5, 2]])
    with pytest.raises(ValueError, match="token id .*embedding table has .*resize_token_embeddings"):
        model(beyond)
    with pytest.raises(ValueError, match="token id"):
        model.generate(beyond, max_new_tokens=1)


def test_logit_processors_cope_with_a_placeholder_outside_the_vocabulary(model):
    features, mask = random_audio(model, [16])
    input_ids = torch.tensor([prompt(model, [16])])
    audio = {"input_features": features, "input_features_mask": mask, "max_new_tokens": 4}
    plain = model.generate(input_ids=input_ids, do_sample=False, repetition_penalty=1.3, **audio)
    assert torch.equal(plain[:, : input_ids.shape[1]], input_ids)
    as_dict = model.generate(
        input_ids=input_ids, do_sample=False, repetition_penalty=1.3, return_dict_in_generate=True, **audio
    )
    assert torch.equal(as_dict.sequences, plain)


def test_logits_to_keep(model):
    input_ids = torch.tensor([[5, 6, 7, 8], [9, 10, 11, 12]])
    full = model(input_ids=input_ids).logits
    assert torch.equal(model(input_ids=input_ids, logits_to_keep=2).logits, full[:, -2:])
    mask = torch.tensor([[True, False, True, False], [False, False, False, True]])
    torch.testing.assert_close(model(input_ids=input_ids, logits_to_keep=mask).logits, full[mask], **CLOSE)


@pytest.mark.parametrize(
    "keep", [0, 2, torch.tensor([1, 4]), torch.tensor([[0, 1], [2, 3], [4, 4]]), torch.eye(3, 5) > 0]
)
def test_older_transformers_keep_the_same_logits(keep, monkeypatch):
    monkeypatch.delattr("transformers.configuration_utils.SubConfigSpec", raising=False)
    ours = runpy.run_path(older_transformers.__file__)
    assert ours["SubConfigSpec"] is None
    hidden = torch.randn(3, 5, 2)
    kept = ours["slice_logits_to_keep"](hidden, keep)
    assert torch.equal(kept, older_transformers.slice_logits_to_keep(hidden, keep)) and kept.numel() > 0


def test_gradients_reach_the_connector_and_nothing_frozen(model):
    model.freeze("encoder", "llm")
    model.train()
    features, mask = random_audio(model, [16, 90])
    input_ids = torch.tensor([prompt(model, [16, 90])])
    model(
        input_ids=input_ids,
        labels=input_ids.masked_fill(input_ids == VOCABULARY, -100),
        input_features=features,
        input_features_mask=mask,
    ).loss.backward()
    for name, parameter in model.named_parameters():
        if "multi_modal_projector" in name:
            assert parameter.grad.abs().sum() > 0, name
        else:
            assert parameter.grad is None, name
    with pytest.raises(ValueError, match="No parameter group 'decoder'. Groups: encoder, connector, llm"):
        model.freeze("decoder")


@pytest.mark.parametrize(
    "audio", ["whisper", "wav2vec2-layer-norm", "wav2vec2-adapter", "w2v-bert", "seamless", "parakeet", "qwen2-audio"]
)
def test_gradient_checkpointing_changes_no_gradient(audio):
    gradients = []
    for checkpointing in (False, True):
        model = tiny_speechllm(audio)
        if checkpointing:
            enable_checkpointing(model)
        model.train()
        (length,) = positions(audio, 30)
        features, mask = random_audio(model, [length])
        input_ids = torch.tensor([prompt(model, [length])])
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        torch.manual_seed(0)
        model.model.audio_tower.encoder.eval()
        model(
            input_ids=input_ids,
            labels=input_ids.clamp(max=VOCABULARY - 1),
            input_features=features,
            input_features_mask=mask,
        ).loss.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys() and len(gradients[0]) > 20
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, **CLOSE)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_takes_float32_features(model, dtype, tmp_path):
    model.save_pretrained(tmp_path)
    half = type(model).from_pretrained(tmp_path, dtype=dtype)
    assert {parameter.dtype for parameter in half.parameters()} == {dtype}
    features, mask = random_audio(model, [16])
    input_ids = torch.tensor([prompt(model, [16])])
    logits = half(input_ids=input_ids, input_features=features, input_features_mask=mask).logits
    expected = model(input_ids=input_ids, input_features=features, input_features_mask=mask).logits
    assert logits.dtype == dtype
    error = (logits.float() - expected).abs().mean() / expected.abs().mean()
    assert error < (0.05 if dtype == torch.bfloat16 else 0.01)  # 8 and 11 bits of mantissa


def test_attention_backends_agree_and_can_differ_by_part(model, tmp_path):
    model.save_pretrained(tmp_path)
    features, mask = random_audio(model, [16, 40])
    input_ids = torch.tensor([prompt(model, [16, 40])])
    expected = model(input_ids=input_ids, input_features=features, input_features_mask=mask).logits
    mixed = type(model).from_pretrained(tmp_path, attn_implementation={"audio_config": "eager", "text_config": "sdpa"})
    assert mixed.config.audio_config._attn_implementation == "eager"
    assert mixed.config.text_config._attn_implementation == "sdpa"
    eager = type(model).from_pretrained(tmp_path, attn_implementation="eager")
    for other in (mixed, eager):
        logits = other(input_ids=input_ids, input_features=features, input_features_mask=mask).logits
        torch.testing.assert_close(logits, expected, **CLOSE)


def test_feature_api_is_flat_and_in_order(model):
    features, mask = random_audio(model, [16, 23])
    output = model.get_audio_features(features, mask)
    assert output.pooler_output.shape == (2 + 3, 32)
    first = model.get_audio_features(features[:1, :, :16]).pooler_output
    torch.testing.assert_close(output.pooler_output[:2], first, **CLOSE)
    assert model.get_encoder("audio") is model.model.audio_tower


def test_tied_embeddings_are_one_tensor(tmp_path):
    model = tiny_speechllm(text=text_config(tie_word_embeddings=True))
    assert model.lm_head.weight is model.get_input_embeddings().weight
    model.save_pretrained(tmp_path)
    reloaded = type(model).from_pretrained(tmp_path)
    assert reloaded.lm_head.weight is reloaded.get_input_embeddings().weight
    assert "lm_head" in reloaded._tp_plan
