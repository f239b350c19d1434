"""Word times: the CTC path, words in several scripts, the sources of a CTC, and the dataset with its shards."""

import json
import random
from itertools import product
from types import SimpleNamespace

import datasets
import pytest
import torch
from conftest import WAVEFORM, feature_extractor, text_config, tiny_speechllm
from factories_processing import RATE, make_tokenizer, sine
from transformers import (
    Wav2Vec2Config,
    Wav2Vec2CTCTokenizer,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2ForCTC,
    Wav2Vec2Processor,
)

from modeling_speechllm.configuration_connectors import connector_config
from processing_speechllm import SpeechLLMProcessor
from trainers.data.ctc_alignment import (
    AlignmentError,
    TokenTimes,
    align_tokens,
    align_words,
    split_words,
    text_tokens,
    token_times,
)
from trainers.data.word_times import CheckpointCTC, ConnectorCTC, add_word_times, align_rows

TIMES = TokenTimes(first=0.05, step=0.1)
SCRIPTS = {
    "turn off the radio": ["turn", "off", "the", "radio"],
    'Wait - "don\'t go", (he) said...': ["Wait", "don't", "go", "he", "said"],
    "  đánh thức\ttôi\n": ["đánh", "thức", "tôi"],
    "हिन्दी में बोलो।": ["हिन्दी", "में", "बोलो"],
    "라디오를 꺼 주세요": ["라디오를", "꺼", "주세요"],
    "星期一，巴黎。": ["星", "期", "一", "巴", "黎"],
    "東京タワーへ": ["東", "京", "タ", "ワ", "ー", "へ"],
    "เปิดน้ำ": ["เ", "ปิ", "ด", "น้", "ำ"],
    "打开 Wi-Fi 吧": ["打", "开", "Wi-Fi", "吧"],
    "iPhone手机": ["iPhone", "手", "机"],
    "... !": [],
    "": [],
}


# --- The path ---


def best_path(log_probabilities: torch.Tensor, targets: list[int], blank: int) -> list[int]:
    """The best of all label sequences that collapse to `targets`."""
    frames, vocabulary = log_probabilities.shape
    best, best_score = [], -float("inf")
    for path in product(range(vocabulary), repeat=frames):
        heard = [label for place, label in enumerate(path) if place == 0 or label != path[place - 1]]
        if [label for label in heard if label != blank] == targets:
            score = sum(float(log_probabilities[frame, label]) for frame, label in enumerate(path))
            if score > best_score:
                best, best_score = list(path), score
    return best


def test_a_token_that_the_ctc_cannot_write_has_no_time():
    log_probabilities = torch.randn(30, 6, generator=torch.Generator().manual_seed(0)).log_softmax(-1)
    log_probabilities[:, 4] = -torch.inf
    for tokens in ([(1, 0, 5), (4, 6, 10)], [(4, 0, 5), (1, 6, 10)]):
        with pytest.raises(AlignmentError, match="cannot write some of the transcript's tokens.*load_vocabulary"):
            align_words("hello said", tokens, log_probabilities, 0, TIMES)
    once = torch.full((2, 3), -torch.inf)
    once[0, 1], once[1, 2] = 0.0, 0.0  # each can be written, but not in this order
    with pytest.raises(AlignmentError, match="No path"):
        align_tokens(once, [2, 1], 0)


@pytest.mark.parametrize("blank", [0, 2])
@pytest.mark.parametrize("targets", [[1], [1, 3], [3, 3], [1, 3, 1], [1, 1, 3]])
def test_the_path_is_the_best_of_all_paths(targets, blank):
    for seed in range(8):
        generator = torch.Generator().manual_seed(seed)
        log_probabilities = torch.randn(5, 4, generator=generator).mul(2).log_softmax(-1)
        labels = [blank] * 5
        for target, (first, last) in zip(targets, align_tokens(log_probabilities, targets, blank), strict=True):
            labels[first:last] = [target] * (last - first)
        assert labels == best_path(log_probabilities, targets, blank)


