"""The builders of the papers' benchmarks: what is drawn, what is left out and counted, what is written."""

import json

import numpy as np
import pytest
from datasets import Dataset, load_dataset
from factories_benchmarks import Tones, squad, write_recordings, write_squad

from processing_speechllm.audio import load_audio
from speechllm.evaluation.benchmarks import bloomzmms, labelled
from speechllm.evaluation.benchmarks.audio_mlqa import AudioMLQASettings, plan_audio_mlqa
from speechllm.evaluation.benchmarks.building import build
from speechllm.evaluation.benchmarks.forms import FORMS
from speechllm.evaluation.benchmarks.mtbi import MTBISettings, plan_mtbi, words_of
from speechllm.evaluation.benchmarks.squad import read_squad
from speechllm_cli.main import main
from trainers.data.loading import load_rows
from trainers.targets.prompts import load_tasks


def mlqa(folder, synthesizer=None, **changes):
    settings = {"languages": ("en", "de"), "items": 6, "max_context_characters": 200, "voices_per_gender": 3}
    return plan_audio_mlqa(AudioMLQASettings(str(write_squad(folder)), **settings | changes), synthesizer or Tones())


def rows_of(folder) -> list[dict]:
    return list(load_rows(folder, split="test"))


# --- Audio-MLQA ---


def test_spoken_questions_stand_beside_their_text_and_answers(tmp_path):
    build(mlqa(tmp_path / "source"), tmp_path / "out", Tones())
    rows = rows_of(tmp_path / "out")
    assert len(rows) == 12 and len({row["id"] for row in rows}) == 12
    for row in rows:
        number = row["id"].rpartition("q")[2]
        assert row["references"] == [number] and row["context"].startswith(("Text", "lang"))
        assert row["text"].endswith(f" {number}?") and row["voice"].startswith(row["language"])
        assert row["instruction"].startswith({"en": "Answer the spoken", "de": "Beantworte"}[row["language"]])
        samples = load_audio(row["audio"], 16_000)
        np.testing.assert_allclose(samples, Tones().speak(row["text"], row["voice"]), atol=1e-4)
        assert row["duration"] == pytest.approx(len(samples) / 16_000, abs=1e-3)


def test_parallel_sets_give_the_same_questions_as_far_as_the_limit_lets_them(tmp_path):
    plan = mlqa(tmp_path / "source", items=4)
    chosen = {language: [i.id[3:] for i in plan.items if i.language == language] for language in ("en", "de")}
    assert len(chosen["en"]) == 4
    assert [key for key in chosen["en"] if key != "q0"] == [key for key in chosen["de"] if key in chosen["en"]]
    other = [item.id for item in mlqa(tmp_path / "source", items=4, seed=1).items]
    assert other != [item.id for item in plan.items]


def test_what_is_left_out_is_counted_listed_and_on_the_card(tmp_path):
    report = build(mlqa(tmp_path / "source"), tmp_path / "out", Tones())
    assert report["dropped"] == {"context_too_long": 1, "no_answer": 2, "not_drawn": 24 - 3 - 12}
    listed = [json.loads(line) for line in (tmp_path / "out" / "dropped.jsonl").read_text().splitlines()]
    assert {"id": "de-q0", "language": "de", "reason": "context_too_long", "detail": "499 characters"} in listed
    card = (tmp_path / "out" / "README.md").read_text()
    assert "| context too long | 1 |" in card and "| no answer | 2 |" in card


def test_the_card_tells_source_licence_voices_counts_and_seed(tmp_path):
    plan = mlqa(tmp_path / "source", license="cc-by-sa-4.0", seed=3)
    build(plan, tmp_path / "out", Tones(), "speechllm benchmark audio-mlqa --seed 3")
    card = (tmp_path / "out" / "README.md").read_text()
    for line in (
        "license: cc-by-sa-4.0",
        "source (a local copy). Licence: cc-by-sa-4.0.",
        "| seed | 3 |",
        "| de-female0 | female |",
        "speechllm benchmark audio-mlqa --seed 3",
        "--task question",
        "Synthetic, by tones 1",
    ):
        assert line in card
    assert str(tmp_path) not in card
    rows = load_dataset(str(tmp_path / "out"), split="test")
    assert len(rows) == 12


