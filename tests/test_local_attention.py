"""Attention limited to a context: the whole for short audio, a band for long audio, blocks that change nothing."""

import pytest
import torch
from torch.nn import functional as F

from modeling_speechllm import conformer_ctc, ctc_compress
from modeling_speechllm.configuration_connectors import connector_config
from modeling_speechllm.conformer_ctc import RelativeAttention, relative_positions
from modeling_speechllm.connectors import build_connector
from modeling_speechllm.ctc_compress import mean_at_begin, rotary_positions, rotate, runs

AUDIO_SIZE, TEXT_SIZE, TIME = 12, 8, 37
SIZES = {"hidden_size": 16, "heads": 2, "blocks": 2, "ffn_size": 24}
SETTINGS = {
    "conformer_ctc": {
        **SIZES,
        **{"type": "conformer_ctc", "layers": None, "reduced_size": 8, "gating_size": 24, "kernel": 3, "languages": 2},
        "language_block": 1,
    },
    "ctc_compress": {**SIZES, "type": "ctc_compress", "vocabulary": 5},
}
MODULES = {"conformer_ctc": conformer_ctc, "ctc_compress": ctc_compress}
RATE = 4  # encoder frames to one position of attention, in both


def connector_with(name, context, seed=0):
    """A connector in which attention matters: all weights random."""
    connector = build_connector(SETTINGS[name] | {"attention_context": context}, AUDIO_SIZE, TEXT_SIZE, 50).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in connector.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.4)
    return connector


def attended_part(name, connector, frames, lengths):
    """What the attention feeds: CTC logits of the reader, embeddings of the conformer."""
    output = connector(frames, lengths)
    return output.ctc_logits if name == "ctc_compress" else output.embeddings


def ragged(lengths, size=AUDIO_SIZE):
    frames = torch.randn(len(lengths), max(lengths), size, generator=torch.Generator().manual_seed(1))
    for row, length in zip(frames, lengths, strict=True):
        row[length:] = 0
    return frames, torch.tensor(lengths)


