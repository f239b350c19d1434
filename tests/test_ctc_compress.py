"""The connector that reads: runs and compression against loops, and an LLM for which blanks are not there."""

import pytest
import torch
from conftest import VOCABULARY, random_audio, text_config, tiny_speechllm
from transformers import DynamicCache, Lfm2Config, Mamba2Config

from modeling_speechllm.connectors import build_connector
from modeling_speechllm.ctc_compress import runs
from trainers.objectives.speech_inputs import connect, embed_prompts, read_prompts

SETTINGS = {"type": "ctc_compress", "vocabulary": 5, "hidden_size": 16, "heads": 2, "blocks": 1, "ffn_size": 24}


@torch.no_grad()
def vary(connector, frames, lengths):
    """Random weights, and a bias for which all classes are about equally often the best."""
    generator = torch.Generator().manual_seed(0)
    for parameter in connector.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.5)
    logits = connector.read(frames, lengths)[0]
    connector.head.bias -= logits.flatten(0, 1).mean(0)


@torch.no_grad()
def reader():
    """A SpeechLLM whose connector reads tokens and blanks in turn."""
    model = tiny_speechllm(connector=SETTINGS)
    connector = model.model.multi_modal_projector
    output = model.model.audio_tower(*random_audio(model, [34, 20]))
    vary(connector, output.last_hidden_state, output.lengths)
    connector.load_vocabulary(torch.tensor([3, 5, 8, 9, 12]), model.get_input_embeddings().weight)
    return model