def test_a_voice_that_fails_leaves_its_row_out_and_no_other(tmp_path):
    source = tmp_path / "source"
    whole = build(mlqa(source, items=None), tmp_path / "whole", Tones())
    report = build(mlqa(source, items=None), tmp_path / "out", Tones(fails_on="number 5"))
    assert report["dropped"]["not_synthesised"] == 1 and report["rows"] == whole["rows"] - 1
    assert "en-q5" not in {row["id"] for row in rows_of(tmp_path / "out")}


def test_a_run_that_is_stopped_goes_on_to_the_same_rows(tmp_path, monkeypatch):
    monkeypatch.setattr("speechllm.evaluation.benchmarks.building.ROWS_PER_SHARD", 5)
    source = tmp_path / "source"
    with pytest.raises(KeyboardInterrupt):
        build(mlqa(source), tmp_path / "out", Tones(stops_after=7))
    again = Tones()
    build(mlqa(source), tmp_path / "out", again)
    assert len(again.said) == 12 - 5  # the first shard was there
    build(mlqa(source), tmp_path / "whole", Tones())
    assert rows_of(tmp_path / "out") == rows_of(tmp_path / "whole")
    assert not list((tmp_path / "out").rglob("*.partial"))
    third = Tones()
    build(mlqa(source), tmp_path / "out", third)
    assert not third.said


def test_a_folder_with_another_run_is_refused_by_name_of_the_setting(tmp_path):
    build(mlqa(tmp_path / "source"), tmp_path / "out", Tones())
    with pytest.raises(ValueError, match="settings.seed was 0 and is 1.*another folder"):
        build(mlqa(tmp_path / "source", seed=1), tmp_path / "out", Tones())


def test_nothing_left_is_an_error_with_the_reasons(tmp_path):
    with pytest.raises(ValueError, match="No item is left.*22 context too long, 2 no answer"):
        build(mlqa(tmp_path / "source", max_context_characters=1), tmp_path / "out", Tones())
    with pytest.raises(ValueError, match="No row could be made of 12 items .*cannot say"):
        build(mlqa(tmp_path / "source"), tmp_path / "out", Tones(fails_on="?"))


def test_squad_is_read_from_a_file_mlqas_folder_and_a_table(tmp_path):
    content = squad([("q1", "Who?", "Ann came.", ["Ann", "Ann "])])
    for name in ("test-context-vi-question-vi", "test-context-vi-question-en", "dev-context-vi-question-vi"):
        (tmp_path / f"{name}.json").write_text(json.dumps(content if name.startswith("test") else squad([])))
    (question,) = read_squad(tmp_path, "vi")
    assert question.answers == ("Ann",) and question.context == "Ann came."
    assert read_squad(tmp_path / "test-context-vi-question-vi.json", "vi") == [question]
    assert read_squad(tmp_path, "vi", split="dev") == []
    answers = {"text": ["Ann"], "answer_start": [0]}
    row = {"id": "q1", "question": "Who?", "context": "Ann came.", "answers": answers}
    (tmp_path / "hub").mkdir()
    Dataset.from_list([row]).to_parquet(tmp_path / "hub" / "test.parquet")
    assert read_squad(tmp_path / "hub", "vi") == [question]


def test_what_is_not_squad_says_what_it_is(tmp_path):
    (tmp_path / "a.en.json").write_text('{"data": [{"paragraphs": [{"qas": []}]}]}')
    assert read_squad(tmp_path, "en") == []
    (tmp_path / "a.en.json").write_text('{"rows": []}')
    with pytest.raises(ValueError, match="a.en.json: not in SQuAD's form.*'data'"):
        read_squad(tmp_path, "en")
    with pytest.raises(FileNotFoundError, match="no files are of the language 'fr'.*a.en.json"):
        read_squad(tmp_path, "fr")
    impossible = squad([("q1", "Who?", "Ann came.", ["Ann"])])
    impossible["data"][0]["paragraphs"][0]["qas"][0]["is_impossible"] = True
    (tmp_path / "a.en.json").write_text(json.dumps(impossible))
    assert read_squad(tmp_path, "en")[0].answers == ()


# --- MTBI ---

SENTENCES = [f"The train number {n} leaves at noon." for n in range(40)]


@pytest.fixture
def recordings(tmp_path):
    rows = [{"text": text, "language": "en"} for text in SENTENCES]
    rows += [{"text": "今天下雨。", "language": "zh-CN"} for _ in range(40)]
    rows += [{"text": "Halt!", "language": "de"} for _ in range(40)]
    rows += [{"text": "...", "language": "en"}]
    return str(write_recordings(tmp_path / "recordings", rows))


