"""The Whisper decoder as Q-Former, and the language query bank with its gate (DiVA, LAD)."""

import pytest
import torch
from conftest import random_audio, scatter_weights, text_config, tiny_speechllm, whisper_config
from transformers import WhisperForConditionalGeneration, WhisperModel

from modeling_speechllm import SpeechLLMForConditionalGeneration
from modeling_speechllm.configuration_connectors import QueryBankConfig, connector_config
from modeling_speechllm.query_bank import QueryBank, teacher_forcing_probability

CLOSE = {"rtol": 0, "atol": 2e-5}
LANGUAGES = ["en", "zh", "vi"]
QFORMER = {"type": "whisper_qformer", "queries": 4, "decoder_layers": 2, "heads": 2, "ffn_size": 32, "positions": 30}
LAD = QFORMER | {"languages": LANGUAGES, "gate": "attention", "gate_size": 8}


def bank(seed=0, **settings):
    config = QueryBankConfig(type="test", queries=4, languages=LANGUAGES, gate_size=8, **settings)
    torch.manual_seed(seed)
    module = QueryBank(config, query_size=6, audio_size=5)
    torch.nn.init.normal_(module.queries)
    return module


def frames(batch=4, seed=1):
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.tensor([9, 3, 1, 6][:batch])
    values = torch.randn(batch, 9, 5, generator=generator)
    return values * (torch.arange(9) < lengths[:, None])[..., None], lengths


@pytest.mark.parametrize("gate", ["conv", "attention"])
def test_straight_through(gate):
    """Forward is the picked entry, the gate's gradient that of the soft mixture."""
    hard, soft = bank(gate=gate, selection="hard"), bank(gate=gate, selection="soft")
    values, lengths = frames()
    target = torch.randn(4, 4, 6, generator=torch.Generator().manual_seed(2))
    queries, logits = hard(values, lengths)
    assert torch.equal(queries, hard.queries[logits.argmax(-1)])
    mixture, soft_logits = soft(values, lengths)
    assert torch.equal(soft_logits, logits)
    expected = sum(soft_logits.softmax(-1)[:, k, None, None] * soft.queries[k] for k in range(3))
    torch.testing.assert_close(mixture, expected, **CLOSE)
    (queries * target).sum().backward()
    (mixture * target).sum().backward()
    for (name, parameter), other in zip(hard.gate.named_parameters(), soft.gate.parameters(), strict=True):
        assert parameter.grad.abs().sum() > 0, name
        torch.testing.assert_close(parameter.grad, other.grad, msg=name, **CLOSE)


@pytest.mark.parametrize("labels", [[0], [0, 1, 2, 0, 1]])
def test_there_is_a_label_for_each_audio(labels):
    values, lengths = frames()
    with pytest.raises(
        ValueError, match=f"4 audios and language labels of shape .{len(labels)},.*one label per audio"
    ):
        bank(gate="conv").eval()(values, lengths, torch.tensor(labels))


@pytest.mark.parametrize("gate", ["conv", "attention"])
def test_the_gate_hears_valid_frames_only(gate):
    module = bank(gate=gate)
    values, lengths = frames()
    _, logits = module(values, lengths)
    for row in range(4):
        _, alone = module(values[row : row + 1, : lengths[row]], lengths[row : row + 1])
        torch.testing.assert_close(logits[row], alone[0], **CLOSE)


def test_teacher_forcing_schedule():
    schedule = [teacher_forcing_probability(step, 1000) for step in (0, 250, 500, 1000)]
    assert schedule == pytest.approx([1.0, 0.5, 0.0, 0.0])
    assert teacher_forcing_probability(125, 1000) == pytest.approx((1 + 2**-0.5) / 2)


def test_labels_replace_the_gate_as_often_as_the_schedule_says():
    module = bank(gate="attention", selection="hard").train()
    values, lengths = frames()
    gate_choice = module(values, lengths)[1].argmax(-1)
    label = (gate_choice + 1) % 3

    def picked(language):
        queries, _ = module(values, lengths, language)
        return (queries[:, None] == module.queries[None]).flatten(2).all(-1).long().argmax(-1)

    module.teacher_forcing = 1.0
    assert torch.equal(picked(label), label)
    unknown = torch.where(torch.arange(4) % 2 == 0, label, -1)
    assert torch.equal(picked(unknown), torch.where(unknown < 0, gate_choice, label))
    module.teacher_forcing = 0.0
    assert torch.equal(picked(label), gate_choice)
    module.teacher_forcing = 0.5
    torch.manual_seed(0)
    share = torch.stack([picked(label) == label for _ in range(250)]).float().mean()
    assert 0.45 < share < 0.55  # 1,000 fair coins, three standard deviations


@pytest.mark.parametrize("selection", ["hard", "soft"])
def test_a_hint_decides_in_evaluation(selection):
    module = bank(gate="conv", selection=selection).eval()
    values, lengths = frames()
    hint = torch.tensor([2, -1, 0, -1])
    hinted, logits = module(values, lengths, hint)
    free, _ = module(values, lengths)
    assert torch.equal(hinted[[0, 2]], module.queries[[2, 0]])
    torch.testing.assert_close(hinted[[1, 3]], free[[1, 3]], **CLOSE)
    with pytest.raises(ValueError, match=r"labels must be from 0 to 2, or -1 for unknown, not \[3, 0, 0, 0\]"):
        module(values, lengths, torch.tensor([3, 0, 0, 0]))


