"""Connectors: exact against loops written here, interchangeable, right on ragged audio from one frame up."""

import math
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from conftest import (
    AUDIO_CONFIGS,
    VOCABULARY,
    enable_checkpointing,
    random_audio,
    text_config,
    tiny_speechllm,
    whisper_config,
)
from torch.nn import functional as F
from transformers import LlamaForCausalLM, WhisperModel

from benchmarks import connector_sizes
from benchmarks.connector_sizes import PARENTS, count_parameters, token_rate
from modeling_speechllm import SpeechLLMForConditionalGeneration, conformer_ctc, output_length
from modeling_speechllm.audio_families import has_adapter
from modeling_speechllm.configuration_connectors import PRESETS, connector_config
from modeling_speechllm.conformer_ctc import ctc_logits, relative_positions, utterance_norm
from modeling_speechllm.connectors import CONNECTORS, build_connector

CLOSE = {"rtol": 0, "atol": 2e-5}
EXACT = {"rtol": 0, "atol": 1e-10}  # double precision
AUDIO_SIZE, TEXT_SIZE, WINDOW = 10, 12, 20
QFORMER = {"hidden_size": 16, "heads": 2, "ffn_size": 24}
BANK = {"languages": ["de", "en"], "gate": "attention", "gate_size": 8, "selection": "soft"}
CONFORMER = {
    "type": "conformer_ctc",
    "reduced_size": 9,
    "channels": 3,
    "blocks": 2,
    "hidden_size": 16,
    "heads": 2,
    "ffn_size": 24,
    "gating_size": 20,
    "kernel": 5,
    "languages": ["de", "en", "vi"],
    "language_block": 1,
}
TINY = {
    "stack_mlp": {"type": "stack_mlp", "stride": 3, "width": 5, "activation": "swiglu", "inner_norm": True},
    "conv": {"type": "conv", "hidden_size": 8, "bottleneck_size": 6},
    "window_qformer": {"type": "window_qformer", "width": 6, "queries": 2} | QFORMER | BANK,
    "conformer_ctc": CONFORMER,
    "whisper_qformer": {"type": "whisper_qformer", "queries": 3, "decoder_layers": 1, "positions": 8} | QFORMER | BANK,
    "ctc_compress": {"type": "ctc_compress", "vocabulary": 7, "blocks": 1} | QFORMER,
    "whisper_reader": {
        **{"type": "whisper_reader", "decoder_layers": 1, "positions": 12, "frames_per_token": 5, "tokens": 40},
        **{"vocabulary": 7, "end": 9, "times": 14, "prompt": [10, 11, 14]},
        **QFORMER,
    },
}


def tiny(name, audio_layers=0, seed=0, **changes):
    """A connector in evaluation mode, all of whose weights are random, so that a leak over padding shows."""
    connector = build_connector(TINY[name] | changes, AUDIO_SIZE, TEXT_SIZE, WINDOW, audio_layers)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in connector.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
        if name == "ctc_compress":
            connector.head.bias[-1] = -10.0  # else it may well read nothing anywhere
    return connector.eval()


def ragged(lengths, *dims, seed=1):
    """Random frames, zero past their lengths."""
    values = torch.zeros(len(lengths), max(lengths), *dims)
    for row, length in enumerate(lengths):
        values[row, :length] = torch.randn(length, *dims, generator=torch.Generator().manual_seed(seed + row))
    return values, torch.tensor(lengths)


def test_every_connector_is_tested():
    assert set(TINY) == set(CONNECTORS)


@pytest.mark.parametrize("audio_layers", [0, 3])
@pytest.mark.parametrize("name", CONNECTORS)
def test_a_batch_equals_its_members_from_one_frame_up(name, audio_layers):
    connector = tiny(name, audio_layers)
    frames, lengths = ragged([1, 20, 47, 2, 33, 9], *([audio_layers] if audio_layers else []), AUDIO_SIZE)
    batch = connector(F.pad(frames, (0, 0) * (frames.ndim - 2) + (0, 5)), lengths)
    for row, length in enumerate(lengths):
        alone = connector(frames[row : row + 1, :length], lengths[row : row + 1])
        tokens = int(alone.lengths)
        assert int(batch.lengths[row]) == tokens == alone.embeddings.shape[1]
        torch.testing.assert_close(batch.embeddings[row, :tokens], alone.embeddings[0], **CLOSE)
        if alone.language_logits is not None:
            torch.testing.assert_close(batch.language_logits[row], alone.language_logits[0], **CLOSE)
        if alone.language_ctc_logits is not None:
            steps = int(alone.language_ctc_lengths)
            assert int(batch.language_ctc_lengths[row]) == steps == alone.language_ctc_logits.shape[1]
            torch.testing.assert_close(batch.language_ctc_logits[row, :steps], alone.language_ctc_logits[0], **CLOSE)


