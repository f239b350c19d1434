"""The connector that reads with Whisper's decoder, against a loop over transformers' own decoder and rules; what it is
built from, and where it is refused."""

from functools import partial

import pytest
import torch
from conftest import VOCABULARY, random_audio, scatter_weights, text_config, whisper_config
from factories_gguf import write_gguf
from factories_processing import CHATML, make_tokenizer
from factories_training import tone_rows
from tokenizers import Tokenizer, models
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GenerationConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
)
from transformers.generation import WhisperTimeStampLogitsProcessor

from modeling_speechllm import SpeechLLMForConditionalGeneration, whisper_reader
from modeling_speechllm.configuration_connectors import connector_config
from modeling_speechllm.connectors import build_connector
from modeling_speechllm.parents import reading_vocabulary
from processing_speechllm import SpeechLLMProcessor
from trainers import (
    SpeechAlignmentConfig,
    SpeechAlignmentTrainer,
    SpeechImitationConfig,
    SpeechImitationTrainer,
)

CLOSE = {"rtol": 0, "atol": 2e-5}
SIZE, POSITIONS = 16, 30
TOKENIZER = make_tokenizer(CHATML)
END = TOKENIZER.convert_tokens_to_ids("<|im_start|>")  # text lies before it
START, ENGLISH, GERMAN, TRANSCRIBE, NO_TIMES = range(END + 1, END + 6)
TIMES = NO_TIMES + 1
PROMPT = [START, ENGLISH, TRANSCRIBE, TIMES]


def tiny_whisper(seed=3, windows=40, **changes):
    """A whole Whisper whose windows have `windows` frames, with the tokens of a multilingual one."""
    whisper = WhisperForConditionalGeneration(
        whisper_config(
            vocab_size=TIMES + windows + 1,
            max_target_positions=POSITIONS,
            max_source_positions=windows,
            eos_token_id=END,
            decoder_start_token_id=START,
            **changes,
        )
    )
    scatter_weights(whisper, seed)
    whisper.generation_config = GenerationConfig(
        eos_token_id=END,
        decoder_start_token_id=START,
        no_timestamps_token_id=NO_TIMES,
        is_multilingual=True,
        lang_to_id={"<|en|>": ENGLISH, "<|de|>": GERMAN},
        task_to_id={"transcribe": TRANSCRIBE},
    )
    return whisper.eval()


@pytest.fixture
def parents(tmp_path):
    """Folders of a Whisper and of an LLM that shares most of its tokens, each with its tokenizer."""
    tiny_whisper().save_pretrained(tmp_path / "whisper")
    TOKENIZER.save_pretrained(tmp_path / "whisper")
    WhisperFeatureExtractor(feature_size=8).save_pretrained(tmp_path / "whisper")
    scatter_weights(LlamaForCausalLM(text_config(vocab_size=len(TOKENIZER)))).save_pretrained(tmp_path / "llm")
    TOKENIZER.save_pretrained(tmp_path / "llm")
    return str(tmp_path / "whisper"), str(tmp_path / "llm")


def joined(parents, **changes):
    settings = {"type": "whisper_reader", "decoder": parents[0], "frames_per_token": 4, "trailing_silence": 0.1}
    return SpeechLLMForConditionalGeneration.from_parts(*parents, connector=settings | changes)


@torch.no_grad()
def reader(seed=5, vocabulary=40, **changes):
    """A connector with a pretrained decoder and a vocabulary of its own, whose readings are all kinds; and the Whisper
    that the decoder is of."""
    whisper = tiny_whisper(seed)
    # Random decoders hardly change their mind; the tokens' own vectors, made large, make them.
    decoder = whisper.model.decoder
    decoder.embed_tokens.weight.mul_(3)
    decoder.embed_positions.weight.copy_(torch.randn(POSITIONS, SIZE, generator=torch.Generator().manual_seed(seed)))
    settings = {"type": "whisper_reader", "decoder_layers": 1, "heads": 2, "ffn_size": 32, "positions": POSITIONS}
    settings |= {"tokens": TIMES + 41, "end": END, "times": TIMES, "prompt": PROMPT, "frames_per_token": 4}
    connector = build_connector(settings | {"vocabulary": vocabulary} | changes, SIZE, 12, 40).eval()
    connector.load_decoder(decoder)
    generator = torch.Generator().manual_seed(1)
    ids = torch.randperm(END, generator=generator)[:vocabulary].sort().values
    connector.load_vocabulary(ids, torch.randn(vocabulary, 12, generator=generator))
    return connector, whisper