def mtbi_rows(plans) -> list[dict]:
    return [{"id": i.id, "language": i.language, "text": i.slots[0].text, **i.values} for p in plans for i in p.items]


def test_kinds_of_prompts_differ_by_the_held_out_marks_alone(recordings):
    rows = mtbi_rows(plan_mtbi(MTBISettings(recordings, split="train", items=30, languages=["en"])))
    marks = {prompt.id: (task, prompt) for task in load_tasks() for prompt in task.prompts}
    by_recording = {}
    for row in rows:
        task, prompt = marks[row["prompt_id"]]
        kind = "unseen_task" if task.held_out else "unseen_prompt" if prompt.held_out else "seen"
        assert row["prompt_kind"] == kind and row["task"] == task.name
        by_recording.setdefault(row["recording"], {})[kind] = task.name
    assert len(by_recording) == 30
    for kinds in by_recording.values():
        assert set(kinds) == {"seen", "unseen_prompt", "unseen_task"} and kinds["seen"] == kinds["unseen_prompt"]


def test_answers_that_follow_from_the_transcript_are_there(recordings):
    plans = {plan.task: plan for plan in plan_mtbi(MTBISettings(recordings, split="train", languages=["en"]))}
    assert set(plans) == {"transcribe", "question", "instruct"}
    for row in mtbi_rows([plans["question"]]):
        words = row["text"].rstrip(".").split()
        answer = {"first_word": "The", "last_word": "noon", "count_words": str(len(words)), "language": "English"}
        assert row["references"] == [answer[row["task"]]] and row["metric"] == "squad"
    assert all(row["reference"] == row["text"] for row in mtbi_rows([plans["transcribe"]]))
    assert not any("reference" in row or "references" in row for row in mtbi_rows([plans["instruct"]]))


def test_questions_about_words_are_not_asked_where_writing_does_not_separate_them(recordings):
    plans = plan_mtbi(MTBISettings(recordings, split="train", languages=["zh-CN"]))
    assert not {"first_word", "last_word", "count_words"} & {row["task"] for row in mtbi_rows(plans)}
    unasked = [entry.id for entry in plans[0].dropped if entry.reason == "task_not_asked"]
    assert "seen/first_word" in unasked and "unseen_task/last_word" in unasked


def test_prompts_are_in_the_language_of_the_speech_or_in_the_one_that_is_wanted(recordings):
    settings = {"split": "train", "languages": ["de", "zh-CN"]}
    own = mtbi_rows(plan_mtbi(MTBISettings(recordings, **settings)))
    assert {(row["language"], row["prompt_id"].split("/")[1]) for row in own} == {("de", "de"), ("zh-CN", "zh")}
    english = mtbi_rows(plan_mtbi(MTBISettings(recordings, prompt_languages=["en"], **settings)))
    assert {row["prompt_id"].split("/")[1] for row in english} == {"en"}
    german = [row for row in own if row["task"] == "language" and row["language"] == "de"]
    assert german and all(row["references"] == ["Deutsch"] for row in german)


def test_forms_are_asked_for_where_the_prompt_asks_for_them(recordings):
    rows = mtbi_rows(plan_mtbi(MTBISettings(recordings, split="train", languages=["en", "de"])))
    for row in rows:
        form = json.loads(row["form"] or "{}")
        one_word = row["language"] == "de"  # "Halt!" may well be the answer
        assert form.get("not_transcript", False) == (row["task"] != "repeat" and not one_word)
        for check, value in FORMS.get(row["prompt_id"], {}).items():
            assert form[check] == value
        if row["task"] == "translate":
            assert form["language"] == row["target_language"] != row["language"]


def test_prompts_with_a_form_are_in_the_pool():
    known = {prompt.id for task in load_tasks() for prompt in task.prompts}
    assert set(FORMS) <= known


def test_words_are_what_is_written_between_spaces():
    assert words_of("“Don't,” she said – twice!") == ["Don't", "she", "said", "twice"]
    assert words_of("... – !") == []