@pytest.mark.parametrize("name", CONNECTORS)
def test_stages_count_the_tokens_that_are_made(name):
    connector = tiny(name)
    for length in range(1, 61):
        output = connector(*ragged([length], AUDIO_SIZE))
        assert output.embeddings.shape == (1, output_length(length, connector.stages), TEXT_SIZE)
        assert output.lengths.tolist() == [output_length(length, connector.stages)]


@pytest.mark.parametrize("settings", [{}, {"kernel": 4, "stride": 3, "convolutions": 2}, {"kernel": 1, "stride": 1}])
def test_conv_is_a_loop_over_places(settings):
    connector = tiny("conv", **settings).double()
    kernel, stride = connector.config.kernel, connector.config.stride
    for length in (1, 2, 7, 19, 40):
        frames, lengths = ragged([length], AUDIO_SIZE)
        rows = list(frames[0].double())
        for convolution in connector.convolutions:
            places, start = [], -(kernel // 2)
            while start + kernel <= len(rows) + kernel // 2:
                inside = [k for k in range(kernel) if 0 <= start + k < len(rows)]
                value = sum(convolution.weight[:, :, k] @ rows[start + k] for k in inside) + convolution.bias
                half = len(value) // 2
                places.append(value[:half] * torch.sigmoid(value[half:]))
                start += stride
            rows = places
        for place, row in enumerate(rows):
            rows[place] = connector.norm(row + connector.linear_2(F.gelu(connector.linear_1(row))))
        embeddings = connector(frames.double(), lengths).embeddings[0]
        torch.testing.assert_close(embeddings, torch.stack(rows), **EXACT)


@pytest.mark.parametrize("gate", [{}, {"languages": None, "gate": None}], ids=["bank", "shared"])
def test_windows_folded_into_the_batch_are_a_loop_over_windows(gate):
    connector = tiny("window_qformer", **gate).double()
    for length in (1, 6, 7, 25):
        frames, lengths = ragged([length], AUDIO_SIZE)
        frames = frames.double()
        queries, _ = connector.bank(frames, lengths)
        expected = []
        for start in range(0, length, 6):
            window = torch.zeros(1, 6, AUDIO_SIZE, dtype=torch.float64)
            window[:, : min(6, length - start)] = frames[:, start : start + 6]
            hidden = connector.qformer(query_embeds=queries, encoder_hidden_states=window).last_hidden_state
            expected.append(connector.linear(hidden))
        torch.testing.assert_close(connector(frames, lengths).embeddings, torch.cat(expected, dim=1), **EXACT)


def naive_attention(attention, rows):
    """Every score on its own: ((q_i + u) k_j + (q_i + v) p_(i - j)) / sqrt(dim)."""
    heads, dim = attention.content_bias.shape
    size = heads * dim
    normed = [attention.norm(row) for row in rows]
    query, key, value = (
        [(attention.query_key_value(row))[part * size : (part + 1) * size].view(heads, dim) for row in normed]
        for part in range(3)
    )
    attended = []
    for i in range(len(rows)):
        outputs = []
        for head in range(heads):
            scores = []
            for j in range(len(rows)):
                angles = [(i - j) / 10000 ** (2 * k / size) for k in range(size // 2)]
                sinusoid = torch.tensor([wave(angle) for angle in angles for wave in (math.sin, math.cos)])
                position = attention.position(sinusoid.double()).view(heads, dim)[head]
                content = (query[i][head] + attention.content_bias[head]) @ key[j][head]
                scores.append((content + (query[i][head] + attention.position_bias[head]) @ position) / dim**0.5)
            weights = torch.stack(scores).softmax(0)
            outputs.append(sum(weight * value[j][head] for j, weight in enumerate(weights)))
        attended.append(attention.linear(torch.cat(outputs)))
    return attended


def naive_depthwise(convolution, rows):
    kernel = convolution.kernel_size[0]
    return [
        convolution.bias
        + sum(
            convolution.weight[:, 0, k] * rows[t + k - kernel // 2]
            for k in range(kernel)
            if 0 <= t + k - kernel // 2 < len(rows)
        )
        for t in range(len(rows))
    ]


def naive_feed_forward(module, row):
    hidden = module.linear_1(module.norm(row))
    return module.linear_2(hidden * torch.sigmoid(hidden))


def naive_block(block, rows):
    rows = [row + naive_feed_forward(block.feed_forward_before, row) / 2 for row in rows]
    gating = block.gating
    halves = [F.gelu(gating.linear_1(gating.norm(row))).chunk(2) for row in rows]
    gates = naive_depthwise(gating.gate_convolution, [gating.gate_norm(gate) for _, gate in halves])
    gated = [gating.linear_2(value * gate) for (value, _), gate in zip(halves, gates, strict=True)]
    both = [torch.cat(pair) for pair in zip(naive_attention(block.attention, rows), gated, strict=True)]
    mixed = naive_depthwise(block.merge_convolution, both)
    merged = [block.merge(one + other) for one, other in zip(both, mixed, strict=True)]
    rows = [row + change for row, change in zip(rows, merged, strict=True)]
    return [block.norm(row + naive_feed_forward(block.feed_forward_after, row) / 2) for row in rows]


def test_the_e_branchformer_block_is_naive_attention_and_convolution():
    block = tiny("conformer_ctc").double().blocks[0]
    hidden, lengths = ragged([7, 3], 16)
    hidden = hidden.double()
    output = block(hidden, lengths, relative_positions(7, 16, hidden.device).double())
    for row, length in enumerate(lengths):
        expected = torch.stack(naive_block(block, list(hidden[row, :length])))
        # the sinusoids are made in single precision
        torch.testing.assert_close(output[row, :length], expected, rtol=0, atol=1e-6)


def naive_subsampling(subsampling, rows):
    """Two convolutions, patch by patch; whatever lies past the last row is zero."""
    maps = torch.stack(rows)[None]  # (channels, time, rows)
    for convolution in subsampling.convolutions:
        channels, time, height = maps.shape
        places = max(-(-(time - 3) // 2) + 1, 1)
        padded = torch.zeros(channels, 2 * places + 1, height, dtype=maps.dtype)
        padded[:, :time] = maps
        out = torch.zeros(len(convolution.weight), places, (height - 1) // 2, dtype=maps.dtype)
        for t in range(out.shape[1]):
            for h in range(out.shape[2]):
                patch = padded[:, 2 * t : 2 * t + 3, 2 * h : 2 * h + 3]
                out[:, t, h] = ((convolution.weight * patch).sum((1, 2, 3)) + convolution.bias).clamp(min=0)
        maps = out
    return [subsampling.linear(maps[:, t].flatten()) for t in range(maps.shape[1])]


def naive_length_adaptor(adaptor, rows):
    """Two rows to one; a zero stands beside an odd last one."""
    rows = [*rows, *[torch.zeros(16, dtype=torch.float64)] * (len(rows) % 2)]
    weight, bias = adaptor.convolution.weight, adaptor.convolution.bias
    pairs = zip(rows[::2], rows[1::2], strict=True)
    return [(weight[:, :, 0] @ one + weight[:, :, 1] @ other + bias).clamp(min=0) for one, other in pairs]


@pytest.mark.parametrize("length", [1, 6, 21])
def test_the_conformer_is_its_parts_in_order(length):
    """Mean norm, front, block, language CTC at half the rate fed back, block, length adaptor: each from loops."""
    connector = tiny("conformer_ctc").double()
    frames, lengths = ragged([length], AUDIO_SIZE)
    frames = frames.double()
    values = frames[0]
    rows = [connector.reduce(row) for row in values - values.mean(0)]
    rows = naive_block(connector.blocks[0], [row * 4 for row in naive_subsampling(connector.subsampling, rows)])
    language = [connector.language_head(row) for row in naive_length_adaptor(connector.language_adaptor, rows)]
    told = [connector.language_condition(logits.softmax(-1)) for logits in language]
    rows = [row + told[place // 2] for place, row in enumerate(rows)]
    rows = [connector.norm(row) for row in naive_block(connector.blocks[1], rows)]
    pairs = naive_length_adaptor(connector.length_adaptor, rows)
    output = connector(frames, lengths)
    assert output.language_ctc_lengths.tolist() == [len(language)]
    # single precision in the normalisation and in the sinusoids, through two blocks
    torch.testing.assert_close(output.language_ctc_logits[0], torch.stack(language), rtol=0, atol=1e-4)
    expected = torch.stack([connector.linear(pair) for pair in pairs])
    torch.testing.assert_close(output.embeddings[0], expected, rtol=0, atol=1e-4)


def test_utterance_norm_takes_the_mean_of_valid_frames_and_leaves_the_variance():
    frames, lengths = ragged([8, 3, 1], 4)
    frames = frames * 5 + 2 * (frames != 0)
    normed = utterance_norm(frames, lengths)
    for row, length in enumerate(lengths):
        assert not normed[row, length:].any()
        expected = frames[row, :length] - frames[row, :length].mean(0)
        torch.testing.assert_close(normed[row, :length], expected, **CLOSE)


def test_attention_in_blocks_of_queries_changes_nothing(monkeypatch):
    results = []
    for size in (512, 4):
        monkeypatch.setattr(conformer_ctc, "QUERY_BLOCK", size)
        connector = tiny("conformer_ctc")
        output = connector(*ragged([90, 41], AUDIO_SIZE))
        (output.embeddings.sin().sum() + output.language_ctc_logits.sum()).backward()
        results.append([output.embeddings.detach(), *(p.grad for p in connector.parameters())])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)  # sums of hundreds of terms


def test_ctc_logits_are_products_with_the_frozen_embeddings():
    hidden, table = torch.randn(2, 5, 8, requires_grad=True), torch.randn(11, 8, requires_grad=True)
    logits = ctc_logits(hidden, table)
    torch.testing.assert_close(logits, hidden @ table.T, **CLOSE)
    F.ctc_loss(logits.log_softmax(-1).transpose(0, 1), torch.tensor([[3, 4], [5, 5]]), (5, 5), (2, 2)).backward()
    assert hidden.grad.abs().sum() > 0 and table.grad is None


@pytest.mark.parametrize("name", ["stack_mlp", "conformer_ctc"])
def test_ctc_over_the_llm_embeddings_trains_any_connector(name):
    model = tiny_speechllm(connector=TINY[name])
    model.freeze("encoder", "llm")
    features, mask = random_audio(model, [80, 33])
    output = model.model.get_ctc_logits(features, mask)
    audio = model.get_audio_features(features, mask)
    assert output.lengths.tolist() == audio.connector.lengths.tolist()
    expected = audio.connector.embeddings @ model.get_input_embeddings().weight.T
    torch.testing.assert_close(output.logits, expected, **CLOSE)
    loss = F.ctc_loss(
        output.logits.log_softmax(-1).transpose(0, 1),
        torch.tensor([[3, 4], [5, 0]]),
        output.lengths,
        torch.tensor([2, 1]),
        blank=model.model.ctc_blank,
    )
    loss.backward()
    assert torch.isfinite(loss) and model.get_input_embeddings().weight.grad is None
    assert all(parameter.grad is not None for parameter in model.model.multi_modal_projector.parameters())
    for padding in (None, VOCABULARY):
        model.config.text_config.pad_token_id = padding
        with pytest.raises(ValueError, match=rf"padding token \(id {padding}\) has no row.*CTC's blank"):
            _ = model.model.ctc_blank


def test_the_blank_is_the_connector_s_own_where_it_names_one():
    for blank, expected in ((None, 0), (0, 0), (5, 5)):
        model = tiny_speechllm(connector=TINY["stack_mlp"] | {"ctc_blank": blank})
        assert model.model.ctc_blank == expected  # the tiny LLM pads with 0
    model = tiny_speechllm(connector=TINY["stack_mlp"] | {"ctc_blank": VOCABULARY})
    with pytest.raises(ValueError, match=f"ctc_blank={VOCABULARY} has no row"):
        _ = model.model.ctc_blank


@pytest.mark.parametrize("name", CONNECTORS)
def test_new_connectors_start_as_they_should(name):
    """Built on the meta device, as `from_parts` does: nothing stays empty, bare parameters are set."""
    encoder, llm = WhisperModel(whisper_config()), LlamaForCausalLM(text_config())
    connector = TINY[name] | {"layers": "all"}
    model = SpeechLLMForConditionalGeneration.from_parts(encoder.encoder, llm, connector, audio_token_id=64)
    projector = model.model.multi_modal_projector
    for key, parameter in projector.named_parameters():
        assert torch.isfinite(parameter).all() and parameter.requires_grad, key
        assert parameter.any() or key.endswith(("bias", "layer_mix.weight")), key
    if name == "conformer_ctc":
        for block in projector.blocks:
            assert (block.gating.gate_convolution.bias == 1).all()
            assert 0 < block.gating.gate_convolution.weight.abs().max() < 1e-5
            assert block.attention.content_bias.any() and block.attention.position_bias.any()
    features, mask = random_audio(model, [80, 33])
    spread = model.get_audio_features(features, mask).pooler_output.std(0).mean()
    assert 1e-4 < spread < 5


# Zero by construction: the bias of keys shifts all scores of a query alike.
SHIFTS = ("key.bias", "k_proj.bias")


@pytest.mark.slow
@pytest.mark.parametrize("name", CONNECTORS)
@pytest.mark.parametrize("audio", AUDIO_CONFIGS)
def test_every_connector_on_every_tower(audio, name, tmp_path):
    """Forward, backward, generate, save, load."""
    adapted = has_adapter(AUDIO_CONFIGS[audio]())  # its layers cannot be mixed
    connector = TINY[name] | ({"layers": None} if adapted else {})
    model = tiny_speechllm(audio, connector=connector, audio_window=10)
    model.freeze("encoder", "llm")
    inputs_per_window = model.config.audio_window_inputs
    features, mask = random_audio(model, [3 * inputs_per_window, inputs_per_window])
    tokens = model.get_audio_features(features, mask).connector.lengths.tolist()
    ids = torch.tensor([[5, *[VOCABULARY] * tokens[0], 9, *[VOCABULARY] * tokens[1], 6]])
    inputs = {"input_ids": ids, "input_features": features, "input_features_mask": mask}
    expected = model(**inputs).logits
    generated = model.generate(**inputs, max_new_tokens=2, do_sample=False, eos_token_id=None)
    assert generated.shape == (1, ids.shape[1] + 2)

    model.train()(**inputs, labels=ids.clamp(max=VOCABULARY - 1)).loss.backward()
    projector = {id(parameter) for parameter in model.model.multi_modal_projector.parameters()}
    for key, parameter in model.named_parameters():
        if id(parameter) in projector:
            assert parameter.grad is not None and (parameter.grad.any() or key.endswith(SHIFTS)), key
        else:
            assert parameter.grad is None, key

    model.save_pretrained(tmp_path)
    reloaded = type(model).from_pretrained(tmp_path)
    reloaded.freeze("encoder", "llm")  # other kernels run where gradients are needed
    assert reloaded.config.connector == asdict(connector_config(connector))
    # One vector times a table: its sum runs in another order where the table lies elsewhere in memory.
    tolerance = 1e-5 if name == "whisper_reader" else 0
    torch.testing.assert_close(reloaded(**inputs).logits, expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("name", [name for name in CONNECTORS if name != "whisper_reader"])  # which has its own
def test_half_precision_and_autocast(name):
    connector = tiny(name)
    frames, lengths = ragged([20, 7], AUDIO_SIZE)

    def values(output):  # before anything is decided by a maximum
        return output.embeddings if output.ctc_logits is None else output.ctc_logits

    expected = values(connector(frames, lengths))
    with torch.autocast("cpu", torch.bfloat16):
        mixed = values(connector(frames, lengths)).float()
    half = connector.bfloat16()(frames.bfloat16(), lengths)
    assert half.embeddings.dtype == torch.bfloat16
    for other in (mixed, values(half).float()):
        assert (other - expected).abs().mean() < 0.1 * expected.abs().mean()  # 8 bits of mantissa, several layers


def test_gradient_checkpointing_changes_no_gradient():
    gradients = []
    for checkpointing in (False, True):
        model = tiny_speechllm(connector=CONFORMER | {"dropout": 0.0})
        model.freeze("encoder", "llm")
        if checkpointing:
            enable_checkpointing(model)
            assert all(block.gradient_checkpointing for block in model.model.multi_modal_projector.blocks)
        model.train()
        model.get_audio_features(*random_audio(model, [80, 33])).pooler_output.sin().sum().backward()
        gradients.append([parameter.grad for parameter in model.model.multi_modal_projector.parameters()])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, **CLOSE)


def test_presets_have_the_sizes_of_their_papers(capsys):
    sizes = {preset: count_parameters(preset, PARENTS[preset]) for preset in PRESETS}
    assert round(sizes["bloomzmms"] / 1e6) == 536
    adaptor = 2 * 1024 * 1024 + 1024  # of the language CTC
    assert round((sizes["bloomzmms"] - adaptor) / 1e6) == 534
    assert sizes["ultravox"] == 10240 * 4096 + 2048 * 4096 + 10240 + 2048
    assert sizes["voxtral"] == 5120 * 3072 + 3072 * 3072
    rates = {"ultravox": 6.25, "voxtral": 12.5, "blsp": 6.25, "salmonn": 50 / 17, "granite": 10, "bloomzmms": 6.25}
    assert {preset: token_rate(preset) for preset in rates} == pytest.approx(rates, rel=1e-3)
    connector_sizes.main()
    page = (Path(__file__).parent.parent / "docs" / "connectors.md").read_text(encoding="utf-8")
    assert capsys.readouterr().out in page


def test_a_preset_is_a_name_and_can_be_changed():
    for name, settings in PRESETS.items():
        assert connector_config(name) == connector_config({"type": name}) == connector_config(settings)
        assert connector_config(asdict(connector_config(name))) == connector_config(name)
    changed = connector_config({"type": "granite", "queries": 5})
    assert (changed.type, changed.width, changed.queries) == ("window_qformer", 15, 5)
    model = tiny_speechllm(connector={"type": "blsp", "bottleneck_size": 4})
    assert model.config.connector["type"] == "conv" and model.config.connector["convolutions"] == 3


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"type": "blps"}, "Unknown connector 'blps'.*conv.*Known presets.*blsp"),
        ({"type": "conv", "kernel": 2, "stride": 3}, "would skip frames"),
        ({"type": "window_qformer", "queries": 4}, "queries=4 must divide width=17"),
        ({"type": "window_qformer", "heads": 7}, "heads=7 must divide hidden_size=768"),
        ({"type": "conformer_ctc", "kernel": 4}, "kernel=4 odd"),
        ({"type": "conformer_ctc", "heads": 3}, "multiple of twice heads=3"),
        ({"type": "conformer_ctc", "reduced_size": 6}, "reduced_size=6 must be at least 7"),
        ({"type": "bloomzmms", "language_block": 18}, "language_block=18 must be from 1 to blocks=17"),
        ({"type": "whisper_reader", "vocabulary": 50258}, "vocabulary=50258, end=50257"),
        ({"type": "whisper_reader", "prompt": []}, r"prompt=\[\] must be tokens below 51865"),
        ({"type": "whisper_reader", "trailing_silence": -1.0}, "trailing_silence=-1.0 must be 0"),
        ({"type": "whisper_reader", "trailing_silence": float("nan")}, "trailing_silence=nan must be 0"),
        ({"type": "whisper_reader", "trailing_silence": "0.5"}, "trailing_silence=0.5 must be 0"),
        ({"type": "whisper_reader", "trailing_silence": float("inf")}, "trailing_silence=inf must be 0"),
    ],
)
def test_settings_that_cannot_work_say_so(settings, message):
    with pytest.raises(ValueError, match=message):
        connector_config(settings)