def clips(lengths, seed=1):
    frames = torch.zeros(len(lengths), max(lengths), SIZE)
    for row, length in enumerate(lengths):
        frames[row, :length] = torch.randn(length, SIZE, generator=torch.Generator().manual_seed(seed + row)) * 2
    return frames, torch.tensor(lengths)


@torch.no_grad()
def read_slowly(connector, whisper, frames, limit):
    """All that is read of one window (1, frames, size), without its end, and the states of the text in it."""
    known = {*connector.table.token_ids.tolist(), END, *range(TIMES, connector.config.tokens)}
    unknown = [token for token in range(connector.config.tokens) if token not in known]
    rules = GenerationConfig(eos_token_id=END, no_timestamps_token_id=NO_TIMES, max_initial_timestamp_index=0)
    rules = WhisperTimeStampLogitsProcessor(rules, begin_index=len(PROMPT) - 1)
    written, states = [], []
    while len(PROMPT) + len(written) < POSITIONS and len(states) < limit:
        ids = torch.tensor([PROMPT + written])
        hidden = whisper.model.decoder(input_ids=ids, encoder_hidden_states=frames).last_hidden_state[:, -1]
        logits = whisper.proj_out(hidden)
        logits[:, unknown] = -torch.inf
        token = int(rules(ids, logits).argmax())
        closes = token >= TIMES and [*PROMPT, *written][-1] < TIMES
        if token == END or closes and token - TIMES > frames.shape[1] - whisper_reader.END:
            break
        written.append(token)
        if token < END:
            states.append(hidden[0])
    written = written[: whisper_reader.said(written, END, TIMES, frames.shape[1], len(states) >= limit)]
    return written, states[: sum(token < END for token in written)]


# --- Reading ---

LENGTHS = [40, 3, 17, 31, 24, 9, 38, 40, 12, 29]