@pytest.mark.parametrize("name", SETTINGS)
@torch.no_grad()
def test_audio_within_the_context_gives_exactly_what_unlimited_attention_gives(name):
    frames, lengths = ragged([TIME * RATE, 50])
    whole, limited = (
        attended_part(name, connector_with(name, context), frames, lengths) for context in (None, TIME - 1)
    )
    assert torch.equal(whole, limited)
    narrower = attended_part(name, connector_with(name, TIME - 8), frames, lengths)
    assert not torch.allclose(whole, narrower, atol=1e-4)


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("context", [3, 11])
@torch.no_grad()
def test_limited_attention_in_blocks_of_any_size_is_the_same(name, context, monkeypatch):
    frames, lengths = ragged([TIME * RATE, 60, 9])
    results = []
    for size in (512, 5, 1):
        monkeypatch.setattr(MODULES[name], "QUERY_BLOCK", size)
        results.append(attended_part(name, connector_with(name, context), frames, lengths))
    torch.testing.assert_close(results[0], results[1], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(results[0], results[2], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("size", [1, 3, 4])
@torch.no_grad()
def test_subsampling_in_blocks_makes_the_positions_of_the_whole(size, monkeypatch):
    subsampling = connector_with("conformer_ctc", None).subsampling
    for frames_in_all in range(20, 45):
        frames, lengths = ragged([frames_in_all, *range(1, frames_in_all, 3)], size=8)
        monkeypatch.setattr(conformer_ctc, "SUBSAMPLING_BLOCK", 512)
        whole, ends = subsampling(frames, lengths)
        monkeypatch.setattr(conformer_ctc, "SUBSAMPLING_BLOCK", size)
        blocks, same_ends = subsampling(frames, lengths)
        assert torch.equal(ends, same_ends) and blocks.shape == whole.shape and whole.shape[1] > size
        for one, other, end in zip(blocks, whole, ends.tolist(), strict=True):
            torch.testing.assert_close(one[:end], other[:end], rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_limited_relative_attention_is_naive_attention_over_a_band(monkeypatch):
    monkeypatch.setattr(conformer_ctc, "QUERY_BLOCK", 4)
    context, lengths = 3, torch.tensor([11, 6])
    attention = RelativeAttention(connector_config(SETTINGS["conformer_ctc"] | {"attention_context": context})).eval()
    for parameter in attention.parameters():
        parameter.normal_(std=0.4, generator=torch.Generator().manual_seed(2))
    hidden = torch.randn(2, 11, 16, generator=torch.Generator().manual_seed(3))
    found = attention(hidden, lengths, relative_positions(context + 4, 16, hidden.device))
    table = attention.position(relative_positions(11, 16, hidden.device)).unflatten(-1, (2, 8))
    for row, length in enumerate(lengths.tolist()):
        query, key, value = attention.query_key_value(attention.norm(hidden[row])).unflatten(-1, (3, 2, 8)).unbind(1)
        for i in range(length):
            near = [j for j in range(length) if abs(i - j) <= context]
            attended = []
            for head in range(2):
                scores = torch.stack(
                    [
                        (query[i, head] + attention.content_bias[head]) @ key[j, head]
                        + (query[i, head] + attention.position_bias[head]) @ table[11 - 1 - (i - j), head]
                        for j in near
                    ]
                )
                attended.append((scores / 8**0.5).softmax(0) @ value[near, head])
            torch.testing.assert_close(found[row, i], attention.linear(torch.cat(attended)), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_limited_rotary_attention_is_naive_attention_over_a_band():
    context, lengths = 3, torch.tensor([11, 6])
    block = connector_with("ctc_compress", context).blocks[0]
    hidden = torch.randn(2, 11, 16, generator=torch.Generator().manual_seed(3))
    positions = rotary_positions(11, 8, hidden.device)
    found = block(hidden, lengths, positions)
    heads = block.query_key_value(block.attention_norm(hidden)).unflatten(-1, (3, 2, 8)).permute(2, 0, 3, 1, 4)
    scores = rotate(heads[0], positions) @ rotate(heads[1], positions).transpose(-1, -2) / 8**0.5
    place = torch.arange(11)
    for row, length in enumerate(lengths.tolist()):
        seen = ((place[:, None] - place).abs() <= context) & (place < length)
        attended = scores[row].masked_fill(~seen, float("-inf")).softmax(-1) @ heads[2][row]
        expected = hidden[row] + block.output(attended.transpose(0, 1).flatten(1))
        expected = expected + block.linear_2(F.gelu(block.linear_1(block.norm(expected))))
        torch.testing.assert_close(found[row, :length], expected[:length], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", SETTINGS)
@torch.no_grad()
def test_audio_that_comes_in_pieces_gives_what_the_whole_gives(name):
    """What lies further away than all layers see together changes nothing, so a stream may be read piece by piece,
    each with so much of its past and future."""
    context, length = 2, 80 * RATE
    connector = connector_with(name, context)
    frames, lengths = ragged([length])
    if name == "conformer_ctc":
        frames = frames - frames.mean(1, keepdim=True)  # the mean of the whole, which a piece does not know
    whole = hidden_states(name, connector, frames)
    layers = 2
    reach = layers * (context + (2 if name == "conformer_ctc" else 0)) + 2  # kernels of 3, twice a layer; the front
    for start in range(0, 80, 20):
        low, high = max(start - reach, 0), min(start + 20 + reach, 80)
        piece = hidden_states(name, connector, frames[:, low * RATE : high * RATE])
        torch.testing.assert_close(piece[:, start - low : start - low + 20], whole[:, start : start + 20], **CLOSE)


CLOSE = {"rtol": 1e-4, "atol": 1e-4}


def hidden_states(name, connector, frames):
    """(1, frames, audio size), whose mean is taken off already -> (1, positions, size) after all blocks."""
    lengths = torch.tensor([frames.shape[1]])
    if name == "ctc_compress":
        return connector.read(frames, lengths)[0]
    hidden, lengths = connector.subsampling(connector.reduce(frames), lengths)
    positions = relative_positions(hidden.shape[1], hidden.shape[2], hidden.device)
    for block in connector.blocks:
        hidden = block(hidden, lengths, positions)
    return hidden


@pytest.mark.parametrize("name", SETTINGS)
def test_short_rows_in_a_long_batch_have_gradients(name):
    """Past their end no key is left in a band: softmax over nothing would make gradients of all rows NaN."""
    connector = connector_with(name, 2)
    frames, lengths = ragged([TIME * RATE, 5])
    attended_part(name, connector, frames, lengths)[:, :2].square().sum().backward()
    grads = [parameter.grad for parameter in connector.parameters() if parameter.grad is not None]
    assert grads and all(grad.isfinite().all() for grad in grads)


def test_the_mean_over_a_run_is_that_of_a_loop():
    classes = torch.tensor([[2, 2, 4, 2, 1, 1, 0], [4, 3, 3, 4, 4, 3, 3], [4, 4, 4, 4, 4, 4, 4]])
    run, begins = runs(classes, torch.tensor([6, 7, 3]), blank=4)
    embedded = torch.randn(3, 7, 4, generator=torch.Generator().manual_seed(0))
    found = mean_at_begin(embedded, run, begins)
    for row in range(3):
        for place in range(7):
            number = int(run[row, place])
            same = embedded[row][run[row] == number]
            expected = same.mean(0) if begins[row, place] else torch.zeros(4)
            torch.testing.assert_close(found[row, place], expected)


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("context", [0, -1, 1.5, True])
def test_a_context_that_is_no_number_of_positions_is_refused(name, context):
    with pytest.raises(ValueError, match="attention_context=.* must be a whole number"):
        connector_config(SETTINGS[name] | {"attention_context": context})