def test_one_entry_without_a_gate_is_diva(tmp_path):
    """On a full window it is the pretrained decoder on the queries, then the linear layer."""
    whisper = scatter_weights(WhisperForConditionalGeneration(whisper_config(max_target_positions=30)), 3)
    whisper.save_pretrained(tmp_path / "whisper")
    from transformers import LlamaForCausalLM

    llm = scatter_weights(LlamaForCausalLM(text_config()))
    model = SpeechLLMForConditionalGeneration.from_parts(
        str(tmp_path / "whisper"),
        llm,
        {"type": "whisper_qformer", "queries": 7, "decoder": str(tmp_path / "whisper")},
        audio_token_id=64,
    )
    connector = model.model.multi_modal_projector
    torch.nn.init.normal_(connector.bank.queries)
    assert model.config.connector["decoder_layers"] == 1 and model.config.connector["positions"] == 30
    features = torch.randn(1, 8, 40)
    encoded = WhisperModel.from_pretrained(tmp_path / "whisper").encoder(features).last_hidden_state
    decoded = whisper.model.decoder(inputs_embeds=connector.bank.queries, encoder_hidden_states=encoded)
    expected = connector.linear(decoded.last_hidden_state)[0]
    output = model.get_audio_features(features)
    torch.testing.assert_close(output.pooler_output, expected, **CLOSE)
    assert output.connector.language_logits is None


def test_each_window_gets_its_own_queries_and_a_batch_equals_its_members():
    model = tiny_speechllm(connector=LAD)
    lengths = [100, 7, 40, 41]  # 40 mel frames are a window
    features, mask = random_audio(model, lengths)
    output = model.get_audio_features(features, mask)
    assert output.connector.lengths.tolist() == [12, 4, 4, 8]
    start = 0
    for row, length in enumerate(lengths):
        alone = model.get_audio_features(features[row : row + 1, :, :length])
        stop = start + int(output.connector.lengths[row])
        torch.testing.assert_close(output.pooler_output[start:stop], alone.pooler_output, **CLOSE)
        torch.testing.assert_close(output.connector.language_logits[row], alone.connector.language_logits[0], **CLOSE)
        start = stop


def test_language_goes_through_forward_and_generate():
    model = tiny_speechllm(connector=LAD)
    torch.nn.init.normal_(model.model.multi_modal_projector.bank.queries)
    features, mask = random_audio(model, [30])
    ids = torch.tensor([[5, *[64] * 4, 6]])
    audio = {"input_features": features, "input_features_mask": mask}
    logits = [model(input_ids=ids, language=torch.tensor([k]), **audio).logits for k in range(3)]
    assert not torch.allclose(logits[0], logits[1]) and not torch.allclose(logits[1], logits[2])
    output = model(input_ids=ids, **audio)
    assert output.connector.language_logits.shape == (1, 3)
    chosen = int(output.connector.language_logits.argmax())
    assert torch.equal(output.logits, logits[chosen])
    settings = {"max_new_tokens": 4, "do_sample": False}
    free = model.generate(input_ids=ids, **audio, **settings)
    assert torch.equal(model.generate(input_ids=ids, language=torch.tensor([chosen]), **audio, **settings), free)


def test_gradients_reach_all_of_the_connector(tmp_path):
    model = tiny_speechllm(connector=LAD)
    model.freeze("encoder", "llm")
    features, mask = random_audio(model, [30, 12])
    ids = torch.tensor([[5, *[64] * 4, 6, *[64] * 4, 7, 8]])
    output = model.train()(input_ids=ids, labels=ids.clamp(max=63), input_features=features, input_features_mask=mask)
    output.loss.backward()
    silent = {name for name, p in model.model.multi_modal_projector.named_parameters() if p.grad is None}
    assert not silent
    assert all(
        p.grad is None for group in ("encoder", "llm") for m in model.group_modules()[group] for p in m.parameters()
    )
    model.save_pretrained(tmp_path)
    again = SpeechLLMForConditionalGeneration.from_pretrained(tmp_path)
    again.freeze("encoder", "llm")  # other kernels run where gradients are needed
    expected = model.eval()(input_ids=ids, input_features=features, input_features_mask=mask).logits
    assert torch.equal(again(input_ids=ids, input_features=features, input_features_mask=mask).logits, expected)


def test_settings_errors():
    cases = {
        'needs? a gate. Set gate="conv" or "attention"': {"languages": LANGUAGES},
        "needs the names of the languages": {"gate": "conv"},
        "must be a list of different names": {"languages": ["en", "en"], "gate": "conv"},
        "gate must be one of None, 'conv', 'attention', not 'magic'": {"languages": LANGUAGES, "gate": "magic"},
        "selection must be one of 'hard', 'soft', not 'both'": {"selection": "both"},
        "queries=500 must be from 1 to positions=448": {"queries": 500},
    }
    for message, settings in cases.items():
        with pytest.raises(ValueError, match=message):
            connector_config({"type": "whisper_qformer"} | settings)