@torch.no_grad()
@pytest.mark.parametrize("end", [2, 100])
def test_it_reads_what_whisper_does_under_its_own_rules(end, monkeypatch):
    monkeypatch.setattr(whisper_reader, "END", end)
    kinds = set()
    for seed in range(4):
        connector, whisper = reader(seed)
        frames, lengths = clips(LENGTHS, seed)
        limits = torch.tensor([10, 1, 5, 8, 6, 0, 10, 10, 3, 8])
        tokens, hidden = connector.read(frames, lengths, limits)
        output = connector.project(frames, lengths, None)
        connector.config.selection = "soft"
        soft = connector.project(frames, lengths, None)
        assert torch.equal(soft.used, output.used)
        for row, (length, limit) in enumerate(zip(LENGTHS, limits.tolist(), strict=True)):
            alone = frames[row : row + 1, :length]
            written, states = read_slowly(connector, whisper, alone, limit)
            found = [token for token in tokens[row].tolist() if token != END]
            assert found == written
            spoken = tokens[row] < END
            for state, expected in zip(hidden[row][spoken], states, strict=True):
                torch.testing.assert_close(state, expected, **CLOSE)
            segments = sum(one < END <= other for one, other in zip(written, written[1:], strict=False))
            kinds.add("nothing" if not states else "limit" if len(states) == limit else "text")
            kinds.add(f"{segments} segments")
            written, states = read_slowly(connector, whisper, alone, -(-length // 4))
            texts = [token for token in written if token < END]
            assert output.used[row].tolist() == [place < len(states) for place in range(10)]
            for place, state in enumerate(states):
                posterior = (state @ connector.embed_tokens.weight[connector.table.token_ids].T).softmax(-1)
                torch.testing.assert_close(soft.embeddings[row, place], posterior @ connector.table.weight, **CLOSE)
                own = connector.table.token_ids == texts[place]
                assert torch.equal(output.embeddings[row, place], connector.table.weight[own][0])
    assert {"nothing", "limit", "text", "0 segments"} <= kinds
    assert ("1 segments" in kinds) == ("2 segments" in kinds) == (end == 2)


@torch.no_grad()
def test_each_window_of_longer_audio_is_read_for_itself():
    connector, _ = reader()
    frames, lengths = clips([97, 40, 51])
    output = connector(frames, lengths)
    assert output.lengths.tolist() == [25, 10, 13] and output.used.shape == output.embeddings.shape[:2] == (3, 25)
    for row, length in enumerate(lengths.tolist()):
        for first in range(0, length, 40):
            part = frames[row : row + 1, first : min(first + 40, length)]
            alone = connector(part, torch.tensor([part.shape[1]]))
            places = slice(first // 4, first // 4 + int(alone.lengths))
            assert torch.equal(output.used[row, places], alone.used[0])
            torch.testing.assert_close(output.embeddings[row, places], alone.embeddings[0], **CLOSE)
        assert not output.used[row, int(output.lengths[row]) :].any()
    assert output.used[:, 10:].any()


# --- Gradients ---


def loss_of(connector, frames, lengths):
    output = connector(frames, lengths)
    return (output.embeddings * torch.linspace(-1, 1, output.embeddings.numel()).view(output.embeddings.shape)).sum()


def test_states_heard_again_are_those_of_the_reading():
    connector, _ = reader()
    frames, lengths = clips(LENGTHS)
    tokens, hidden = connector.read(frames, lengths, lengths.clamp(max=10))
    again = connector.hear_again(tokens, frames, lengths)
    spoken = tokens < END
    assert spoken.any() and not hidden.requires_grad and again.requires_grad
    torch.testing.assert_close(again[spoken], hidden[spoken], **CLOSE)
    with torch.no_grad():
        expected = connector(frames, lengths)
    torch.testing.assert_close(connector(frames, lengths).embeddings, expected.embeddings, **CLOSE)


@pytest.mark.parametrize("way", ["autocast", "checkpointing"])
def test_gradients_are_the_same_in_every_way(way):
    """Gradients must not be lost where autocast has cast the weights already, for the reading without them."""
    frames, lengths = clips(LENGTHS)
    gradients = []
    for changed in (False, True):
        connector, _ = reader()
        connector.train()
        if changed and way == "checkpointing":
            for layer in connector.layers:
                layer.gradient_checkpointing = True
                layer._gradient_checkpointing_func = partial(checkpoint, use_reentrant=False)
        with torch.autocast("cpu", torch.bfloat16, enabled=changed and way == "autocast"):
            loss = loss_of(connector, frames[:1], lengths[:1])
        loss.backward()
        assert connector.layers.training
        gradients.append({name: parameter.grad for name, parameter in connector.named_parameters()})
    for name, gradient in gradients[0].items():
        error = (gradients[1][name] - gradient).norm() / gradient.norm()
        assert name.endswith("k_proj.bias") or error < (0.2 if way == "autocast" else 1e-4), name


def test_frozen_parts_are_heard_once(monkeypatch):
    connector, _ = reader()
    connector.requires_grad_(False)
    monkeypatch.setattr(connector, "hear_again", None)
    frames, lengths = clips(LENGTHS)
    connector(frames, lengths)
    with pytest.raises(TypeError):  # a trained encoder before it
        connector(frames.requires_grad_(), lengths)


@torch.no_grad()
def deaf(connector):
    """Lets it read nothing: all states are the same, and the end's vector is like them."""
    connector.layer_norm.weight.zero_()
    connector.layer_norm.bias.fill_(1.0)
    connector.embed_tokens.weight[END] = 10.0


def test_a_reading_of_nothing_has_gradients_too():
    """Else DistributedDataParallel waits for them."""
    connector, _ = reader()
    deaf(connector)
    output = connector(*clips([40, 1]))
    assert not output.used.any() and not output.embeddings.any()
    output.embeddings.sum().backward()
    assert all(p.grad is not None and not p.grad.any() for p in connector.parameters())
    connector.zero_grad()
    loss_of(connector, torch.zeros(1, 4, SIZE), torch.tensor([0])).backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in connector.parameters())


@torch.no_grad()
def test_half_precision():
    connector, _ = reader()
    frames, lengths = clips(LENGTHS)
    tokens, hidden = connector.read(frames, lengths, lengths)
    connector.config.selection = "soft"
    spoken = tokens < END
    expected = connector.embed(hidden[spoken], tokens[spoken])
    half = connector.bfloat16()
    again = half.hear_again(tokens, frames.bfloat16(), lengths)[spoken]  # what it writes may differ
    heard = half.embed(again, tokens[spoken])
    assert heard.dtype == half(frames.bfloat16(), lengths).embeddings.dtype == torch.bfloat16
    assert (heard.float() - expected).abs().mean() < 0.1 * expected.abs().mean()


def test_what_was_written_has_the_gradient_of_the_mean_that_the_posterior_weights():
    found = {}
    for selection in ("soft", "hard"):
        connector, _ = reader()
        connector.config.selection = selection
        frames, lengths = clips(LENGTHS)
        output = connector(frames.requires_grad_(), lengths)
        weights = torch.randn(output.embeddings.shape, generator=torch.Generator().manual_seed(0))
        (output.embeddings * weights).sum().backward()
        found[selection] = output.embeddings.detach(), frames.grad, connector.layers[0].fc1.weight.grad
    assert not torch.allclose(found["soft"][0], found["hard"][0])
    for soft, hard in zip(found["soft"][1:], found["hard"][1:], strict=True):
        assert soft.abs().max() > 0
        torch.testing.assert_close(hard, soft)
    with pytest.raises(ValueError, match="selection='firm' must be 'hard' or 'soft'"):
        connector_config({"type": "whisper_reader", "selection": "firm"})


@torch.no_grad()
def test_compiling_leaves_the_reading_as_it_is():
    connector, _ = reader()
    frames, lengths = clips([40, 17])
    compiled = torch.compile(connector, backend="eager")(
        frames, lengths
    )  # not as one graph: it ends where speech does
    torch.testing.assert_close(compiled.embeddings, connector(frames, lengths).embeddings, **CLOSE)
    torch._dynamo.reset()


# --- In a model ---


def prompt_of(model, features, mask):
    counts = model.get_audio_features(features, mask).connector.lengths.tolist()
    rows = [[7, 4] + [model.config.audio_token_id] * count + [6, 11] for count in counts]
    size = max(map(len, rows))
    ids = torch.tensor([[0] * (size - len(row)) + row for row in rows])
    attention = torch.tensor([[0] * (size - len(row)) + [1] * len(row) for row in rows])
    return {"input_ids": ids, "attention_mask": attention, "input_features": features, "input_features_mask": mask}


@torch.no_grad()
def test_from_parts_needs_no_training(parents, tmp_path):
    """Whisper's own decoder, the LLM's own vectors; saved whole or in part and loaded."""
    model = joined(parents)
    connector = model.model.multi_modal_projector
    config, whisper = model.config.connector, WhisperForConditionalGeneration.from_pretrained(parents[0])
    assert (config["prompt"], config["end"], config["times"]) == (PROMPT, END, TIMES)
    assert config["tokens"] == TIMES + 41 and config["positions"] == POSITIONS
    assert connector.table.token_ids.tolist() == list(range(END))
    assert torch.equal(connector.table.weight, model.get_input_embeddings().weight[:END])
    for name, value in whisper.model.decoder.state_dict().items():
        assert torch.equal(connector.state_dict()[name], value), name

    inputs = prompt_of(model, *random_audio(model, [80, 34]))
    expected = model(**inputs)
    assert expected.connector.used.any()
    greedy = {"max_new_tokens": 4, "do_sample": False, "eos_token_id": None}
    answers = model.generate(**inputs, **greedy)[:, inputs["input_ids"].shape[1] :]
    for row, used in enumerate(expected.connector.used):
        text = model.get_input_embeddings().weight
        heard = expected.connector.embeddings[row][used]
        embeds = torch.cat([text[[7, 4]], heard, text[[6, 11]]])[None]
        torch.testing.assert_close(model(inputs_embeds=embeds).logits[0, -1], expected.logits[row, -1], **CLOSE)
        assert model.generate(inputs_embeds=embeds, **greedy)[0].tolist() == answers[row].tolist()

    model.save_pretrained(tmp_path / "whole")
    model.save_pretrained(tmp_path / "part", trained_only=True)
    for kind in ("whole", "part"):
        again = SpeechLLMForConditionalGeneration.from_pretrained(tmp_path / kind)
        torch.testing.assert_close(again(**inputs).logits[:, -1], expected.logits[:, -1], **CLOSE)
        again.set_attn_implementation("eager")
        torch.testing.assert_close(again(**inputs).logits[:, -1], expected.logits[:, -1], **CLOSE)


@torch.no_grad()
def test_of_nothing_read_the_llm_hears_nothing(parents):
    model = joined(parents)
    deaf(model.model.multi_modal_projector)
    logits = model(**prompt_of(model, *random_audio(model, [34]))).logits[0, -1]
    torch.testing.assert_close(logits, model(input_ids=torch.tensor([[7, 4, 6, 11]])).logits[0, -1], **CLOSE)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["whisper_reader", "ctc_compress"])
def test_an_offloaded_connector_reads_the_same(kind, parents, tmp_path):
    if kind == "whisper_reader":
        model = joined(parents)
    else:
        small = {"vocabulary": 5, "hidden_size": 16, "heads": 2, "blocks": 1}
        model = SpeechLLMForConditionalGeneration.from_parts(*parents, connector={"type": kind} | small)
    inputs = prompt_of(model, *random_audio(model, [80, 34]))
    model.save_pretrained(tmp_path / "whole")
    parts = ("model.multi_modal_projector", "model.audio_tower", "model.language_model", "lm_head")
    for place in parts[:3]:
        devices = {part: "disk" if part == place else "cpu" for part in parts}
        loaded = SpeechLLMForConditionalGeneration.from_pretrained(
            tmp_path / "whole", device_map=devices, offload_folder=tmp_path / "offload"
        )
        assert any(parameter.device.type == "meta" for parameter in loaded.parameters())
        assert torch.equal(loaded(**inputs).connector.used, model(**inputs).connector.used)
        torch.testing.assert_close(loaded(**inputs).logits[:, -1], model(**inputs).logits[:, -1], **CLOSE)


# --- Vocabularies ---


def sentencepiece_tokenizer():
    pieces = ["<unk>", "\u2581hello", "\u2581", "h", "e", "l", "o", "w", "r", "d", "\u00c2"]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>", fuse_unk=True)), unk_token="<unk>"
    )


