"""Interleaving: what is chosen, what the LLM reads, and that every word and every kept audio token is there once."""

import random

import pytest
import torch
from factories_processing import BLOCKS, CHATML, CHATML_MARKED, RATE, make_processor, sine

from trainers.data.ctc_alignment import TokenTimes, split_words
from trainers.data.interleaving import (
    AudioSegment,
    TextSegment,
    at_speed,
    choose_spans,
    choose_speech,
    interleave,
    keep_mask,
    render_segments,
    segment_blocks,
    split_transcript,
)

TEXTS = [
    "turn off the radio in the kitchen",
    'Wait - "don\'t go", (he) said... twice!',
    " đánh thức tôi  lúc năm giờ\n",
    "星期一，巴黎天气怎么样？",
    "東京タワーへ行きます。",
    "เปิดวิทยุในครัว",
    "हिन्दी में बोलो।",
    "打开 Wi-Fi 吧",
    "say </s> and <|audio|> and <|im_end|> twice </s>",
]
TIMES = TokenTimes(first=0.08, step=0.16)


def words_of(text: str, rng: random.Random) -> tuple[list[dict], int]:
    """Words of a text with random times, pauses between, and audio tokens that last a little longer."""
    words, now = [], rng.uniform(0, 0.5)
    for start, end in split_words(text):
        length = rng.choice([0.02, 0.1, 0.5])
        words.append({"start": now, "end": now + length, "word": text[start:end]})
        now += length + rng.choice([0.0, 0.3])
    return words, int((now + 0.4) / TIMES.step)


def spoken_text(segments) -> str:
    return "".join(segment.text for segment in segments if isinstance(segment, TextSegment))


# --- What is chosen ---


@pytest.mark.parametrize("probability", [0.1, 0.3, 0.5, 0.8])
@pytest.mark.parametrize("lengths", [(1, 1), (1, 4), (2, 3), (5, 9)])
def test_the_expected_share_of_words_is_text(probability, lengths):
    rng = random.Random(0)
    for words in (11, 30):
        draws = [choose_spans(words, rng, probability, lengths) for _ in range(2000)]
        share = sum(last - first for spans in draws for first, last in spans) / words / len(draws)
        # 2000 roundings up or down, of at most half a word standard deviation each: 4 deviations
        assert share == pytest.approx(probability, abs=4 * 0.5 / words / 2000**0.5)


def test_spans_are_in_order_apart_and_leave_speech():
    rng = random.Random(1)
    for _ in range(2000):
        words, probability = rng.randint(0, 12), rng.uniform(0.01, 1)
        spans = choose_spans(words, rng, probability, (1, 4))
        bounds = [bound for span in spans for bound in span]
        assert bounds == sorted(set(bounds)) and all(0 <= bound <= words for bound in bounds)
        text = sum(last - first for first, last in spans)
        assert text <= max(words - 1, 0)
        assert int(words * probability) - 1 <= text <= int(words * probability) + 1


def test_spans_are_as_long_as_asked_where_there_is_room():
    rng = random.Random(2)
    drawn = [last - first for _ in range(500) for first, last in choose_spans(40, rng, 0.3, (3, 4))]
    assert set(drawn) == {1, 2, 3, 4} and sum(length < 3 for length in drawn) <= 500  # at most the last of each
    places = {first for _ in range(500) for first, _ in choose_spans(10, rng, 0.2, (2, 2))}
    assert places == set(range(9))


def test_probability_one_leaves_one_word_and_one_utterance_of_speech():
    rng = random.Random(3)
    left = set()
    for _ in range(200):
        text = {word for first, last in choose_spans(5, rng, 1.0, (1, 2)) for word in range(first, last)}
        left |= {frozenset(range(5)) - text}
    assert left == {frozenset([word]) for word in range(5)}
    heard = [choose_speech(3, rng, 1.0) for _ in range(200)]
    assert all(sum(speech) == 1 for speech in heard) and len(set(map(tuple, heard))) == 3
    assert choose_spans(1, rng, 1.0) == [] and choose_speech(1, rng, 1.0) == [True]


def test_probability_zero_is_off_and_draws_nothing():
    rng = random.Random(4)
    before = rng.getstate()
    assert choose_spans(9, rng, 0) == [] and choose_speech(3, rng, 0.0) == [True] * 3
    assert rng.getstate() == before


def test_utterances_are_text_with_the_given_probability():
    rng = random.Random(5)
    heard = [choose_speech(8, rng, 0.25) for _ in range(2000)]
    assert sum(map(sum, heard)) / 16000 == pytest.approx(0.75, abs=4 * (0.25 * 0.75 / 16000) ** 0.5)


def test_choices_are_a_function_of_the_random_state():
    def draw(key):
        rng = random.Random(key)
        return choose_spans(30, rng, 0.5), choose_speech(9, rng, 0.5)

    assert draw("7|0|3") == draw("7|0|3") != draw("7|1|3")