def test_as_many_frames_as_needed_are_enough_and_one_fewer_is_an_error():
    uniform = torch.zeros(4, 3).log_softmax(-1)
    assert align_tokens(uniform, [1, 1, 2], blank=0) == [(0, 1), (2, 3), (3, 4)]
    with pytest.raises(AlignmentError, match="3 CTC frames cannot hold 3 tokens: 4 are needed"):
        align_tokens(uniform[:3], [1, 1, 2], blank=0)
    assert align_tokens(uniform, [], blank=0) == []


@pytest.mark.parametrize("targets", [[1, 0], [3], [-1]])
def test_a_target_that_ctc_cannot_emit_is_an_error(targets):
    with pytest.raises(ValueError, match="without the blank 0"):
        align_tokens(torch.zeros(6, 3), targets, blank=0)


# --- Words ---


@pytest.mark.parametrize("text", SCRIPTS)
def test_words_are_what_is_spoken_in_any_script(text):
    assert [text[start:end] for start, end in split_words(text)] == SCRIPTS[text]


def emitted(tokens: list[int], frames: list[int], vocabulary: int, blank: int) -> torch.Tensor:
    """Log-probabilities of a CTC that surely emits each token at one frame."""
    logits = torch.zeros(frames[-1] + 3, vocabulary)
    logits[:, blank] = 9.0
    for token, frame in zip(tokens, frames, strict=True):
        logits[frame, token], logits[frame, blank] = 9.0, 0.0
    return logits.log_softmax(-1)


@pytest.mark.parametrize("text", [text for text in SCRIPTS if SCRIPTS[text]])
def test_a_word_lasts_from_its_first_token_to_its_last(text):
    tokenizer = make_tokenizer()
    tokens = text_tokens(tokenizer, text)
    assert [token for token, _, _ in tokens] == tokenizer(text, add_special_tokens=False)["input_ids"]
    frames = [2 * index + 1 for index in range(len(tokens))]
    log_probabilities = emitted([token for token, _, _ in tokens], frames, len(tokenizer), tokenizer.eos_token_id)
    words = align_words(text, tokens, log_probabilities, tokenizer.eos_token_id, TIMES)
    assert [word["word"] for word in words] == SCRIPTS[text]
    starts = [start for start, _ in split_words(text)]
    for index, word in enumerate(words):
        after = starts[index + 1] if index + 1 < len(starts) else len(text)
        own = []
        for frame, (_, first, last) in zip(frames, tokens, strict=True):
            letters = [place for place in range(first, last) if not text[place].isspace()]
            if letters and (starts[index] if index else 0) <= letters[0] < after:
                own.append(frame)
        assert (word["start"], word["end"]) == pytest.approx((own[0] * 0.1, own[-1] * 0.1 + 0.1))


def test_words_that_share_a_token_are_one_word():
    log_probabilities = emitted([1, 2], [1, 4], 3, 0)
    words = align_words("你好吗", [(1, 0, 2), (2, 2, 3)], log_probabilities, 0, TIMES)
    assert [word["word"] for word in words] == ["你好", "吗"]
    assert [(word["start"], word["end"]) for word in words] == [pytest.approx((0.1, 0.2)), pytest.approx((0.4, 0.5))]


def test_spelled_special_tokens_are_aligned_as_text():
    tokenizer = make_tokenizer()
    tokens = text_tokens(tokenizer, "say </s> now")
    assert tokenizer.eos_token_id not in [token for token, _, _ in tokens]


def test_a_word_without_any_token_is_an_error():
    with pytest.raises(AlignmentError, match="'1999' has no token"):
        align_words("in 1999 he", [(1, 0, 2), (2, 8, 10)], torch.zeros(9, 3).log_softmax(-1), 0, TIMES)
    with pytest.raises(AlignmentError, match="no words"):
        align_words("...", [(1, 0, 3)], torch.zeros(9, 3).log_softmax(-1), 0, TIMES)


# --- Times of audio tokens ---


def seen(stages: list[dict], token: int) -> tuple[int, int]:
    """The samples (first, last) that a token sees."""
    low = high = token
    for stage in reversed(stages):
        low, high = low // stage.get("tokens", 1), high // stage.get("tokens", 1)
        low = low * stage["stride"] - stage.get("padding", 0)
        high = high * stage["stride"] - stage.get("padding", 0) + stage["kernel"] - 1
    return low, high


