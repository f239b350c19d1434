"""Metrics of evaluation against values worked out by hand, published examples and the libraries' own corpus scores."""

import json

import numpy as np
import pytest
import sacrebleu

from speechllm.evaluation import behaviour, forms, languages, metrics, packages, tables
from speechllm.evaluation.bootstrap import Difference, Estimate, Resamples, difference
from speechllm.evaluation.metrics import Metric
from speechllm.evaluation.normalise import (
    answer_normalised,
    answer_tokens,
    count_words,
    loose,
    whisper_normalised,
)

CANDIDATES = ["en", "de", "es", "zh", "vi", "id"]


def overall(metric: Metric) -> float:
    return float(metric.value(metric.statistics.sum(0)))


def named(found: list[Metric]) -> dict[str, float]:
    return {metric.name: overall(metric) for metric in found}


# Normalisers


@pytest.mark.parametrize(
    ("text", "language", "expected"),
    [
        ("Mr. Smith's colour isn't grey!", "en", "mister smith is color is not gray"),
        ("She paid $20 million for twenty-five books.", "en-GB", "she paid $20000000 for 25 books"),
        ("[noise] Hmm, I'm (laughs) fine", "en", "i am fine"),
        ("Grüß Gott, Herr Müller!", "de", "grüß gott herr müller"),
        ("打开，灯。", "zh-CN", "打 开 灯"),
        ("Ya voy...", None, "ya voy"),
    ],
)
def test_whisper_s_normaliser_gives_what_its_paper_describes(text, language, expected):
    assert whisper_normalised(text, language) == expected


@pytest.mark.parametrize(
    ("text", "language", "expected"),
    [
        ("The Norman dynasty's a.", "en", ["norman", "dynastys"]),
        ("der Rhein, die Donau", "de", ["rhein", "donau"]),
        ("los Alpes", "es", ["alpes"]),
        ("cái bàn của tôi", "vi", ["bàn", "tôi"]),
        ("1990年在NBA打球", "zh", ["1990", "年", "在", "nba", "打", "球"]),
        ("the Rhein", "fr", ["the", "rhein"]),
    ],
)
def test_answers_are_normalised_as_mlqa_does(text, language, expected):
    assert answer_tokens(text, language) == expected
    assert answer_normalised(text, language) == " ".join(expected)


def test_words_are_counted_by_character_where_there_are_no_spaces():
    assert count_words("turn on the light", "en") == 4
    assert count_words("打开灯。", "zh") == 3
    assert loose(" “Door or Window.” ") == "door or window"


# Transcribing


def test_word_and_character_errors_are_those_counted_by_hand():
    found = named(
        metrics.error_rates(
            [["the cat sat on the mat"], ["打开灯"]], ["The cat sat on mat!", "打关灯吧"], ["en", "zh"]
        )
    )
    # "the" deleted of 6 words; one character replaced and one added of 3
    assert found["wer"] == pytest.approx(100 * (1 + 2) / (6 + 3))
    # "the " deleted of 22 characters; 2 of 3
    assert found["cer"] == pytest.approx(100 * (4 + 2) / (22 + 3))


def test_an_empty_answer_loses_every_word_and_of_several_references_the_nearest_counts():
    assert named(metrics.error_rates([["one two three"]], [""], [None]))["wer"] == 100
    assert named(metrics.error_rates([["a b c d", "a b x"]], ["a b c"], [None]))["wer"] == 25


# Translating


@pytest.mark.parametrize("language", ["de", "zh", "ja"])
def test_bleu_and_chrf_are_sacrebleu_s_with_its_signature(language):
    references = {
        "de": ["Schalte das Licht in der Küche ein.", "Wie wird das Wetter morgen in Wien?"],
        "zh": ["请打开厨房里的灯，谢谢你。", "明天维也纳的天气怎么样？"],
        "ja": ["台所の明かりをつけてください。", "明日のウィーンの天気はどうですか。"],
    }[language]
    answers = [references[0].replace("。", ""), references[1][:-3]]
    found = {
        metric.name: metric
        for metric in metrics.translation_scores([[r] for r in references], answers, [language] * 2)
    }
    tokenize = {"de": "13a", "zh": "zh", "ja": "char"}[language]
    bleu = sacrebleu.BLEU(tokenize=tokenize)
    assert overall(found["bleu"]) == pytest.approx(bleu.corpus_score(answers, [references]).score)
    assert overall(found["chrf"]) == pytest.approx(sacrebleu.CHRF().corpus_score(answers, [references]).score)
    assert str(bleu.get_signature()) in found["bleu"].note and f"tok:{tokenize}" in found["bleu"].note


