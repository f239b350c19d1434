"""Every way of generating, against greedy search: the same tokens, or a ValueError that says why not."""

import pytest
import torch
from conftest import VOCABULARY, random_audio, text_config, tiny_speechllm
from test_modeling import pad, prompt
from transformers import (
    AutoModelForCausalLM,
    DynamicCache,
    LogitsProcessor,
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
)
from transformers.generation.streamers import BaseStreamer

from modeling_speechllm.generation import PlaceholdersAside

GREEDY = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}


def ask(model, *lengths, text=(5, 6), tail=(7, 8)):
    features, mask = random_audio(model, list(lengths))
    input_ids = torch.tensor([prompt(model, list(lengths), text, tail)])
    return {"input_ids": input_ids, "input_features": features, "input_features_mask": mask}


def by_hand(model, inputs, count=8, penalty=1.0):
    """Greedy search by forwards without a cache; `penalty` on every token of the prompt but placeholders."""
    ids = inputs["input_ids"]
    audio = {name: value for name, value in inputs.items() if name != "input_ids"}
    for _ in range(count):
        logits = model(input_ids=ids, **audio).logits[:, -1]
        seen = ids[ids < VOCABULARY].unique()
        seen = seen[seen != model.config.audio_token_id]
        logits[:, model.config.audio_token_id :][:, : VOCABULARY > model.config.audio_token_id] = -torch.inf
        logits[:, seen] = torch.where(logits[:, seen] < 0, logits[:, seen] * penalty, logits[:, seen] / penalty)
        ids = torch.cat([ids, logits.argmax(-1, keepdim=True)], dim=1)
    return ids


@pytest.fixture(params=["outside", "inside"])
def model(request):
    """The placeholder lies outside of the LLM's embeddings, or has a row there."""
    return tiny_speechllm(audio_token_id=VOCABULARY if request.param == "outside" else 11)


MODES = {
    "no cache": {"use_cache": False},
    "static cache": {"cache_implementation": "static", "disable_compile": True},
    "prompt lookup": {"prompt_lookup_num_tokens": 3},
    "one beam of two": {"num_beams": 1, "num_return_sequences": 1},
    "dict": {"return_dict_in_generate": True, "output_scores": True},
    "min new tokens": {"min_new_tokens": 8},
}


@pytest.mark.parametrize("mode", MODES)
def test_a_mode_gives_greedy_tokens(model, mode):
    inputs = ask(model, 16, 90)
    found = model.generate(**inputs, **GREEDY | MODES[mode])
    found = found if isinstance(found, torch.Tensor) else found.sequences
    assert torch.equal(found, by_hand(model, inputs))


def test_prompt_lookup_proposes_no_placeholder(model, monkeypatch):
    """The last words of the prompt stand before its audio too, so that what follows is looked up there."""
    inputs = ask(model, 16, text=(7, 8), tail=(7, 8))
    seen = []
    forward = type(model.model).forward

    def spy(self, *args, **kwargs):
        seen.append(kwargs["input_ids"])
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(type(model.model), "forward", spy)
    found = model.generate(**inputs, **GREEDY, prompt_lookup_num_tokens=4)
    monkeypatch.undo()
    assert torch.equal(found, by_hand(model, inputs))
    placeholders = int((inputs["input_ids"] == model.config.audio_token_id).sum())
    assert [int((ids == model.config.audio_token_id).sum()) for ids in seen] == [placeholders] + [0] * (len(seen) - 1)


@pytest.mark.parametrize("assistant", ["itself", "another"])
def test_assisted_generation_hears(model, assistant):
    inputs = ask(model, 16, 40)
    token = model.config.audio_token_id
    helper = model if assistant == "itself" else tiny_speechllm(
        text=text_config(num_hidden_layers=1, hidden_size=16), audio_token_id=token
    )  # fmt: skip
    helper.generation_config.num_assistant_tokens = 3
    heard = []
    forward = type(helper.model).forward

    def spy(self, *args, **kwargs):
        heard.append((self is helper.model, kwargs.get("audio_embeds") is not None))
        return forward(self, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(helper.model), "forward", spy)
        found = model.generate(**inputs, **GREEDY, assistant_model=helper)
    assert torch.equal(found, by_hand(model, inputs))
    assert (True, True) in heard  # the assistant read the audio
    if assistant == "itself":  # and so proposed what was then said: few passes for eight tokens
        assert len(found[0]) - inputs["input_ids"].shape[1] == 8


@pytest.mark.parametrize("use_cache", [True, False])
def test_the_audio_is_encoded_once(use_cache):
    model = tiny_speechllm()
    calls = []
    model.model.audio_tower.register_forward_hook(lambda *call: calls.append(len(call[2].lengths)))
    inputs = ask(model, 16, 40)
    model.generate(**inputs, **GREEDY, num_beams=3, use_cache=use_cache)
    assert calls == [2]