def test_tokens_are_found_in_vocabularies_of_every_kind(parents, tmp_path):
    found = reading_vocabulary(*parents, END)
    assert found == {token: [token] for token in range(END)}
    longer = make_tokenizer()
    ids = longer.get_vocab()
    whisper = tmp_path / "longer"
    added = Tokenizer.from_str(longer.backend_tokenizer.to_str())
    sentencepiece_tokenizer().save_pretrained(tmp_path / "pieces")
    PreTrainedTokenizerFast(tokenizer_object=added).save_pretrained(whisper)
    found = reading_vocabulary(str(whisper), str(tmp_path / "pieces"), END)
    assert found[ids["\u0120"]] == [2] and found[ids["w"]] == [7]  # a space, a letter
    assert ids["\u00c2"] not in found  # half a character, not the letter that stands for it
    assert found[ids["ll"]] == [5, 5] if "ll" in ids else True
    several = [tokens for tokens in found.values() if len(tokens) > 1]
    assert several


@torch.no_grad()
def test_several_tokens_are_their_mean_and_scaled_embeddings_are_scaled(parents, tmp_path):
    folder = tmp_path / "gemma"
    settings = {"vocab_size": len(TOKENIZER), "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    settings |= {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "pad_token_id": 0}
    gemma = scatter_weights(Gemma3ForCausalLM(Gemma3TextConfig(**settings)))
    gemma.save_pretrained(folder)
    TOKENIZER.save_pretrained(folder)
    connector = joined((parents[0], str(folder))).model.multi_modal_projector
    torch.testing.assert_close(connector.table.weight, gemma.get_input_embeddings()(torch.arange(END)))
    assert connector.table.weight.std() > 4 * gemma.get_input_embeddings().weight.std()

    few = make_tokenizer(CHATML)
    fewer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE(
        {piece: number for number, piece in enumerate(sorted(p for p in few.get_vocab() if len(p) == 1))}, []
    )))  # fmt: skip
    fewer.backend_tokenizer.pre_tokenizer = few.backend_tokenizer.pre_tokenizer
    fewer.backend_tokenizer.decoder = few.backend_tokenizer.decoder
    llm = scatter_weights(LlamaForCausalLM(text_config(vocab_size=len(fewer))))
    llm.save_pretrained(tmp_path / "letters")
    fewer.save_pretrained(tmp_path / "letters")
    connector = joined((parents[0], str(tmp_path / "letters"))).model.multi_modal_projector
    (token,) = TOKENIZER("hello", add_special_tokens=False).input_ids
    letters = llm.get_input_embeddings()(torch.tensor(fewer("hello").input_ids))
    place = connector.table.token_ids.tolist().index(token)
    torch.testing.assert_close(connector.table.weight[place], letters.mean(0))