def test_rows_may_have_different_numbers_of_references():
    references = [["the cat sat on the mat", "a cat sat on the mat"], ["it is raining in the town"]]
    answers = ["a cat sat on a mat", "it is raining in town"]
    found = named(metrics.translation_scores(references, answers, ["en", "en"]))
    streams = [[options[0] for options in references], [references[0][1], None]]
    assert found["bleu"] == pytest.approx(sacrebleu.corpus_bleu(answers, streams).score)


def test_bleu_over_languages_of_different_tokenizers_has_no_value():
    found = metrics.translation_scores(
        [["guten Tag dir heute"], ["你好吗今天"]], ["guten Tag dir heute", "你好吗今天"], ["de", "zh"]
    )
    bleu = next(metric for metric in found if metric.name == "bleu")
    assert np.isnan(overall(bleu))
    assert [float(bleu.value(row)) for row in bleu.statistics] == pytest.approx([100, 100])


# Questions


def test_squad_s_f1_and_exact_match_by_hand():
    # Two of three tokens common ("in" is no article): precision 2/3, recall 2/2.
    assert metrics.token_f1("Denver Broncos", "in Denver Broncos", "en") == pytest.approx(0.8)
    assert metrics.token_f1("the", "a", "en") == 1  # nothing is left of either
    assert metrics.token_f1("Berlin", "the", "en") == 0
    found = named(
        metrics.squad_scores(
            [["Denver Broncos", "The Denver Broncos."], ["Levi's Stadium"], ["1990年"]],
            ["the Denver Broncos", "Stadium", "1990 年"],
            ["en", "en", "zh"],
        )
    )
    assert found["exact_match"] == pytest.approx(100 * 2 / 3)
    assert found["f1"] == pytest.approx(100 * (1 + 2 / 3 + 1) / 3)
    assert found["exact"] == 0


# Classes


def test_macro_f1_by_hand():
    wanted = ["a", "a", "a", "b", "c"]
    answers = ["a", "a", "b", "b", "A."]
    found = named(metrics.class_scores(wanted, answers))
    # a: 2 right, 3 wanted, 3 answered: 2/3; b: 1, 1, 2: 2/3; c: 0
    assert found == pytest.approx({"accuracy": 60, "macro_f1": 100 * (2 / 3 + 2 / 3 + 0) / 3})


def test_systems_that_answered_other_labels_are_compared_by_macro_f1():
    wanted = ["a", "b", "a", "b"]
    one, other = (metrics.class_scores(wanted, answers)[1] for answers in (wanted, ["a", "b", "c", "b"]))
    found = difference(one.statistics, other.statistics, one.value, Resamples(list("1234"), 50))
    assert found.value == pytest.approx(100 * (1 - (2 / 3 + 1 + 0) / 3))


# How answers fail


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("no no no no no no", True),
        ("I think that I think that I think that I think that I think", True),
        ("你好你好你好你好你好你好你好", True),
        ("hahahahahahahahahahaha", True),
        ("New York, New York", False),
        ("the cat and the dog and the bird", False),
        ("1 1 2 3 5 8 13 21", False),
        ("very very very good, and the rest of this long sentence says other things altogether", False),
        ("", False),
    ],
)
def test_loops_are_told_from_sentences(text, expected):
    assert behaviour.is_repeating(text) is expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("I'm sorry, but I can't help with that.", True),
        ("“As an AI language model, I do not hear.", True),
        ("Es tut mir leid, das weiß ich nicht.", True),
        ("抱歉，我听不到。", True),
        ("The speaker says: I'm sorry.", False),
        ("No", False),
    ],
)
def test_refusals_are_told_by_how_they_begin(text, expected):
    assert behaviour.is_refusal(text) is expected


def test_a_transcript_in_place_of_an_answer_may_have_a_fifth_of_its_words_wrong():
    said = "turn on the light now"
    assert behaviour.is_transcript("Turn on the light, now!", said, "en")
    assert behaviour.is_transcript("turn on a light now", said, "en")
    assert not behaviour.is_transcript("turn off a light now", said, "en")
    assert not behaviour.is_transcript("kitchen", None, "en")


@pytest.mark.parametrize(
    ("text", "language", "expected"),
    [
        ("Das Licht in der Küche ist jetzt eingeschaltet.", "de", True),
        ("The light in the kitchen is on now.", "de", False),
        ("厨房的灯开了。", "zh", True),
        ("厨房的灯开了。", "en", False),
        ("Berlin", "en", None),
        ("42", "de", None),
        ("Das Licht ist eingeschaltet.", None, None),
        ("Das Licht ist eingeschaltet.", "xx", None),
    ],
)
def test_the_language_of_an_answer_is_told_or_left_open(text, language, expected):
    assert languages.is_in_language(text, language, CANDIDATES) is expected