@pytest.mark.parametrize("probability", [-0.1, 1.5, float("nan")])
def test_a_probability_out_of_range_is_an_error(probability):
    for choose in (choose_spans, choose_speech):
        with pytest.raises(ValueError, match=r"Use 0 \(off\) to 1"):
            choose(5, random.Random(0), probability)


@pytest.mark.parametrize("lengths", [(0, 2), (3, 2)])
def test_impossible_span_lengths_are_an_error(lengths):
    with pytest.raises(ValueError, match="1 <= fewest <= most"):
        choose_spans(5, random.Random(0), 0.5, lengths)


# --- The transcript ---


def test_space_goes_to_the_word_after_it_and_punctuation_to_the_word_it_touches():
    assert split_transcript("Wait, (he) said: no. ", [{"word": word} for word in ["wait", "he", "said", "NO"]]) == [
        "Wait,",
        " (he)",
        " said:",
        " no. ",
    ]
    assert split_transcript("「你好」吗？", [{"word": word} for word in "你好吗"]) == ["「你", "好」", "吗？"]


@pytest.mark.parametrize("word", ["radio", "", " ", "the", "f"])
def test_words_that_are_not_the_transcripts_are_an_error(word):
    with pytest.raises(ValueError, match="Word 1 .* is not the next in the transcript, which goes on with ' off the'"):
        split_transcript("turn off the", [{"word": "turn"}, {"word": word}])
    with pytest.raises(ValueError, match="goes on with ' the' after its last word"):
        split_transcript("turn off the", [{"word": "turn"}, {"word": "off"}])


# --- Segments ---


@pytest.mark.parametrize("text", TEXTS)
def test_all_words_as_text_are_the_transcript_and_none_the_audio(text):
    words, tokens = words_of(text, random.Random(0))
    everything = interleave(text, words, [(0, len(words))], tokens, TIMES)
    assert everything == [TextSegment(text)]
    assert not any(keep_mask(everything, tokens))
    assert interleave(text, None, [], tokens, None) == [AudioSegment(0, tokens)]


@pytest.mark.parametrize("text", TEXTS)
def test_every_word_is_heard_or_read_and_never_both(text):
    rng = random.Random(text)
    for _ in range(100):
        words, tokens = words_of(text, rng)
        spans = choose_spans(len(words), rng, rng.random(), (1, 3))
        segments = interleave(text, words, spans, tokens, TIMES)
        parts, bounds = split_transcript(text, words), [-1.0]
        for left, right in zip(words, words[1:], strict=False):
            bounds.append((left["end"] + right["start"]) / 2)
        bounds.append(1e9)
        owners = [
            next(word for word in range(len(words)) if bounds[word] <= TIMES.centre(token) < bounds[word + 1])
            for token in range(tokens)
        ]
        asked = {word for first, last in spans for word in range(first, last)}
        keep, place, read = keep_mask(segments, tokens), 0, set()
        for segment in segments:  # walk through words and segments side by side
            if isinstance(segment, AudioSegment):
                heard = owners[segment.first : segment.last]
                assert heard and heard[0] >= place and not asked & set(range(place, heard[-1] + 1))
                while place < len(words) and place not in asked:
                    place += 1
            else:
                start = place
                while "".join(parts[start:place]) != segment.text:
                    place += 1
                read |= set(range(start, place))
        assert place == len(words)
        assert asked <= read
        assert keep == [owner not in asked for owner in owners]


def test_a_token_belongs_to_the_word_in_whose_time_its_centre_lies():
    words = [
        {"start": 0.5, "end": 0.6, "word": "one"},
        {"start": 1.0, "end": 1.4, "word": "two"},
        {"start": 1.4, "end": 1.8, "word": "three"},
    ]
    times = TokenTimes(first=0.1, step=0.2)  # the pause ends for "one" at 0.8, centres are at 0.7 and 0.9
    segments = interleave("one two three", words, [(1, 2)], 12, times)
    assert segments == [AudioSegment(0, 4), TextSegment(" two"), AudioSegment(7, 12)]
    assert keep_mask(segments, 12) == [True] * 4 + [False] * 3 + [True] * 5
    assert render_segments(segments, "#") == "#### two#####"


def test_queries_of_one_window_are_kept_or_left_out_together():
    words = [{"start": 0.0, "end": 0.5, "word": "one"}, {"start": 0.5, "end": 1.2, "word": "two"}]
    segments = interleave("one two", words, [(1, 2)], 12, TokenTimes(first=0.15, step=0.3, group=3))
    assert segments == [AudioSegment(0, 6), TextSegment(" two")]


