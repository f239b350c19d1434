"""`speechllm evaluate` from rows to report, with tiny models: what is written, resumed, refused, set aside."""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from conftest import WAVEFORM
from datasets import ClassLabel, Dataset, Features, Value
from factories_processing import encoded
from factories_training import TEXTS, tiny_parts, tone, tone_rows
from transformers import (
    Wav2Vec2Config,
    Wav2Vec2CTCTokenizer,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2ForCTC,
    Wav2Vec2Processor,
)

from speechllm.evaluation import recognisers, report, systems
from speechllm.evaluation import run as evaluation
from speechllm.evaluation.config import EvaluationConfig
from speechllm.evaluation.rows import check_columns, default_split, load_evaluation_rows, make_items, with_class_names
from speechllm_cli.main import main


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, str]:
    """Folders of a tiny SpeechLLM and of another one."""
    folder = tmp_path_factory.mktemp("models")
    for name, stride in (("one", 4), ("two", 2)):
        model, processor = tiny_parts({"type": "stack_mlp", "stride": stride})
        model.generation_config.eos_token_id = processor.tokenizer.convert_tokens_to_ids("<|im_end|>")
        model.save_pretrained(folder / name)
        processor.save_pretrained(folder / name)
    return {name: str(folder / name) for name in ("one", "two")}


@pytest.fixture(autouse=True)
def no_pictures(request, monkeypatch):
    """Pictures take most of a tiny run's time; the first test looks at them."""
    if request.node.name != "test_everything_beside_the_model_is_answered_scored_and_shown":
        monkeypatch.setattr(report, "draw", lambda table, folder: [])


@pytest.fixture
def heard(monkeypatch):
    """The cascade's recogniser hears something that depends on the length of the audio alone."""

    class Recogniser:
        sampling_rate = 16000

        def transcribe(self, audio, languages):
            return [TEXTS[len(samples) % len(TEXTS)] for samples in audio]

    monkeypatch.setattr(systems, "PipelineRecogniser", lambda *arguments: Recogniser())