# Forms


@pytest.mark.parametrize(
    ("form", "answer", "expected"),
    [
        ({"max_words": 3}, "one two three", True),
        ({"max_words": 3}, "one two three four", False),
        ({"max_words": 3}, "", False),
        ({"min_words": 2}, "one", False),
        ({"max_sentences": 1}, "It is 3.5 degrees in St. Moritz", False),
        ({"max_sentences": 1}, "It is 3.5 degrees.", True),
        ({"max_sentences": 1}, "好的。再见。", False),
        ({"list": True}, "Here it is:\n- milk\n- eggs", True),
        ({"list": True}, "milk and eggs", False),
        ({"list": 3}, "1. a\n2. b\n3) c", True),
        ({"list": 3}, "1. a\n2. b", False),
        ({"json": True}, '```json\n{"room": "kitchen"}\n```', True),
        ({"json": True}, 'Sure: {"room": "kitchen"}', False),
        ({"json": True}, "42", False),
        ({"one_word": True}, "kitchen.", True),
        ({"one_word": True}, "the kitchen", False),
        ({"one_word": True}, "厨房", True),
        ({"one_word": True}, "厨房的灯开了", False),
        ({"number": True}, "1,200", True),
        ({"number": True}, "twelve", False),
        ({"question": True}, "Where is it?", True),
        ({"question": True}, "It is here.", False),
        ({"labels": ["door", "door or window"]}, "Door.", True),
        ({"labels": ["door", "door or window"]}, "the door", False),
        ({"not_transcript": True}, "turn on the light please", False),
        ({"not_transcript": True}, "the kitchen", True),
        ({"language": "de"}, "Das Licht in der Küche ist an.", True),
        ({"language": "de"}, "The light in the kitchen is on.", False),
        ({"language": "de"}, "Nein", None),
        ({"language": "de", "max_words": 1}, "Nein", True),
        ({"language": "de", "max_words": 1}, "Nein danke", False),
    ],
)
def test_forms_are_checked_by_code(form, answer, expected):
    checks = forms.follows(forms.read_form(json.dumps(form)), answer, "Turn on the light, please!", "en", CANDIDATES)
    assert forms.has_form(checks) is expected


@pytest.mark.parametrize(
    ("content", "finding"),
    [
        ("{max_words: 3}", "no JSON"),
        ("[1]", "must be a JSON object"),
        ('{"max_word": 3}', "unknown check 'max_word'"),
        ('{"max_words": true}', "max_words cannot be True"),
        ('{"labels": "door"}', "labels cannot be 'door'"),
    ],
)
def test_a_broken_form_says_what_is_wrong(content, finding):
    with pytest.raises(ValueError, match=finding.replace("{", "").replace("[", "")):
        forms.read_form(content)


def test_a_missing_package_is_named_by_its_pip_line(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "jiwer", None)
    with pytest.raises(ImportError, match='pip install "jiwer>=4"'):
        packages.need("jiwer", "A word error rate")


# Tables


@pytest.mark.parametrize(
    ("cell", "short", "full"),
    [
        (Estimate(12.34, 11.0, 14.0, 9), "12.3 ±1.5", "12.3 [11.0, 14.0]"),
        (Estimate(0.0, 0.0, 3.04, 9), "0.0 +3.0", "0.0 [0.0, 3.0]"),
        (Estimate(100.0, 96.0, 100.0, 9), "100.0 -4.0", "100.0 [96.0, 100.0]"),
        (Estimate(float("nan"), float("nan"), float("nan"), 0), "-", "-"),
        (None, "-", "-"),
        (Difference(-1.0, -2.0, 0.5, 0.1234), "-1.0 ±1.2", "-1.0 [-2.0, 0.5], p = 0.123"),
    ],
)
def test_cells_show_their_intervals(cell, short, full):
    assert tables.cell_in_short(cell, "%") == short and tables.cell_in_full(cell, "%") == full


def test_a_terminal_table_of_many_systems_breaks_before_80_columns():
    cells = tuple(Estimate(50.0 + place, 40.0, 60.0, 9) for place in range(7))
    rows = (tables.Row("a name that is longer than any column should be", "%", cells), tables.Row("厨房", "%", cells))
    text = tables.terminal(tables.Table("key", "Title", tuple(f"system {n}" for n in range(7)), rows))
    assert max(map(tables.width, text.splitlines())) <= 80 and text.startswith("Title, %\n")
    assert all(f"system {n}" in text and f"{50 + n}.0" in text for n in range(7)) and "…" in text
