"""Answers among labels against brute force over all labels; scores and agreement against plain forward passes."""

import math

import pytest
import torch
from factories_training import tiny_parts, tone

from processing_speechllm.chat_messages import instruction_chat
from speechllm.evaluation.answering import Answerer, TooLong, agreement
from speechllm.evaluation.constrained import build_trie, label_tokens

LABELS = ["hello", "hello world", "hello world is", "what", "the audio", "said here", "transcribe"]
RATE = 16000


def make_answerer(seed: int, **changes) -> Answerer:
    model, processor = tiny_parts()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():  # flat distributions, so that labels compete to their last token
        model.lm_head.weight.copy_(torch.randn(model.lm_head.weight.shape, generator=generator) * 0.05)
    end = processor.tokenizer.convert_tokens_to_ids("<|im_end|>")
    model.generation_config.eos_token_id = [processor.tokenizer.eos_token_id, end]
    return Answerer(model, processor, **{"max_new_tokens": 8, **changes})


def prompts(answerer: Answerer, count: int = 4) -> dict:
    """Encoded prompts of one or two audios in turn, with the features beside the embeddings, for brute force."""
    chats = [instruction_chat([None] * (1 + place % 2), f"what is said {place}") for place in range(count)]
    audio = [(tone(place, 0.3 + 0.1 * place), RATE) for place in range(count + count // 2)]
    features = answerer.processor(text=answerer.processor.audio_token * len(audio), audio=audio)
    names = ("input_features", "input_features_mask")
    return answerer.encode(chats, audio) | {f"raw_{name}": features[name] for name in names}


def asked(encoded: dict) -> dict:
    return {name: value for name, value in encoded.items() if not name.startswith("raw_")}


@torch.no_grad()
def brute_force(answerer: Answerer, encoded: dict, row: int, audios: slice, tokens: list[int]) -> list[float]:
    """Log-probability of each token after the prompt of one row, by forward passes of the whole model."""
    prompt = encoded["input_ids"][row][encoded["attention_mask"][row].bool()]
    ids = torch.cat([prompt, torch.tensor(tokens)])[None]
    logits = answerer.model(
        input_ids=ids,
        input_features=encoded["raw_input_features"][audios],
        input_features_mask=encoded["raw_input_features_mask"][audios],
    ).logits[0]
    scores = logits.log_softmax(-1)[len(prompt) - 1 : -1]
    return [float(scores[place, token]) for place, token in enumerate(tokens)]


def slices(count: int) -> list[slice]:
    places, start = [], 0
    for row in range(count):
        places.append(slice(start, start + 1 + row % 2))
        start += 1 + row % 2
    return places


def greedy_by_hand(spelled: dict[str, list[int]], score) -> str:
    """The label that the best allowed token, step by step, leads to."""
    left, step = dict(spelled), 0
    while len(left) > 1 or step < len(next(iter(left.values()))):
        options = {tokens[step] for tokens in left.values()}
        best = max(options, key=lambda token: score([*next(iter(left.values()))[:step], token])[-1])
        left = {label: tokens for label, tokens in left.items() if tokens[step] == best}
        step += 1
    return next(iter(left))


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_greedy_and_beams_choose_what_brute_force_does(seed):
    answerer = make_answerer(seed)
    encoded = prompts(answerer)
    spelled = {label: [*label_tokens(answerer.tokenizer, label), answerer.end] for label in LABELS}
    wide = make_answerer(seed, num_beams=len(LABELS))
    greedy = answerer.answer(asked(encoded), [LABELS] * 4)
    beams = wide.answer(asked(encoded), [LABELS] * 4)
    for row, audios in enumerate(slices(4)):

        def score(tokens, row=row, audios=audios):
            return brute_force(answerer, encoded, row, audios, tokens)

        totals = {label: math.fsum(score(tokens)) for label, tokens in spelled.items()}
        assert beams[row].text == max(totals, key=totals.get)
        assert greedy[row].text == greedy_by_hand(spelled, score)
        assert greedy[row].finish_reason == beams[row].finish_reason == "stop"
        found = answerer.label_scores(answerer.embeddings(encoded)[row], LABELS, batch_size=3)
        assert found == pytest.approx(totals, abs=1e-3)  # float32, other padding


def test_each_prompt_has_its_own_labels():
    answerer = make_answerer(0)
    encoded = prompts(answerer)
    labels = [["hello"], ["hello world", "hello"], ["what"], ["said here", "the audio"]]
    for reply, options in zip(answerer.answer(asked(encoded), labels), labels, strict=True):
        assert reply.text in options
    wide = make_answerer(0, num_beams=5).answer(asked(encoded), labels)
    assert [reply.text for reply in wide][::2] == ["hello", "what"]


def test_a_label_that_begins_another_can_win_and_lose():
    answerer = make_answerer(0)
    encoded = prompts(answerer, 2)
    chosen = set()
    for push in (-4.0, 4.0):
        bias = torch.zeros(answerer.model.lm_head.out_features)
        bias[answerer.end] = push
        handle = answerer.model.lm_head.register_forward_hook(lambda module, inputs, output, bias=bias: output + bias)
        chosen |= {reply.text for reply in answerer.answer(asked(encoded), [["hello", "hello world"]] * 2)}
        handle.remove()
    assert chosen == {"hello", "hello world"}


def test_labels_that_cannot_be_closed_or_spelled_are_refused():
    with pytest.raises(ValueError, match="end token 7"):
        build_trie([[1, 7, 2]], end=7)
    with pytest.raises(ValueError, match="no labels"):
        build_trie([], end=7)
    answerer = make_answerer(0)
    with pytest.raises(ValueError, match="cannot be an answer"):
        label_tokens(answerer.tokenizer, "")


def test_agreement_is_what_two_forward_passes_say():
    answerer = make_answerer(1)
    encoded = prompts(answerer)
    tokens = [answerer.answer_tokens(text) for text in ("hello", "the audio", "what is", "said")]
    heard = answerer.log_probabilities(answerer.embeddings(encoded), tokens)
    for row, audios in enumerate(slices(4)):
        expected = brute_force(answerer, encoded, row, audios, tokens[row])
        got = [float(heard[row][place, token]) for place, token in enumerate(tokens[row])]
        assert got == pytest.approx(expected, abs=1e-3)
    assert agreement(heard[0], heard[0]) == {"tokens": len(tokens[0]), "kl": 0.0, "top1": len(tokens[0])}
    two = torch.tensor([[0.5, 0.5], [1.0, 0.0]]).log(), torch.tensor([[0.9, 0.1], [1.0, 0.0]]).log()
    by_hand = 0.5 * math.log(0.5 / 0.9) + 0.5 * math.log(0.5 / 0.1)
    found = agreement(two[1], two[0])
    assert found["kl"] == pytest.approx(by_hand, abs=1e-6) and found["top1"] == 2


def test_a_batch_answers_what_its_members_answer_alone():
    answerer = make_answerer(2)
    chats = [instruction_chat([None], f"what is said here {'now ' * place}") for place in range(3)]
    audio = [(tone(place, 0.3 + 0.2 * place), RATE) for place in range(3)]
    together = answerer.answer(answerer.encode(chats, audio))
    for chat, one, reply in zip(chats, audio, together, strict=True):
        assert answerer.answer(answerer.encode([chat], [one])) == [reply]


def test_a_prompt_beyond_the_positions_says_both_numbers():
    answerer = make_answerer(0, max_new_tokens=500)
    with pytest.raises(TooLong, match="up to 500 are to follow, but the LLM has 512 positions"):
        prompts(answerer)