CONNECTORS = ["ultravox", "blsp", "salmonn", "granite", {"type": "conformer_ctc", "hidden_size": 16, "heads": 2}]


def processor_of(connector, audio: str) -> SpeechLLMProcessor:
    tokenizer, extractor = make_tokenizer(), feature_extractor(audio)
    size = {"audio_window": 1500} if audio != "whisper" else {}
    model_config = tiny_speechllm(audio, audio_token_id=len(tokenizer), **size).config
    stages = connector_config(connector).stages(model_config.audio_window)
    return SpeechLLMProcessor.from_parts(extractor, tokenizer, model_config, connector_stages=stages)


@pytest.mark.parametrize("audio", ["wav2vec2-layer-norm", "w2v-bert"])
@pytest.mark.parametrize("connector", CONNECTORS, ids=str)
def test_a_tokens_time_is_the_middle_of_the_samples_it_sees(connector, audio):
    processor = processor_of(connector, audio)
    stages = [*processor.feature_stages, *processor.audio_stages, *processor.connector_stages]
    times = token_times(processor)
    for token in range(7):
        low, high = seen(stages, token)
        assert times.centre(token) == pytest.approx(((low + high) / 2 + 0.5) / RATE)
    tokens = processor.audio_token_count(30 * RATE)
    assert abs(times.span(0, tokens)[1] - 30) <= 2 * times.step  # the last window may be partly filled


def test_a_connector_with_a_fixed_number_of_tokens_has_no_token_times():
    with pytest.raises(ValueError, match="256 tokens of each window of 1500 encoder frames"):
        token_times(processor_of("whisper_qformer", "w2v-bert"))


# --- Sources of a CTC ---


def connector_ctc() -> ConnectorCTC:
    tokenizer = make_tokenizer()
    text = text_config(vocab_size=len(tokenizer), pad_token_id=tokenizer.eos_token_id)
    model = tiny_speechllm(text=text, connector={"type": "stack_mlp", "stride": 1}, audio_token_id=len(tokenizer))
    return ConnectorCTC(model, SpeechLLMProcessor.from_parts(feature_extractor("whisper"), tokenizer, model.config))


def rows() -> list[dict]:
    """Three rows that can be aligned, one with words of its own, and one for each reason."""
    given = [{"start": 0.0, "end": 1.0, "word": "given"}]
    texts = ["hello world", "what is said here", "transcribe", "given", "...", "too long " * 20, "no audio"]
    return [
        {
            "id": str(index),
            "audio": {"bytes": b"" if text == "no audio" else None, "array": None, "path": None}
            if text == "no audio"
            else {"array": sine(0.5 + 0.3 * index, frequency=200.0 + 50 * index), "sampling_rate": RATE},
            "text": text,
            "words": given if text == "given" else None,
        }
        for index, text in enumerate(texts)
    ]


def test_rows_get_words_or_a_reason():
    aligned = list(align_rows(rows(), connector_ctc()))
    assert [row["words_missing"] for row in aligned] == [*[None] * 4, "no words", "too few frames", "audio"]
    assert aligned[3]["words"] == rows()[3]["words"]
    for row in aligned[:3]:
        assert [word["word"] for word in row["words"]] == row["text"].split()
        bounds = [bound for word in row["words"] for bound in (word["start"], word["end"])]
        assert bounds == sorted(bounds) and bounds[-1] < 2.0
    assert all(row["words"] is None for row in aligned[4:])


def test_word_times_of_a_batch_are_those_of_its_members():
    aligner = connector_ctc()
    alone, together = ([row["words"] for row in align_rows(rows(), aligner, size)] for size in (1, 7))
    assert alone == together


def test_joined_utterances_are_refused():
    with pytest.raises(ValueError, match="before utterances are joined"):
        list(align_rows([{"id": "7", "audio": [b""], "text": ["a", "b"]}], connector_ctc()))