def test_the_tokenizer_of_a_gguf_file(parents, tmp_path):
    folder = tmp_path / "gguf"
    folder.mkdir()
    write_gguf(folder / "tiny.gguf", TOKENIZER)
    settings = {"type": "whisper_reader", "decoder": parents[0], "frames_per_token": 4}
    model = SpeechLLMForConditionalGeneration.from_parts(
        parents[0], str(folder), settings, gguf_file="tiny.gguf", dtype=torch.float32
    )
    assert model.model.multi_modal_projector.table.token_ids.tolist() == list(range(END))


# --- What cannot work says so ---


def test_what_cannot_be_built_is_refused(parents):
    with pytest.raises(ValueError, match="language 'vi' is not one that this Whisper knows: de, en"):
        joined(parents, language="vi")
    assert joined(parents, language="de").config.connector["prompt"][1] == GERMAN
    with pytest.raises(ValueError, match="frames_per_token=7 does not divide the 40 frames"):
        joined(parents, frames_per_token=7)
    with pytest.raises(ValueError, match=r"decoder \(1 layers of width 16, .* does not fit the connector \(2 layers"):
        joined(parents, decoder_layers=2)
    llm = LlamaForCausalLM(text_config(vocab_size=len(TOKENIZER)))
    with pytest.raises(ValueError, match="whisper_reader needs the LLM's tokenizer.*without its id.*Name it"):
        SpeechLLMForConditionalGeneration.from_parts(
            parents[0], llm, {"type": "whisper_reader", "decoder": parents[0]}, audio_token_id=VOCABULARY
        )
    with pytest.raises(ValueError, match="3 tokens and 3 vectors for vocabulary=40"):
        reader()[0].load_vocabulary(torch.arange(3), torch.randn(3, 12))
    whisper = tiny_whisper()
    whisper.generation_config = GenerationConfig()
    whisper.save_pretrained(parents[0])
    with pytest.raises(ValueError, match="has no no_timestamps_token_id"):
        joined(parents)