def test_short_words_are_text_without_a_token_and_speech_without_a_token_is_text_too():
    words = [
        {"start": 0.0, "end": 0.9, "word": "long"},
        {"start": 0.9, "end": 0.91, "word": "a"},
        {"start": 0.91, "end": 2.0, "word": "way"},
    ]
    times = TokenTimes(first=0.15, step=0.3)
    text = "long a way"
    assert interleave(text, words, [(1, 2)], 6, times) == [AudioSegment(0, 3), TextSegment(" a"), AudioSegment(3, 6)]
    assert interleave(text, words, [(0, 1), (2, 3)], 6, times) == [TextSegment(text)]


@pytest.mark.parametrize("spans", [[(2, 1)], [(0, 2), (1, 3)], [(-1, 1)], [(2, 4)]])
def test_spans_that_make_no_sense_are_an_error(spans):
    words, tokens = words_of("one two three", random.Random(0))
    with pytest.raises(ValueError, match="in order, apart, and within the 3 words"):
        interleave("one two three", words, spans, tokens, TIMES)


def test_times_that_are_not_the_audios_are_an_error():
    words, tokens = words_of("one two three", random.Random(0))
    for wrong in (words[::-1], at_speed(words, 0.001)):
        text = " ".join(word["word"] for word in wrong)
        with pytest.raises(ValueError, match="not in order within the audio"):
            interleave(text, wrong, [(0, 1)], tokens, TIMES)


def test_word_times_follow_the_speed():
    words = [{"start": 0.9, "end": 1.8, "word": "one"}]
    assert at_speed(words, 0.9) == [{"start": pytest.approx(1.0), "end": pytest.approx(2.0), "word": "one"}]


# --- The prompt ---


@pytest.mark.parametrize("template", [CHATML, CHATML_MARKED, BLOCKS])
@pytest.mark.parametrize("text", TEXTS)
def test_the_prompt_has_a_placeholder_per_kept_token_and_the_rest_as_text(text, template):
    processor = make_processor(chat_template=template)
    samples = sine(3.0)
    tokens = processor.audio_token_count(len(samples))
    words, _ = words_of(text, random.Random(0))
    words = at_speed(words, words[-1]["end"] / 2.9)
    segments = interleave(text, words, choose_spans(len(words), random.Random(0), 0.5), tokens, TokenTimes(0.04, 0.08))
    assert 0 < sum(keep_mask(segments, tokens)) < tokens
    chat = [
        {"role": "user", "content": [{"type": "text", "text": "Repeat: "}, *segment_blocks(segments)]},
        {"role": "assistant", "content": [{"type": "text", "text": text}]},
    ]
    whole = [
        {"role": "user", "content": [{"type": "text", "text": "Repeat: "}, {"type": "audio"}]},
        {"role": "assistant", "content": [{"type": "text", "text": text}]},
    ]
    options = {"tokenize": True, "return_dict": True, "return_assistant_tokens_mask": True}
    inputs = processor.apply_chat_template(chat, **options)
    heard = processor.apply_chat_template(whole, audio=[(samples, RATE)], **options)
    ids = inputs["input_ids"][0]
    assert (ids == processor.audio_token_id).sum() == sum(keep_mask(segments, tokens))
    assert "input_features" not in inputs
    read = processor.tokenizer.decode(ids).replace("<|im_start|>", "").replace("<|im_end|>", "")
    for segment in segments:
        assert not isinstance(segment, TextSegment) or segment.text.replace("<|im_end|>", "") in read
    answers = [batch["input_ids"][batch["assistant_masks"] == 1].tolist() for batch in (inputs, heard)]
    assert answers[0] == answers[1]


def test_pieces_and_whole_audios_mix_in_a_batch():
    processor = make_processor()
    samples = sine(1.0)
    count = processor.audio_token_count(len(samples))
    chats = [
        [{"role": "user", "content": [{"type": "audio", "tokens": 2}, {"type": "text", "text": " b"}]}],
        [{"role": "user", "content": [{"type": "audio"}, {"type": "audio", "tokens": 0}]}],
    ]
    inputs = processor.apply_chat_template(chats, audio=[(samples, RATE)], tokenize=True, return_dict=True)
    assert (inputs["input_ids"] == processor.audio_token_id).sum(1).tolist() == [2, count]
    alone = processor(audio=[(samples, RATE)], return_tensors="pt")
    assert torch.equal(inputs["input_features"], alone["input_features"])
    for tokens in (-1, 1.5, "2"):
        block = {"type": "audio", "tokens": tokens}
        with pytest.raises(ValueError, match="must be a number from 0 up"):
            processor.apply_chat_template([{"role": "user", "content": [block]}], tokenize=True)
    with pytest.raises(ValueError, match="Keep one of them"):
        block = {"type": "audio", "tokens": 2, "path": "a.wav"}
        processor.apply_chat_template([{"role": "user", "content": [block]}], tokenize=True)