def checkpoint_ctc(folder) -> CheckpointCTC:
    letters = ["<pad>", "<s>", "</s>", "<unk>", "|", *"ADEHLNORSTUW'"]
    (folder / "vocab.json").write_text(json.dumps({letter: index for index, letter in enumerate(letters)}))
    processor = Wav2Vec2Processor(Wav2Vec2FeatureExtractor(), Wav2Vec2CTCTokenizer(folder / "vocab.json"))
    torch.manual_seed(0)
    config = Wav2Vec2Config(**WAVEFORM, vocab_size=len(letters), pad_token_id=0)
    return CheckpointCTC(Wav2Vec2ForCTC(config).eval(), processor)


def test_a_checkpoints_characters_are_found_in_either_case_and_the_missing_counted(tmp_path):
    aligner = checkpoint_ctc(tmp_path)
    text = " Hello,  world! "
    spelled = aligner.processor.tokenizer.convert_ids_to_tokens([token for token, _, _ in aligner.tokens(text)])
    assert "".join(spelled) == "HELLO|WORLD"
    assert "".join(text[first:last] for _, first, last in aligner.tokens(text)) == "Hello world"
    assert not aligner.skipped
    audio = {"array": sine(1.0), "sampling_rate": RATE}
    first, second = align_rows([{"audio": audio, "text": text}, {"audio": audio, "text": "the 7 words"}], aligner)
    assert [word["word"] for word in first["words"]] == ["Hello", "world"]
    assert 0 <= first["words"][0]["start"] < first["words"][1]["end"] <= 1.0
    assert second["words_missing"] == "not in the vocabulary" and aligner.skipped == {"7": 1}


# --- The dataset ---


class Interrupted(Exception):
    pass


def counting_aligner(stop_after: int | None = None) -> SimpleNamespace:
    """The connector's CTC, that counts what it hears and can be interrupted."""
    inner, heard = connector_ctc(), []

    def hear(audio):
        if stop_after is not None and len(heard) >= stop_after:
            raise Interrupted
        heard.extend(audio)
        return inner(audio)

    class Counting:
        load, tokens, blank, name = inner.load, inner.tokens, inner.blank, "tiny"
        __call__ = staticmethod(hear)

    return SimpleNamespace(aligner=Counting(), heard=heard)


def plain_rows(count: int = 7) -> datasets.Dataset:
    texts = ["hello world", "...", "what is said here"]
    return datasets.Dataset.from_list(
        [
            {
                "audio": {"array": sine(0.6, frequency=300.0 + 9 * index), "sampling_rate": RATE},
                "text": texts[index % 3],
            }
            for index in range(count)
        ]
    )


def test_an_interrupted_call_goes_on_and_gives_the_same(tmp_path):
    whole, missing = add_word_times(plain_rows(), counting_aligner().aligner, tmp_path / "a", 2, shard_size=3)
    assert missing == {"no words": 2}
    assert [row["words"] is None for row in whole] == [index % 3 == 1 for index in range(7)]
    with pytest.raises(Interrupted):
        add_word_times(plain_rows(), counting_aligner(stop_after=5).aligner, tmp_path / "b", 2, shard_size=3)
    resumed = counting_aligner()
    again, missing = add_word_times(plain_rows(), resumed.aligner, tmp_path / "b", 2, shard_size=3)
    assert len(resumed.heard) == 4  # the first shard of three was whole
    assert again["words"] == whole["words"] and missing == {"no words": 2}


def test_written_word_times_are_read_and_those_of_other_rows_refused(tmp_path):
    first, _ = add_word_times(plain_rows(), counting_aligner().aligner, tmp_path)
    later = counting_aligner()
    second, _ = add_word_times(plain_rows(), later.aligner, tmp_path)
    assert not later.heard and first["words"] == second["words"]
    with pytest.raises(ValueError, match="word times of another rows, texts"):
        add_word_times(plain_rows(6), later.aligner, tmp_path)
    texts = list(plain_rows()["text"])
    random.Random(0).shuffle(texts)
    changed = plain_rows().remove_columns("text").add_column("text", texts)
    with pytest.raises(ValueError, match="word times of another texts"):
        add_word_times(changed, later.aligner, tmp_path)