@pytest.mark.parametrize("settings", [{"num_beams": 3}, {"num_beams": 3, "use_cache": False}, {"num_beams": 2}])
def test_beams_with_several_audios_are_those_of_single_prompts(model, settings):
    per_prompt = [[9, 30], [14], [3, 8, 21], []]
    features, mask = random_audio(model, sum(per_prompt, []))
    input_ids, attention_mask = pad([prompt(model, lengths) for lengths in per_prompt], "left")
    settings = GREEDY | settings | {"num_return_sequences": 2}
    batch = model.generate(
        input_ids=input_ids,
        attention_mask=attention_mask,
        input_features=features,
        input_features_mask=mask,
        **settings,
    )
    row = 0
    for number, lengths in enumerate(per_prompt):
        own = slice(row, row + len(lengths))
        audio = {"input_features": features[own], "input_features_mask": mask[own]} if lengths else {}
        alone = model.generate(input_ids=torch.tensor([prompt(model, lengths)]), **audio, **settings)
        assert torch.equal(batch[2 * number : 2 * number + 2, -8:], alone[:, -8:])
        row += len(lengths)


def test_a_repetition_penalty_leaves_placeholders_out(model):
    inputs = ask(model, 16)
    found = model.generate(**inputs, **GREEDY | {"max_new_tokens": 6}, repetition_penalty=1.7)
    assert torch.equal(found, by_hand(model, inputs, 6, penalty=1.7))
    # ... also where the end token is 0 and no padding token is named, which stand-ins once fell on
    model.generation_config.pad_token_id = model.generation_config.eos_token_id = None
    ended = model.generate(**inputs, max_new_tokens=6, do_sample=False, repetition_penalty=1.7, eos_token_id=0)
    assert torch.equal(ended, found[:, : ended.shape[1]])


class Seen(LogitsProcessor):
    def __init__(self):
        self.ids, self.shapes = [], []

    def __call__(self, input_ids, scores):
        self.ids.append(input_ids.clone())
        self.shapes.append(scores.shape)
        return scores


def test_no_processor_sees_a_placeholder(model):
    inputs = ask(model, 16)
    seen = Seen()
    settings = {
        **{"no_repeat_ngram_size": 2, "encoder_repetition_penalty": 1.2, "encoder_no_repeat_ngram_size": 2},
        **{"repetition_penalty": 1.2, "bad_words_ids": [[5]], "sequence_bias": [[[6, 7], 1.0]]},
    }
    processors = LogitsProcessorList([seen])
    model.generate(**inputs, **GREEDY, **settings, logits_processor=processors)
    ids = inputs["input_ids"]
    assert seen.ids[0].shape == ids.shape
    aside = ids == model.config.audio_token_id
    assert (seen.ids[0][aside] == VOCABULARY).all() and torch.equal(seen.ids[0][~aside], ids[~aside])
    for beams in ({"num_beams": 2}, {"prompt_lookup_num_tokens": 2}):
        model.generate(**inputs, **GREEDY, **settings, **beams)


def test_processors_change_scores_as_they_do_without_placeholders():
    scores, ids = torch.randn(2, 8), torch.tensor([[1, 9, 9, 3], [2, 2, 9, 9]])
    processor = RepetitionPenaltyLogitsProcessor(2.0)
    found = PlaceholdersAside(LogitsProcessorList([processor]), 9)(ids, scores)
    assert torch.equal(found[0], processor(ids[:1, [0, 3]], scores[:1])[0])
    assert torch.equal(found[1], processor(ids[1:, :2], scores[1:])[0])
    assert PlaceholdersAside(LogitsProcessorList(), 9)(ids, scores) is scores


class Words(BaseStreamer):
    def __init__(self):
        self.tokens = []

    def put(self, value):
        self.tokens += value.flatten().tolist()

    def end(self):
        self.tokens.append("end")


def test_a_streamer_gets_the_prompt_as_it_is(model):
    inputs = ask(model, 16)
    words = Words()
    found = model.generate(**inputs, **GREEDY, streamer=words)
    assert words.tokens == [*found[0].tolist(), "end"]


def test_sampling_is_that_of_the_same_seed_without_processors_of_its_own(model):
    inputs = ask(model, 16)
    settings = GREEDY | {"do_sample": True, "top_k": 20, "top_p": 0.9, "temperature": 1.3, "num_return_sequences": 3}
    torch.manual_seed(0)
    first = model.generate(**inputs, **settings)
    torch.manual_seed(0)
    assert torch.equal(model.generate(**inputs, **settings), first)
    assert (first[:, inputs["input_ids"].shape[1] :] < VOCABULARY).all()