def write_rows(folder: Path, rows: Dataset) -> str:
    """A folder with a manifest and WAV files."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for row in rows:
        audio = row.pop("audio")
        name = f"{row['id']}.wav"
        (folder / name).write_bytes(audio["bytes"])
        lines.append(json.dumps({**row, "audio": name}))
    (folder / "manifest.jsonl").write_text("\n".join(lines) + "\n")
    return str(folder)


def config(folder: Path, models: dict, **changes) -> EvaluationConfig:
    settings = {
        "dataset": [write_rows(folder / "data", tone_rows())],
        "model": models["one"],
        "task": "transcribe",
        "output_dir": str(folder / "out"),
        "max_new_tokens": 6,
        "batch_size": 3,
        "bootstrap_samples": 50,
        "max_bad_share": 0.5,
    }
    return EvaluationConfig(**settings | changes)


def lines_of(folder: Path, name: str = "answers") -> list[dict]:
    return [json.loads(line) for line in (folder / "out" / f"{name}.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_everything_beside_the_model_is_answered_scored_and_shown(tmp_path, models, heard, capsys):
    settings = config(
        tmp_path, models, text_bound=True, cascade="some/asr", second=models["two"], text_before=models["one"]
    )
    result = evaluation.evaluate(settings)
    answers = lines_of(tmp_path)
    systems_there = ["speech", "text_bound", "cascade", "second", "text_before"]
    assert [(line["system"], line["id"]) for line in answers] == [
        (system, f"row-{number}") for system in systems_there for number in range(8)
    ]
    assert all(line["heard"] in TEXTS for line in answers if line["system"] == "cascade")
    by_system = {system: [line["answer"] for line in answers if line["system"] == system] for system in systems_there}
    assert by_system["text_bound"] == by_system["text_before"] != by_system["speech"]
    assert result["rows"] == {"read": 8, "scored": 8, "bad": 0}
    assert set(result["overall"]) == set(systems_there)
    wer = result["overall"]["speech"]["wer"]
    assert wer["low"] <= wer["value"] <= wer["high"] and wer["rows"] == 8
    assert set(result["groups"]["language"]) == {"de", "en"}
    assert set(result["differences"]) == {
        "speech - text_bound",
        "speech - cascade",
        "speech - second",
        "text_bound - text_before",
    }
    assert result["differences"]["text_bound - text_before"]["wer"]["value"] == 0
    assert result["overall"]["text_before"].keys().isdisjoint({"equal_to_bound", "kl_to_bound"})
    assert result["overall"]["speech"]["kl_to_bound"]["value"] > 0
    assert result["speed"]["speech"]["real_time_factor"] > 0 and result["speed"]["text_bound"]["audio_seconds"] is None
    assert result["versions"]["transformers"] and result["hardware"]["processes"] == 1
    report = (tmp_path / "out" / "report.md").read_text()
    for picture in set(part.split(")")[0] for part in report.split("](")[1:]):
        file = tmp_path / "out" / picture
        assert file.stat().st_size > 1000 and file.with_suffix(".svg").read_text().startswith("<?xml")
    shown = capsys.readouterr().out
    assert "word error rate" in shown and "± half the width of the 95 % interval" in shown
    assert max(map(len, shown.splitlines()[:-1])) <= 80


def test_a_killed_run_goes_on_to_the_answers_of_one_that_was_not(tmp_path, models, heard, monkeypatch):
    settings = {"text_bound": True, "cascade": "some/asr"}
    evaluation.evaluate(config(tmp_path / "whole", models, **settings))
    asked = Counter()
    original = systems.Runner._answer_batch

    def failing(self, system, answerer, recogniser, batch):
        if sum(asked.values()) == 16:
            raise KeyboardInterrupt
        lines = original(self, system, answerer, recogniser, batch)
        asked.update((system, line["id"]) for line in lines)
        return lines

    monkeypatch.setattr(systems.Runner, "_answer_batch", failing)
    with pytest.raises(KeyboardInterrupt):
        evaluation.evaluate(config(tmp_path / "killed", models, **settings))
    (part,) = (tmp_path / "killed" / "out").glob("answers.part-*.jsonl")
    whole = part.read_bytes()
    part.write_bytes(whole[:-40])  # the last line is half written
    monkeypatch.setattr(systems.Runner, "_answer_batch", original)
    result = evaluation.evaluate(config(tmp_path / "killed", models, **settings))
    answers = [lines_of(tmp_path / name) for name in ("whole", "killed")]
    for rows in answers:
        for row in rows:
            row.pop("seconds")
    assert answers[0] == answers[1]
    assert result["rows"]["scored"] == 8
    assert not list((tmp_path / "killed" / "out").glob("*.part-*"))


def test_a_finished_run_asks_nothing_again_and_may_change_its_scoring(tmp_path, models, monkeypatch):
    first = evaluation.evaluate(config(tmp_path, models))
    monkeypatch.setattr(systems.Runner, "_load_speech", lambda self, name: pytest.fail("asked again"))
    again = evaluation.evaluate(config(tmp_path, models))
    assert again == first
    other = evaluation.evaluate(config(tmp_path, models, bootstrap_samples=20, headline="cer"))
    assert other["headline"] == "cer" and first["headline"] == "wer"


@pytest.mark.parametrize(
    ("changes", "finding"),
    [
        ({"max_new_tokens": 5}, "settings.max_new_tokens was 6 and is 5"),
        ({"limit": 4}, "settings.limit was None and is 4"),
        ({"instruction": "Write."}, "settings.instruction"),
        ({"second": "two"}, "models.second"),
    ],
)
def test_a_folder_with_another_run_is_refused(tmp_path, models, changes, finding):
    evaluation.evaluate(config(tmp_path, models))
    before = (tmp_path / "out" / "answers.jsonl").read_bytes()
    if "second" in changes:
        changes = {"second": models["two"]}
    with pytest.raises(ValueError, match=finding):
        evaluation.evaluate(config(tmp_path, models, **changes))
    assert (tmp_path / "out" / "answers.jsonl").read_bytes() == before


def test_rows_that_cannot_be_used_are_listed_and_the_others_scored(tmp_path, models):
    settings = config(tmp_path, models, text_bound=True, instruction="hello")
    data = tmp_path / "data"
    rows = [json.loads(line) for line in (data / "manifest.jsonl").read_text().splitlines()]
    (data / rows[0]["audio"]).write_bytes(b"no audio")  # found by its header
    whole = (data / rows[1]["audio"]).read_bytes()
    (data / rows[1]["audio"]).write_bytes(whole[:-400])  # found when it is decoded
    rows[2]["text"] = "  "
    rows[3]["id"] = rows[4]["id"]
    (data / "manifest.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    result = evaluation.evaluate(settings)
    assert result["rows"] == {"read": 8, "scored": 4, "bad": 4}
    findings = {row["id"]: row["finding"] for row in lines_of(tmp_path, "bad_rows")}
    assert set(findings) == {"row-0", "row-1", "row-2", "row-4"}
    assert "truncated WAV" in findings["row-1"] and "no transcript" in findings["row-2"]
    assert "stands twice" in findings["row-4"]
    assert result["overall"]["speech"]["wer"]["rows"] == result["overall"]["text_bound"]["wer"]["rows"] == 4


def test_too_many_bad_rows_stop_the_run_with_the_first_of_them(tmp_path, models):
    settings = config(tmp_path, models, max_bad_share=0.1)
    for path in list((tmp_path / "data").glob("*.wav"))[:3]:
        path.write_bytes(b"")
    with pytest.raises(ValueError, match="3 of 8 rows cannot be used, more than the 10.0% allowed"):
        evaluation.evaluate(settings)


def test_a_run_without_any_usable_row_or_with_a_model_that_is_not_there_has_no_results(tmp_path, models):
    settings = config(tmp_path, models, max_bad_share=1.0)
    for path in (tmp_path / "data").glob("*.wav"):
        path.write_bytes(path.read_bytes()[:-400])  # found when it is decoded
    with pytest.raises(ValueError, match="No row of .* can be used.*\\n- row-"):
        evaluation.evaluate(settings)
    assert not (tmp_path / "out" / "results.json").exists()
    with pytest.raises(FileNotFoundError, match="cascade ./asr: no such folder"):
        evaluation.evaluate(config(tmp_path, models, cascade="./asr"))


def test_one_recording_gives_no_interval(tmp_path, models, capsys):
    settings = config(tmp_path, models, text_bound=True)
    settings.dataset = [write_rows(tmp_path / "one", tone_rows(1))]
    result = evaluation.evaluate(settings)
    wer = result["overall"]["speech"]["wer"]
    assert wer["value"] > 0 and wer["low"] is None and wer["rows"] == 1
    assert "±" not in capsys.readouterr().out


def test_a_prompt_that_does_not_fit_is_a_finding(tmp_path, models):
    settings = config(tmp_path, models, task="instruct", text_bound=True)
    rows = tone_rows(4, instruction=["what"] * 3 + ["what is " * 300])
    settings.dataset = [write_rows(tmp_path / "long", rows)]
    result = evaluation.evaluate(settings)
    (bad,) = lines_of(tmp_path, "bad_rows")
    assert bad["id"] == "row-3" and "512 positions" in bad["finding"] and result["rows"]["scored"] == 3


def test_classes_with_several_slots_answer_nothing_but_labels(tmp_path, models):
    labels = ["hello", "hello world", "said"]
    rows = [
        {
            "id": f"pair-{number}",
            "audio": [{"bytes": encoded(tone(number + part, 0.4)), "path": None} for part in range(2)],
            "text": [TEXTS[number], TEXTS[number + 1]],
            "language": "en",
            "label": labels[number % 3],
            "labels": labels,
            "instruction": "what is said",
        }
        for number in range(6)
    ]
    settings = config(tmp_path, models, task="classify", text_bound=True, label_scores=True, num_beams=3)
    settings.dataset = [save_parquet(tmp_path / "pairs", rows)]
    result = evaluation.evaluate(settings)
    for line in lines_of(tmp_path):
        assert line["answer"] in labels and set(line["scores"]) == set(labels)
        assert line["answer"] == max(line["scores"], key=line["scores"].get)  # as many beams as labels
        assert line["asked"] == "[audio]\n[audio]\nwhat is said"
    assert {"accuracy", "macro_f1"} <= set(result["overall"]["speech"])


def save_parquet(folder: Path, rows: list[dict]) -> str:
    folder.mkdir(parents=True)
    Dataset.from_list(rows).to_parquet(str(folder / "train-00000.parquet"))
    return str(folder)


# Rows


def test_classes_need_no_transcripts_and_a_limit_is_spread_over_the_data(tmp_path):
    rows = tone_rows(8, label=["a", "b"] * 4).remove_columns("text")
    settings = EvaluationConfig(
        dataset=[write_rows(tmp_path / "data", rows)], model="m", output_dir="o", task="classify", limit=4
    )
    loaded = load_evaluation_rows(settings, None)
    assert [item.id for item in loaded.items] == ["row-0", "row-2", "row-4", "row-6"]
    assert loaded.items[0].texts is None and loaded.items[0].labels == ["a"] and loaded.items[0].references == ["a"]
    settings.text_bound = True
    with pytest.raises(ValueError, match="The text bound needs the column 'text'"):
        load_evaluation_rows(settings, None)


def user_turn(*blocks: dict) -> list[dict]:
    return [{"role": "user", "content": list(blocks)}]


def items_of(rows: list[dict], **changes):
    data = Dataset.from_list([{"duration": 1.0, "audio": {"bytes": b"x", "path": None}, **row} for row in rows])
    settings = EvaluationConfig(**{"dataset": ["x"], "model": "m", "output_dir": "o", "task": "question", **changes})
    return make_items(data, settings)


def test_the_names_of_classes_stand_for_their_numbers():
    features = Features({"label": ClassLabel(names=["no", "yes"]), "text": Value("string")})
    data = Dataset.from_dict({"label": [1, 0, -1], "text": ["a", "b", "c"]}, features=features)
    assert with_class_names(data)["label"][:] == ["yes", "no", None]


def test_local_data_without_test_and_train_are_scored_on_the_only_split_there_is(tmp_path, capsys):
    (tmp_path / "data").mkdir()
    tone_rows(2).to_parquet(str(tmp_path / "data" / "validation-00000.parquet"))
    assert default_split(str(tmp_path)) == "validation"
    assert "scored on 'validation', the only split there is" in capsys.readouterr().err
    for name, wanted in (("train", "train"), ("test", "test")):  # the last one beside the other two
        tone_rows(2).to_parquet(str(tmp_path / "data" / f"{name}-00000.parquet"))
        assert default_split(str(tmp_path)) == wanted
    assert "only split" not in capsys.readouterr().err


def test_context_takes_its_place_or_stands_before_the_instruction():
    rows = items_of(
        [
            {"id": "a", "instruction": "Read {context}. Answer.", "context": "C", "reference": "r"},
            {"id": "b", "instruction": "Answer.", "context": "C", "reference": "r"},
        ]
    )
    assert [item.asked for item in rows.items] == ["[audio]\nRead C. Answer.", "[audio]\nC\n\nAnswer."]


def test_a_last_turn_of_the_assistant_is_the_reference():
    chat = [
        {"role": "user", "content": [{"type": "audio", "text": None}, {"type": "text", "text": "\nwhat?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "this"}]},
    ]
    (item,) = items_of([{"id": "a", "messages": chat}]).items
    assert item.references == ["this"] and item.asked == "[audio]\nwhat?" and len(item.chat) == 1


def test_a_task_brings_its_own_instructions_and_marks_held_out_ones():
    rows = [{"id": str(number), "reference": "r", "context": "C", "language": "de"} for number in range(60)]
    items = items_of(rows).items
    kinds = Counter(item.prompt_kind for item in items)
    assert kinds.keys() == {"seen", "unseen_prompt"} and min(kinds.values()) >= 3
    assert [item.asked for item in items] == [item.asked for item in items_of(rows).items]
    assert {item.prompt_kind for item in items_of(rows, prompts="unseen").items} == {"unseen_prompt"}
    german = items_of(rows, prompt_language="row").items
    assert {item.asked for item in german}.isdisjoint(item.asked for item in items)


@pytest.mark.parametrize(
    ("row", "task", "finding"),
    [
        ({"reference": " "}, "question", "an empty reference"),
        ({"reference": None}, "question", "no reference"),
        ({"reference": "..."}, "transcribe", "after Whisper's normaliser"),
        ({"label": "z", "labels": ["a", "b"]}, "classify", "'z' is not among its labels"),
        ({"label": "a", "labels": ["a", "A."]}, "classify", "differ in case or punctuation only"),
        ({"instruction": ""}, "instruct", "an empty instruction"),
        ({"instruction": None}, "instruct", "no instruction"),
        ({"reference": "r", "target_language": "xx"}, "translate", "target_language"),
        ({"instruction": "x", "form": "{"}, "instruct", "no JSON"),
        ({"instruction": "x", "prompt_kind": "new"}, "instruct", "prompt_kind is 'new'"),
        ({"messages": [{"role": "user", "content": "no audio"}]}, "instruct", "0 audio blocks"),
        ({"messages": [{"content": "no role"}]}, "instruct", "has no role"),
        ({"messages": "a chat"}, "instruct", "a str"),
        ({"messages": user_turn({"type": "audio"}, {"type": "image_url"})}, "instruct", "kind 'image_url'"),
        ({"messages": user_turn({"type": "audio", "path": "a.wav"})}, "instruct", "put the audio into the column"),
        (
            {"messages": user_turn({"type": "input_audio", "input_audio": {"data": "QQ=="}})},
            "instruct",
            "into the col",
        ),
        ({"references": "hello"}, "question", "references must be a list of texts, not 'hello'"),
        ({"reference": 4}, "question", "reference must be text, not 4"),
        ({"label": 0}, "classify", "label must be text, not 0"),
        ({"label": "yes", "labels": "yes,no"}, "classify", "labels must be a list"),
        ({"reference": "r", "language": 3}, "question", "language must be text, not 3"),
        ({"reference": "r", "audio": []}, "question", "it has no audio"),
        ({"reference": "r", "id": None}, "question", "its id is empty"),
        ({"instruction": "x", "form": '{"labels": [1]}'}, "instruct", "the form's labels"),
        ({"instruction": "x", "form": '{"list": -1}'}, "instruct", "the form's list"),
    ],
)
def test_what_a_row_lacks_is_its_finding(row, task, finding):
    rows = items_of([{"id": "a", **row}], task=task)
    assert rows.items == [] and finding in rows.bad[0]["finding"]


@pytest.mark.parametrize(
    ("task", "columns", "wanted"),
    [
        ("translate", ["text"], "'reference' or 'references' or 'messages'"),
        ("classify", ["text", "labels"], "'label'"),
        ("instruct", ["text"], "'instruction' or 'messages'"),
    ],
)
def test_a_missing_column_is_named_with_the_remedy(task, columns, wanted):
    data = Dataset.from_dict({name: ["x"] for name in ["audio", *columns]})
    settings = EvaluationConfig(dataset=["x"], model="m", output_dir="o", task=task)
    with pytest.raises(ValueError, match=f"needs the column {wanted}.*--columns"):
        check_columns(data, settings)


# Recognisers


def test_any_recogniser_of_transformers_can_be_the_cascade_s_ears(tmp_path):
    vocabulary = {"<pad>": 0, "<unk>": 1, "|": 2, "h": 3, "e": 4, "l": 5, "o": 6}
    (tmp_path / "vocab.json").write_text(json.dumps(vocabulary))
    tokenizer = Wav2Vec2CTCTokenizer(str(tmp_path / "vocab.json"), unk_token="<unk>", pad_token="<pad>")
    torch.manual_seed(0)
    model = Wav2Vec2ForCTC(Wav2Vec2Config(**WAVEFORM, vocab_size=len(vocabulary), pad_token_id=0))
    folder = str(tmp_path / "asr")
    model.save_pretrained(folder)
    Wav2Vec2Processor(Wav2Vec2FeatureExtractor(), tokenizer).save_pretrained(folder)
    recogniser = recognisers.PipelineRecogniser(folder, torch.device("cpu"), tell_language=True)
    audio = [tone(0, 0.5), tone(3, 0.7)]
    texts = recogniser.transcribe(audio, ["en", "de"])
    alone = [recogniser.transcribe([one], [None])[0] for one in audio]
    assert recogniser.sampling_rate == 16000 and texts == alone and all(isinstance(text, str) for text in texts)
    with pytest.raises(ValueError, match="cannot be loaded.*ASR model of transformers"):
        recognisers.PipelineRecogniser(str(tmp_path / "nothing"), torch.device("cpu"))


# The command


def test_the_command_says_what_is_missing_and_what_is_unknown(tmp_path, capsys):
    assert main(["evaluate", "--modl", "nano"]) == 2
    assert "modl (did you mean model?)" in capsys.readouterr().err
    assert main(["evaluate", "--model", "nano", "--dataset", "x", "--output_dir", str(tmp_path)]) == 2
    assert "There is no task" in capsys.readouterr().err
    assert (
        main(
            [
                "evaluate",
                "--model",
                "nano",
                "--dataset",
                str(tmp_path / "no"),
                "--task",
                "instruct",
                "--output_dir",
                "o",
            ]
        )
        == 2
    )
    assert "no such file or folder" in capsys.readouterr().err


@pytest.mark.slow
def test_the_embedded_model_is_scored_by_the_command(tmp_path, capsys):
    import speechllm

    examples = Path(speechllm.NANO) / "examples"
    listing = json.loads((examples / "examples.json").read_text(encoding="utf-8"))
    rows = [
        {
            "id": f"{row['language']}-{number}",
            "audio": str(examples / row["file"]),
            "text": row["text"],
            "language": row["language"],
            "instruction": question["instruction"],
            "reference": question["expected"],
        }
        for row in listing
        for number, question in enumerate(row["questions"])
    ]
    manifest = tmp_path / "manifest.jsonl"
    manifest.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n", encoding="utf-8")
    options = ["--task", "question", "--text_bound", "--cascade", "ctc_head", "--headline", "exact"]
    arguments = [
        "evaluate",
        "--model",
        "nano",
        "--dataset",
        str(manifest),
        *options,
        "--output_dir",
        str(tmp_path / "out"),
    ]
    assert main(arguments) == 0
    result = json.loads((tmp_path / "out" / "results.json").read_text())
    assert result["overall"]["speech"]["exact"]["value"] == 100  # as `speechllm demo` shows
    assert result["overall"]["cascade"]["heard_wer"]["value"] < 30
    assert "Exact answers by language" in capsys.readouterr().out


@pytest.mark.slow
def test_two_processes_answer_what_one_does(tmp_path, models):
    one = config(tmp_path / "one", models, text_bound=True)
    evaluation.evaluate(one)
    options = {"dataset": one.dataset[0], "model": models["one"], "task": "transcribe", "max_new_tokens": "6"}
    options |= {"batch_size": "3", "bootstrap_samples": "50", "max_bad_share": "0.5"}
    words = [word for name, value in options.items() for word in (f"--{name}", value)]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command = [*launcher, "-m", "speechllm_cli.main", "evaluate", *words, "--text_bound"]
    root = str(Path(__file__).parent.parent)
    settings = {"ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": root}
    done = subprocess.run(
        [*command, "--output_dir", str(tmp_path / "two" / "out")],
        env=os.environ | settings,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    answers = [lines_of(tmp_path / name) for name in ("one", "two")]
    for rows in answers:
        for row in rows:
            row.pop("seconds")
    assert answers[0] == answers[1]
    results = [json.loads((tmp_path / name / "out" / "results.json").read_text()) for name in ("one", "two")]
    assert results[0]["overall"] == results[1]["overall"]
    assert [result["hardware"]["processes"] for result in results] == [1, 2]
    assert done.stdout.count("All figures") == 1