def test_recordings_are_written_with_their_prompts_and_bad_ones_are_left_out(recordings, tmp_path):
    settings = MTBISettings(recordings, split="train", items=3, languages=["en"], tasks=["repeat", "title"])
    plans = plan_mtbi(settings)
    assert [plan.task for plan in plans] == ["transcribe", "instruct"]
    broken = plans[0].items[0].slots[0].row
    (tmp_path / "recordings" / f"{broken}.wav").write_bytes(b"RIFF no")
    report = build(plans[0], tmp_path / "out")
    assert report["dropped"] == {"no_transcript": 1, "not_drawn": 37, "unreadable_audio": 2}  # it has two prompts
    rows = rows_of(tmp_path / "out")
    assert len(rows) == 4 and {row["task"] for row in rows} == {"repeat"}
    assert "voice" not in rows[0] and "Recordings of the source" in (tmp_path / "out" / "README.md").read_text()


def test_a_set_without_languages_asks_for_one(tmp_path):
    source = str(write_recordings(tmp_path / "plain", [{"text": "Hello there."}]))
    with pytest.raises(ValueError, match="no column 'language'"):
        plan_mtbi(MTBISettings(source, split="train"))
    assert plan_mtbi(MTBISettings(source, split="train", language="en"))
    with pytest.raises(ValueError, match="no usable rows in fr; it has en"):
        plan_mtbi(MTBISettings(source, split="train", language="en", languages=["fr"]))


# --- BLOOMZMMS ---

DRAW = bloomzmms.Draw(items=5, voices_per_gender=3)


def text_around_audio(row) -> list[str]:
    blocks = row["messages"][0]["content"]
    return ["[audio]" if block["type"] == "audio" else block["text"] for block in blocks]


def test_transcription_is_asked_as_in_the_papers_second_stage(recordings, tmp_path):
    build(bloomzmms.plan_transcription(recordings, DRAW, split="train", languages=["en"]), tmp_path / "out")
    rows = rows_of(tmp_path / "out")
    assert len(rows) == 5
    for row in rows:
        assert text_around_audio(row) == ["Repeat the sentence: ", "[audio]", ". "] and row["reference"] == row["text"]


def test_parallel_text_is_spoken_and_translated(tmp_path):
    (tmp_path / "en.txt").write_text("".join(f"Sentence {n}.\n" for n in range(9)))
    (tmp_path / "de.txt").write_text("".join(f"Satz {n}.\n" if n != 4 else "\n" for n in range(9)))
    plan = bloomzmms.plan_spoken_translation(str(tmp_path), DRAW, Tones(), ["en", "de"], ["en", "de"])
    build(plan, tmp_path / "out", Tones())
    rows = rows_of(tmp_path / "out")
    assert {(row["language"], row["target_language"]) for row in rows} == {("en", "de"), ("de", "en")}
    for row in rows:
        assert row["text"].split()[1] == row["reference"].split()[1]
        name = {"de": "German", "en": "English"}[row["target_language"]]
        assert text_around_audio(row) == [f"Translate to {name}: ", "[audio]"]
    assert [entry.reason for entry in plan.dropped].count("empty_line") == 2
    (tmp_path / "de.txt").write_text("Satz 0.\n")
    with pytest.raises(ValueError, match="not parallel.*'en': 9, 'de': 1"):
        bloomzmms.plan_spoken_translation(str(tmp_path), DRAW, Tones(), ["en"], ["de"])


def test_recorded_translations_come_from_their_column(tmp_path):
    rows = [{"text": f"Satz {n}.", "language": "de", "english": f"Sentence {n}." if n else None} for n in range(4)]
    source = str(write_recordings(tmp_path / "r", rows))
    plan = bloomzmms.plan_recorded_translation(source, DRAW, "en", "english", split="train")
    assert {(i.slots[0].text[-2], i.values["reference"][-2]) for i in plan.items} == {(n, n) for n in "123"}
    assert [entry.reason for entry in plan.dropped] == ["no_translation"]
    with pytest.raises(ValueError, match="no column 'translation'.*english"):
        bloomzmms.plan_recorded_translation(source, DRAW, "en", split="train")
    with pytest.raises(ValueError, match="no name for the language 'tlh'"):
        bloomzmms.plan_recorded_translation(source, DRAW, "tlh", "english", split="train")