@pytest.mark.parametrize("lengths", [(16,), ()])
def test_a_placeholder_is_never_said_whatever_sampling_keeps(lengths):
    """The placeholder, which has a row, is what the LLM would say: sampling keeps the best of the others."""
    model = tiny_speechllm(audio_token_id=11)
    shout = torch.nn.functional.one_hot(torch.tensor(11), VOCABULARY) * 1e4
    model.lm_head.register_forward_hook(lambda module, inputs, logits: logits + shout)
    inputs = ask(model, *lengths) if lengths else {"input_ids": torch.tensor([[5, 6, 7]])}
    found = [
        model.generate(**inputs, **GREEDY | settings)[0, inputs["input_ids"].shape[1] :].tolist()
        for settings in ({}, {"do_sample": True, "top_k": 1}, {"do_sample": True, "top_p": 1e-3}, {"use_cache": False})
    ]
    assert found == [found[0]] * 4 and 11 not in found[0]


def test_a_conversation_goes_on_from_its_cache(model):
    """A second turn with an audio of its own, after the cache of the first."""
    first = ask(model, 16)
    cache = DynamicCache(config=model.config.text_config)
    start = model.generate(**first, **GREEDY | {"max_new_tokens": 3}, past_key_values=cache)
    second = ask(model, 40, text=(), tail=(9,))
    ids = torch.cat([start, second["input_ids"]], dim=1)
    audio = {name: second[name] for name in ("input_features", "input_features_mask")}
    found = model.generate(input_ids=ids, **audio, **GREEDY, past_key_values=cache)
    features, mask = random_audio(model, [16, 40])
    features[:1, :, :16], features[1:] = first["input_features"], second["input_features"]
    whole = {"input_ids": ids, "input_features": features, "input_features_mask": mask}
    assert torch.equal(found, by_hand(model, whole))
    cache = DynamicCache(config=model.config.text_config)  # and with the audios of all turns, as a chat gives them
    model.generate(**first, **GREEDY | {"max_new_tokens": 3}, past_key_values=cache)
    assert torch.equal(model.generate(**whole, **GREEDY, past_key_values=cache), found)


# --- What cannot be had ---


def test_an_assistant_that_leaves_audio_tokens_out_is_refused():
    model = tiny_speechllm()
    compress = {"type": "ctc_compress", "vocabulary": 5, "hidden_size": 16, "heads": 2, "blocks": 1, "ffn_size": 24}
    with pytest.raises(ValueError, match="the assistant's connector, ctc_compress, leaves audio tokens out"):
        model.generate(**ask(model, 16), **GREEDY, assistant_model=tiny_speechllm(connector=compress))


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"prefill_chunk_size": 4}, "prefill_chunk_size cannot be had with audio: it cuts the prompt"),
        ({"guidance_scale": 1.5}, "guidance_scale cannot be had with audio: its second prompt has no audio"),
        ({"assistant_early_exit": 1}, "assistant_early_exit cannot be had with audio"),
        ({"assistant_model": "text"}, "the assistant, a LlamaForCausalLM, cannot hear. Give a smaller SpeechLLM"),
    ],
)
def test_what_cannot_be_had_is_refused(settings, reason):
    model = tiny_speechllm()
    if "assistant_model" in settings:
        settings = {"assistant_model": AutoModelForCausalLM.from_config(text_config())}
    inputs = ask(model, 16)
    with pytest.raises(ValueError, match=reason):
        model.generate(**inputs, **GREEDY, **settings)


@pytest.mark.parametrize("settings", [{"prompt_lookup_num_tokens": 2}, {"use_cache": False}])
def test_embeddings_are_read_once_or_refused(settings):
    model = tiny_speechllm()
    inputs = ask(model, 16)
    embeds = model.model.embed_text(inputs["input_ids"])
    with pytest.raises(ValueError, match="the prompt can be read once only. Pass input_ids and input_features"):
        model.generate(**inputs, inputs_embeds=embeds, **GREEDY, **settings)
    assert torch.equal(model.generate(**inputs, inputs_embeds=embeds, **GREEDY), by_hand(model, inputs))


def test_labels_over_placeholders_are_refused(model):
    inputs = ask(model, 16)
    token = model.config.audio_token_id
    with pytest.raises(ValueError, match=f"placeholders \\(id {token}\\) stand for no token.*-100 there"):
        model(**inputs, labels=inputs["input_ids"])
    assert model(**inputs, labels=inputs["input_ids"].masked_fill(inputs["input_ids"] == token, -100)).loss > 0


def test_text_alone_is_the_llm_in_every_mode():
    model = tiny_speechllm()
    ids = torch.tensor([[5, 6, 7, 5, 6]])
    expected = model.generate(ids, **GREEDY)
    settings = [{"use_cache": False}, {"prompt_lookup_num_tokens": 2}, {"prefill_chunk_size": 2}]
    settings.append({"assistant_model": model})
    for mode in settings:
        assert torch.equal(model.generate(ids, **GREEDY, **mode), expected), mode