def test_there_is_no_ctc_over_what_is_written_one_after_another(parents, tmp_path):
    model, processor = with_processor(parents)
    with pytest.raises(ValueError, match="'whisper_reader' writes its tokens one after another.*imitation"):
        model.model.get_ctc_logits(*random_audio(model, [80]))
    settings = {"use_cpu": True, "disable_tqdm": True}
    with pytest.raises(ValueError, match="'whisper_reader' writes its tokens one after another.*imitation"):
        SpeechAlignmentTrainer(
            model, SpeechAlignmentConfig(str(tmp_path), **settings), tone_rows(), processing_class=processor
        )
    with pytest.raises(ValueError, match="span_probability=0.5: .* not in time with the audio"):
        SpeechImitationTrainer(
            model,
            SpeechImitationConfig(str(tmp_path), span_probability=0.5, **settings),
            tone_rows(answered=True),
            processing_class=processor,
        )


def test_zero_3_is_refused_before_processes_wait_for_each_other(monkeypatch):
    monkeypatch.setattr(whisper_reader, "is_deepspeed_zero3_enabled", lambda: True)
    with pytest.raises(ValueError, match="ZeRO-3 .* Use FSDP2"):
        reader()[0](*clips([9]))


# --- Processor and training ---


def with_processor(parents, **changes):
    model = joined(parents, **changes)
    return model, SpeechLLMProcessor.from_parts(*parents, config=model.config)