def write_table(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_a_prompt_holds_one_audio_per_text_in_its_order(tmp_path):
    rows = [{"premise": f"P{n} is.", "hypothesis": f"H{n} is so.", "label": n % 3} for n in range(3)]
    rows += [{"premise": "P", "hypothesis": "H", "label": -1}, {"premise": "", "hypothesis": "H", "label": 0}]
    rows += [{"premise": "P" * 500, "hypothesis": "H", "label": 0}]
    source = write_table(tmp_path / "xnli.en.jsonl", rows)
    plan = bloomzmms.plan_classification([labelled.TASKS["xnli"]], DRAW, Tones(), source=str(tmp_path))
    assert plan.items == bloomzmms.plan_classification([labelled.TASKS["xnli"]], DRAW, Tones(), source=source).items
    report = build(plan, tmp_path / "out", Tones())
    assert report["dropped"] == {"empty_text": 1, "no_label": 1, "text_too_long": 1}
    written = {row["id"]: row for row in rows_of(tmp_path / "out")}
    row = written["xnli-en-1"]
    assert row["text"] == ["P1 is.", "H1 is so."] and row["label"] == "Maybe"
    assert row["labels"] == ["Yes", "Maybe", "No"] and row["task"] == "xnli"
    assert text_around_audio(row)[1] == text_around_audio(row)[3] == "[audio]"
    for audio, text, voice in zip(row["audio"], row["text"], row["voice"], strict=True):
        np.testing.assert_allclose(load_audio(audio, 16_000), Tones().speak(text, voice), atol=1e-4)


def test_labels_of_the_data_are_checked(tmp_path):
    source = write_table(tmp_path / "rte.jsonl", [{"sentence1": "A", "sentence2": "B", "label": "perhaps"}])
    with pytest.raises(ValueError, match="rte has the label 'perhaps'; known are 0, entailment"):
        bloomzmms.plan_classification([labelled.TASKS["rte"]], DRAW, Tones(), source=source)
    with pytest.raises(ValueError, match="mrpc.*|no column|needs the column 'question1'"):
        bloomzmms.plan_classification([labelled.TASKS["qqp"]], DRAW, Tones(), source=source)
    assert [labelled.TASKS["wnli"].labels[key] for key in "01"] == ["No", "Yes"]  # the other way round than RTE
    assert [labelled.TASKS["rte"].labels[key] for key in "01"] == ["Yes", "No"]


def test_a_table_of_ones_own_takes_its_labels_from_the_data(tmp_path):
    rows = [{"text": f"Play song {n}.", "intent": ("play", "stop")[n % 2]} for n in range(4)]
    source = write_table(tmp_path / "own.jsonl", rows)
    task = labelled.find_task("intents", "{text}\nWhich intent?", "intent")
    plan = bloomzmms.plan_classification([task], DRAW, Tones(), source=source)
    assert {item.values["label"] for item in plan.items} == {"play", "stop"}
    assert all(item.values["labels"] == ["play", "stop"] for item in plan.items)
    for arguments, message in (
        (("intents",), "no labelled task 'intents'"),
        (("xnli", "{text}?"), "xnli has a prompt"),
        (("intents", "Which?"), "where the speech stands"),
    ):
        with pytest.raises(ValueError, match=message):
            labelled.find_task(*arguments)


# --- The command ---


def test_the_command_builds_with_espeak_and_says_what_became_of_it(tmp_path, capsys):
    source, out = write_squad(tmp_path / "source"), tmp_path / "out"
    options = ["--languages", "en", "de", "--items", "2", "--max_context_characters", "200", "--out", str(out)]
    assert main(["benchmark", "audio-mlqa", "--source", str(source), *options]) == 0
    assert "4 rows" in capsys.readouterr().out
    rows = rows_of(out)
    assert len(rows) == 4 and all(0.3 < row["duration"] < 5 for row in rows)
    assert f"--source {source}" in (out / "README.md").read_text()


def test_the_command_names_what_is_missing(tmp_path, capsys):
    assert main(["benchmark", "bloomzmms", "--out", str(tmp_path)]) == 2
    assert "Give --source, --parallel or --labelled" in capsys.readouterr().err
    assert main(["benchmark", "mtbi", "--source", str(tmp_path / "none"), "--out", str(tmp_path / "out")]) == 2
    assert "no such file or folder" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_command_plans_everything_before_it_writes_anything(tmp_path, recordings, capsys):
    options = ["--source", recordings, "--split", "train", "--labelled", "xnli", "--labelled_source", str(tmp_path)]
    assert main(["benchmark", "bloomzmms", *options, "--out", str(tmp_path / "out")]) == 2
    assert "no file xnli.en" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