def prompt(model, audio_tokens):
    """Ids with two, then three texts around each row's audio, padded on the left, and their mask."""
    size = max(audio_tokens) + 5
    rows = [[7, 4] + [VOCABULARY] * count + [6, 2, 11] for count in audio_tokens]
    ids = torch.tensor([[0] * (size - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (size - len(row)) + [1] * len(row) for row in rows])
    return ids, mask


def heard(model, features, features_mask):
    """Per audio the embeddings that the connector marks as read."""
    connected = model.get_audio_features(features, features_mask).connector
    rows = zip(connected.embeddings, connected.used, connected.lengths.tolist(), strict=True)
    return [row[:length][used[:length]] for row, used, length in rows], connected


def test_runs_are_what_greedy_ctc_reads():
    classes = torch.tensor([[2, 2, 4, 2, 1, 1, 0], [4, 3, 3, 4, 4, 3, 3], [4, 4, 4, 4, 4, 4, 4]])
    run, begins = runs(classes, torch.tensor([6, 7, 3]), blank=4)
    assert run.tolist() == [[0, 0, -1, 1, 2, 2, -1], [-1, 0, 0, -1, -1, 1, 1], [-1] * 7]
    assert begins.int().tolist() == [[1, 0, 0, 1, 1, 0, 0], [0, 1, 0, 0, 0, 1, 0], [0] * 7]


def test_a_run_becomes_the_mean_of_its_posterior_weighted_embeddings():
    frames = torch.randn(1, 60, 10, generator=torch.Generator().manual_seed(1))
    connector = build_connector(SETTINGS, 10, 12).eval()
    vary(connector, frames, torch.tensor([60]))
    with torch.no_grad():
        output = connector(frames, torch.tensor([60]))
        places = output.ctc_logits[0].softmax(-1)
    expected, before = [], None
    for posterior in places:
        best = int(posterior.argmax())
        if best != connector.blank:
            if best != before:
                expected.append([])
            expected[-1].append(posterior[:5] / posterior[:5].sum() @ connector.table.weight.detach())
        before = best
    assert 2 <= len(expected) < len(places)
    torch.testing.assert_close(
        output.embeddings[0][output.used[0]], torch.stack([torch.stack(row).mean(0) for row in expected])
    )


def test_other_number_of_tokens_than_classes_is_refused():
    with pytest.raises(ValueError, match="3 tokens for vocabulary=5"):
        build_connector(SETTINGS, 10, 12).load_vocabulary(torch.arange(3), torch.randn(9, 12))


@torch.no_grad()
def test_the_llm_reads_what_was_read_as_if_the_blanks_were_not_there():
    model = reader()
    features, features_mask = random_audio(model, [34, 20])
    rows, connected = heard(model, features, features_mask)
    assert all(0 < len(row) < length for row, length in zip(rows, connected.lengths.tolist(), strict=True))
    ids, mask = prompt(model, connected.lengths.tolist())
    inputs = {
        "input_ids": ids,
        "attention_mask": mask,
        "input_features": features,
        "input_features_mask": features_mask,
    }
    logits = model(**inputs).logits[:, -1]
    generated = model.generate(**inputs, max_new_tokens=4, do_sample=False, eos_token_id=None)[:, ids.shape[1] :]
    for row, embeddings in enumerate(rows):
        text = model.get_input_embeddings().weight
        alone = torch.cat([text[[7, 4]], embeddings, text[[6, 2, 11]]])[None]
        torch.testing.assert_close(model(inputs_embeds=alone).logits[0, -1], logits[row], rtol=0, atol=2e-5)
        expected = model.generate(inputs_embeds=alone, max_new_tokens=4, do_sample=False, eos_token_id=None)
        assert expected[0].tolist() == generated[row].tolist()


@torch.no_grad()
def test_trainers_give_the_llm_the_same():
    model = reader()
    features, features_mask = random_audio(model, [34, 20])
    lengths = model.get_audio_features(features, features_mask).connector.lengths.tolist()
    ids, mask = prompt(model, lengths)
    batch = {
        "input_ids": ids,
        "attention_mask": mask,
        "input_features": features,
        "input_features_mask": features_mask,
    }
    whole = batch | {"dummy_audio": False, "language": None}
    inputs = embed_prompts(model, whole, connect(model, whole))
    hidden = model.model.language_model(**inputs).last_hidden_state
    torch.testing.assert_close(hidden[:, -1], model.model(**batch).last_hidden_state[:, -1], rtol=0, atol=2e-5)
    sizes = sizes_read(model)
    closed_up, attended = read_prompts(model, inputs), inputs["attention_mask"].bool()
    assert sizes == [int(attended.sum(1).max())] and sizes[0] < ids.shape[1]
    torch.testing.assert_close(closed_up[attended], hidden[attended], rtol=0, atol=2e-5)


def sizes_read(model):
    """A list that grows by how many places the LLM reads, pass by pass."""
    sizes = []

    def note(module, args, kwargs):
        sizes.append(kwargs["inputs_embeds"].shape[1])

    model.model.language_model.register_forward_pre_hook(note, with_kwargs=True)
    return sizes


def test_gradients_are_those_of_a_prompt_that_is_not_closed_up():
    model = reader()
    features, features_mask = random_audio(model, [34, 20])
    lengths = model.get_audio_features(features, features_mask).connector.lengths.tolist()
    ids, mask = prompt(model, lengths)
    batch = {"input_ids": ids, "attention_mask": mask, "dummy_audio": False, "language": None}
    batch |= {"input_features": features, "input_features_mask": features_mask}
    table, grads = model.model.multi_modal_projector.table.weight, []
    for read in (read_prompts, lambda model, inputs: model.model.language_model(**inputs).last_hidden_state):
        inputs = embed_prompts(model, batch, connect(model, batch))
        hidden = read(model, inputs)
        (hidden[:, -3:].sin().sum() + hidden[1, :4].cos().sum() * 0).backward()
        grads.append(table.grad.clone())
        table.grad = None
    assert grads[0].abs().sum() > 0
    torch.testing.assert_close(*grads, rtol=1e-4, atol=1e-6)


@torch.no_grad()
def test_generation_reads_no_more_places_than_tokens_were_read():
    model = reader()
    features, features_mask = random_audio(model, [34, 20])
    rows, connected = heard(model, features, features_mask)
    ids, mask = prompt(model, connected.lengths.tolist())
    sizes = sizes_read(model)
    found = model.generate(
        input_ids=ids,
        attention_mask=mask,
        input_features=features,
        input_features_mask=features_mask,
        **GREEDY,
        return_dict_in_generate=True,
    )
    assert sizes == [max(map(len, rows)) + 5] + [1] * 7
    assert torch.equal(found.sequences[:, : ids.shape[1]], ids)
    sizes.clear()
    model.generate(
        input_ids=ids,
        attention_mask=mask,
        input_features=features,
        input_features_mask=features_mask,
        **GREEDY | {"max_new_tokens": 1},
        return_dict_in_generate=True,
        output_hidden_states=True,
    )
    assert sizes == [ids.shape[1]]  # the states of each place were asked for


@torch.no_grad()
def test_where_nothing_is_read_nothing_is_heard():
    model = reader()
    model.model.multi_modal_projector.head.bias[-1] = 1e4
    features, features_mask = random_audio(model, [34])
    rows, connected = heard(model, features, features_mask)
    assert len(rows[0]) == 0
    ids, mask = prompt(model, connected.lengths.tolist())
    logits = model(
        input_ids=ids, attention_mask=mask, input_features=features, input_features_mask=features_mask
    ).logits
    silent = model(input_ids=torch.tensor([[7, 4, 6, 2, 11]])).logits
    torch.testing.assert_close(logits[0, -1], silent[0, -1], rtol=0, atol=2e-5)


@torch.no_grad()
def test_classes_and_tokens_name_each_other():
    model = reader()
    connector = model.model.multi_modal_projector
    connector.load_vocabulary(torch.tensor([12, 3, 9, 8, 5]), model.get_input_embeddings().weight)
    assert connector.classes_of(torch.tensor([[3, 12, 4], [5, 0, 20]])).tolist() == [[1, 0, -1], [4, -1, -1]]
    model.config.text_config.pad_token_id = 1
    features, features_mask = random_audio(model, [34])
    output = model.model.get_ctc_logits(features, features_mask)
    classes = output.connector.ctc_logits[0]
    for column, token in enumerate([12, 3, 9, 8, 5, 1]):
        assert torch.equal(output.logits[0, :, token], classes[:, column])
    assert torch.isneginf(output.logits[0]).sum(1).tolist() == [VOCABULARY - 6] * len(classes)


# --- Generating: the blanks are not there in any way of it ---

GREEDY = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
MODES = {
    "greedy": {},
    "beams": {"num_beams": 3, "num_return_sequences": 2},
    "no cache": {"use_cache": False},
    "static cache": {"cache_implementation": "static", "disable_compile": True},
}


def without_blanks(model, rows, features, features_mask):
    """Embeddings `(1, tokens, dim)` of each row of ids, those of the audio only where it was read."""
    heard_rows = iter(torch.cat(heard(model, features[number : number + 1], features_mask[number : number + 1])[0])
                      for number in range(len(features)))  # fmt: skip
    prompts = []
    for row in rows:
        parts = []
        for place, token in enumerate(row):
            if token != VOCABULARY:
                parts.append(model.model.embed_text(torch.tensor([token])))
            elif row[place - 1] != VOCABULARY:
                parts.append(next(heard_rows))
        prompts.append(torch.cat(parts)[None])
    return prompts


@torch.no_grad()
@pytest.mark.parametrize("mode", MODES)
def test_each_way_of_generating_hears_what_was_read_alone(mode):
    """Two audios and one in a batch that is padded on the left."""
    model = reader()
    features, features_mask = random_audio(model, [34, 20, 38])
    lengths = heard(model, features, features_mask)[1].lengths.tolist()
    rows = [[7, 4], [9]]
    for row, counts in zip(rows, (lengths[:2], lengths[2:]), strict=True):
        for count in counts:
            row += [VOCABULARY] * count + [6, 11]
    size = max(map(len, rows))
    ids = torch.tensor([[0] * (size - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (size - len(row)) + [1] * len(row) for row in rows])
    audio = {"input_features": features, "input_features_mask": features_mask}
    found = model.generate(input_ids=ids, attention_mask=mask, **audio, **GREEDY | MODES[mode])[:, size:]
    beams = {name: MODES[mode][name] for name in ("num_beams", "num_return_sequences") if name in MODES[mode]}
    expected = [
        model.generate(inputs_embeds=embedded, **GREEDY, **beams)
        for embedded in without_blanks(model, rows, features, features_mask)
    ]
    assert torch.equal(found, torch.cat(expected))


@torch.no_grad()
def test_prompt_lookup_hears_what_was_read_alone():
    model = reader()
    features, features_mask = random_audio(model, [34])
    ids, mask = prompt(model, heard(model, features, features_mask)[1].lengths.tolist())
    inputs = {"input_ids": ids, "attention_mask": mask}
    inputs |= {"input_features": features, "input_features_mask": features_mask}
    found = model.generate(**inputs, **GREEDY, prompt_lookup_num_tokens=3)
    assert torch.equal(found, model.generate(**inputs, **GREEDY))


@torch.no_grad()
@pytest.mark.parametrize("tail", ["text", "audio"])
def test_a_cache_of_earlier_turns_is_refused(tail):
    model = reader()
    features, features_mask = random_audio(model, [34])
    ids, _ = prompt(model, heard(model, features, features_mask)[1].lengths.tolist())
    audio = {"input_features": features, "input_features_mask": features_mask}
    cache = DynamicCache(config=model.config.text_config)
    start = model.generate(input_ids=ids, **audio, **GREEDY, past_key_values=cache)
    turn = ids if tail == "audio" else torch.tensor([[9]])
    whole = torch.cat([start, turn], dim=1)
    with pytest.raises(ValueError, match="a cache does not tell .* ctc_compress, left out. Leave .* out, and pass"):
        model.generate(input_ids=whole, **audio if tail == "audio" else {}, **GREEDY, past_key_values=cache)
    if tail == "audio":
        with pytest.raises(ValueError, match="which cannot be told beside a cache that holds tokens"):
            model(input_ids=turn, **audio, past_key_values=cache)


@torch.no_grad()
def test_a_cache_of_text_alone_goes_on():
    model = reader()
    cache = DynamicCache(config=model.config.text_config)
    start = model.generate(torch.tensor([[7, 4]]), **GREEDY, past_key_values=cache)
    ids = torch.cat([start, torch.tensor([[9, 6]])], dim=1)
    assert torch.equal(model.generate(ids, **GREEDY, past_key_values=cache), model.generate(ids, **GREEDY))


@torch.no_grad()
def test_audio_embeds_that_do_not_tell_are_refused():
    model = reader()
    audio = model.get_audio_features(*random_audio(model, [34])).pooler_output
    with pytest.raises(ValueError, match="audio_embeds do not tell which audio tokens .* Pass input_features"):
        model.generate(input_ids=prompt(model, [len(audio)])[0], audio_embeds=audio, **GREEDY)


SMALL = {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2}
WITH_STATE = {
    "convolutions": Lfm2Config(
        **SMALL,
        intermediate_size=64,
        num_attention_heads=4,
        num_key_value_heads=2,
        layer_types=["conv", "full_attention"],
    ),
    "states": Mamba2Config(**SMALL, state_size=4, num_heads=4, head_dim=16, n_groups=1),
}


@pytest.mark.parametrize("kind", WITH_STATE)
def test_an_llm_that_does_not_read_by_attention_alone_is_refused(kind):
    with pytest.raises(ValueError, match="'ctc_compress' leaves audio tokens out .* has layers with a state or conv"):
        tiny_speechllm(text=WITH_STATE[kind], connector=SETTINGS)
    tiny_speechllm(text=WITH_STATE[kind])
    tiny_speechllm(text=text_config(), connector=SETTINGS)