def test_silence_behind_the_audio_is_heard_and_counted(parents, tmp_path):
    model, processor = with_processor(parents)
    assert processor.trailing_silence == 0.1
    processor.save_pretrained(tmp_path / "processor")
    samples = torch.randn(4000, generator=torch.Generator().manual_seed(0)).numpy()
    for one in (processor, SpeechLLMProcessor.from_pretrained(tmp_path / "processor")):
        inputs = one.audio_inputs([samples])
        frames = -(-(-(-len(samples) // 160) + 10) // 2)  # 10 ms each, and half of them behind the encoder
        assert inputs["num_audio_tokens"] == [one.audio_token_count(len(samples))] == [-(-frames // 4)]
        assert inputs["input_features_mask"].sum() == -(-len(samples) // 160) + 10
        silent = SpeechLLMProcessor.from_parts(*parents, config=model.config, trailing_silence=0.0)
        padded = silent.audio_inputs([F.pad(torch.tensor(samples), (0, 1600)).numpy()])
        assert (inputs["input_features"] == padded["input_features"]).all()


@pytest.mark.parametrize("silence", [-0.1, float("nan"), float("inf"), "0.5", None])
def test_a_silence_that_is_no_time_is_refused_by_the_processor(silence):
    with pytest.raises(ValueError, match="trailing_silence=.* must be 0 seconds or more"):
        SpeechLLMProcessor(
            WhisperFeatureExtractor(feature_size=8),
            TOKENIZER,
            audio_stages=[{"kernel": 3, "stride": 2, "padding": 1}],
            connector_stages=[{"kernel": 4, "stride": 4, "ceil": True}],
            trailing_silence=silence,
        )


@torch.no_grad()
def test_two_audios_in_a_batch_are_answered_as_alone(parents):
    model, processor = with_processor(parents)
    audios = [
        (torch.randn(size, generator=torch.Generator().manual_seed(size)).numpy(), 16000) for size in (9000, 4000)
    ]
    question = [{"type": "text", "text": "what is said here"}]
    chats = [[{"role": "user", "content": [{"type": "audio", "audio": one}, *question]}] for one in audios]
    options = {"tokenize": True, "return_dict": True, "add_generation_prompt": True}
    together = model(**processor.apply_chat_template(chats, **options, processor_kwargs={"padding": True}))
    for row, chat in enumerate(chats):
        alone = model(**processor.apply_chat_template(chat, **options))
        torch.testing.assert_close(together.logits[row, -1], alone.logits[0, -1], **CLOSE)
    assert together.connector.used.any(1).all()


def test_a_connector_in_place_of_another(parents):
    model = SpeechLLMForConditionalGeneration.from_parts(*parents, connector={"type": "stack_mlp", "stride": 4})
    processor = SpeechLLMProcessor.from_parts(*parents, config=model.config)
    model.replace_connector({"type": "whisper_reader", "decoder": parents[0], "frames_per_token": 8})
    processor.follow(model.config)
    expected = joined(parents, frames_per_token=8, trailing_silence=0.5)
    assert model.config.connector == expected.config.connector and processor.trailing_silence == 0.5
    assert processor.connector_stages == model.config.connector_stages
    for name, value in expected.model.multi_modal_projector.state_dict().items():
        assert torch.equal(model.model.multi_modal_projector.state_dict()[name], value), name
    model.replace_connector("stack_mlp")
    processor.follow(model.config)
    assert processor.trailing_silence == 0.0
    model.config.parents = None
    with pytest.raises(ValueError, match="without its id or folder"):
        model.replace_connector({"type": "whisper_reader", "decoder": parents[0]})


def test_imitation_takes_a_step(parents, tmp_path):
    model, processor = with_processor(parents)
    before = {name: value.clone() for name, value in model.model.multi_modal_projector.state_dict().items()}
    settings = {"use_cpu": True, "disable_tqdm": True, "max_steps": 1, "per_device_train_batch_size": 4}
    args = SpeechImitationConfig(str(tmp_path), learning_rate=1e-3, save_strategy="no", **settings)
    SpeechImitationTrainer(model, args, tone_rows(answered=True), processing_class=processor).train()
    after = model.model.multi_modal_projector.state_dict()
    for name in ("layers.0.encoder_attn.v_proj.weight", "embed_tokens.weight", "table.weight"):
        assert not torch.equal(before[name], after[name]), name
