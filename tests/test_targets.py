"""Target generation: what is asked and kept, and that no row is lost or doubled however a run ends."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from conftest import scatter_weights, text_config, tiny_speechllm
from datasets import Audio, Features, List, Value, load_dataset
from factories_processing import CHATML, RATE, encoded, make_processor, make_tokenizer, sine
from factories_targets import TRANSCRIPTS, Echo, config, source
from transformers import HfArgumentParser, LlamaForCausalLM

import speechllm
from processing_speechllm import SpeechLLMProcessor
from trainers.commands.arguments import DataArguments
from trainers.targets.answer_language import is_other_language
from trainers.targets.backends import Answer, LocalBackend, Question, identify, load_llm
from trainers.targets.config import TargetsConfig
from trainers.targets.generate import generate_targets, main
from trainers.targets.prompts import load_tasks

ROOT = Path(__file__).parent.parent


def read(folder):
    """All rows, as a user loads them."""
    rows = load_dataset("parquet", data_dir=str(folder), split="train", cache_dir=str(folder) + "-cache")
    return rows.to_list()


def contents(folder):
    return {path.name: path.read_bytes() for path in Path(folder, "data").iterdir()}


# What is asked and kept


@pytest.mark.parametrize(
    ("target_set", "targets"),
    [
        ("T", ["T"]),
        ("BI", ["BI"]),
        ("MI", ["MI", "MI"]),
        ("TMI", ["T", "MI", "MI"]),
        ("continuation", ["continuation"]),
        ("free", ["free"]),
    ],
)
def test_every_utterance_gets_its_targets(tmp_path, target_set, targets):
    report = generate_targets(config(tmp_path, target_set=target_set), source(), Echo())
    rows = read(tmp_path)
    assert [(row["id"], row["target"]) for row in rows] == [
        (f"utterance-{i}", target) for i in range(20) for target in targets
    ]
    assert report["rows"] == report["asked"] == len(rows) and report["complete"] and not report["dropped"]
    assert len({(row["id"], row["prompt_id"]) for row in rows}) == len(rows)
    for row in rows:
        user, assistant = row["messages"]
        kinds = [block["type"] for block in user["content"]]
        answer = assistant["content"][0]["text"]
        asked = "".join(row["text"] if block["text"] is None else block["text"] for block in user["content"])
        assert kinds.count("audio") == 1
        if row["target"] == "T":
            assert (answer, row["task"], row["model"]) == (row["text"], "repeat", None)
        else:
            assert (answer, row["model"]) == (f"{row['seed']}: {asked}".strip(), "some/llm")
        if row["target"] == "continuation":
            assert row["task"] == "continue"
        if row["target"] == "free":
            assert kinds == ["audio"]


def test_a_fixed_prompt_stands_in_place_of_the_pool(tmp_path):
    for target_set, kind in (("T", "T"), ("TMI", "T"), ("continuation", "continuation")):
        settings = config(tmp_path / target_set, target_set=target_set, fixed_prompt="Repeat the sentence: {audio}. ")
        report = generate_targets(settings, source(5), Echo())
        rows = [row for row in read(tmp_path / target_set) if row["target"] == kind]
        assert len(rows) == 5 and report["other_language"] == 0
        for row in rows:
            parts = [block["text"] or block["type"] for block in row["messages"][0]["content"]]
            assert parts == ["Repeat the sentence: ", "audio", ". "]
    with pytest.raises(ValueError, match="fixed_prompt is for target_set T, TMI and continuation, not 'MI'"):
        config(tmp_path, target_set="MI", fixed_prompt="x")


def test_weights_of_tasks_that_the_pool_lacks_are_refused(tmp_path):
    with pytest.raises(ValueError, match="task_weights: the pool has no 'template_translat'. Did you mean"):
        generate_targets(config(tmp_path, target_set="MI", task_weights={"template_translat": 95}), source(2), Echo())


def test_audio_and_every_other_column_are_carried_over_as_they_were(tmp_path):
    given = source(words=[[{"start": 0.0, "end": 0.5, "word": f"w{i}"}] for i in range(20)])
    generate_targets(config(tmp_path, target_set="MI"), given, Echo())
    wanted = [row for row in given.to_list() for _ in range(2)]
    assert [{name: row[name] for name in given.column_names} for row in read(tmp_path)] == wanted
    loaded = load_dataset("parquet", data_dir=str(tmp_path), split="train", cache_dir=str(tmp_path / "cache"))
    assert loaded.features["audio"] == Audio(decode=False) and loaded.features["words"] == given.features["words"]
    assert load_dataset(str(tmp_path), split="train", cache_dir=str(tmp_path / "cache2")).to_list() == loaded.to_list()


def test_provenance_stands_in_every_row(tmp_path):
    settings = config(tmp_path, revision="abc", source_license="CC-BY-4.0", tasks=["topic"])
    generate_targets(settings, source(), Echo())
    rows = read(tmp_path)
    assert {(row["model"], row["revision"], row["source_license"]) for row in rows} == {
        ("some/llm", "abc", "CC-BY-4.0")
    }
    assert {row["task"] for row in rows} == {"topic"}
    assert all(row["prompt_id"].startswith("topic/") for row in rows) and len({row["seed"] for row in rows}) == 20


def test_several_utterances_make_one_row_with_a_block_each(tmp_path):
    generate_targets(config(tmp_path, target_set="BI", utterances_per_row=3), source(), Echo())
    rows = read(tmp_path)
    assert [len(row["audio"]) for row in rows] == [3] * 6 + [2]
    texts = [text for row in rows for text in row["text"]]
    assert texts == source()["text"]
    assert rows[0]["id"] == "utterance-0+utterance-1+utterance-2" and rows[0]["duration"] == 1.5
    assert rows[0]["language"] == ["en", "de", "en"] and rows[0]["audio"][1]["path"] == "clips/1.wav"
    for row in rows:
        blocks = row["messages"][0]["content"]
        assert [block["type"] for block in blocks].count("audio") == len(row["audio"])
        assert "\n".join(row["text"]) in row["messages"][1]["content"][0]["text"]


@pytest.mark.slow
def test_a_shard_may_be_larger_than_what_is_read_at_a_time(tmp_path):
    given = source(230)
    generate_targets(config(tmp_path / "one", rows_per_shard=1000), given, Echo())
    generate_targets(config(tmp_path / "many", rows_per_shard=7), given, Echo())
    assert read(tmp_path / "one") == read(tmp_path / "many")
    generate_targets(config(tmp_path / "pairs", rows_per_shard=1000, utterances_per_row=2), given, Echo())
    assert [text for row in read(tmp_path / "pairs") for text in row["text"]] == given["text"]


def test_empty_answers_and_transcripts_are_dropped_and_counted(tmp_path, capsys):
    given = source(9, text=["speech", "silent", " "] + ["silent"] * 3 + ["speech"] * 3)  # nothing in the second shard
    echo = Echo()
    report = generate_targets(config(tmp_path, target_set="TMI"), given, echo)
    rows = read(tmp_path)
    # of the four silent utterances the transcripts stay
    assert len(rows) == report["rows"] == 4 * 3 + 4
    assert report["asked"] == 27 and report["dropped"] == {"empty_answer": 8, "no_transcript": 3}
    assert len(echo.questions) == 16
    listed = [json.loads(line) for line in (tmp_path / "dropped.jsonl").read_text().splitlines()]
    assert [entry["id"] for entry in listed] == ["utterance-1"] * 2 + ["utterance-2"] * 3 + [
        f"utterance-{i}" for i in (3, 3, 4, 4, 5, 5)
    ]
    assert json.loads((tmp_path / "manifest.json").read_text())["report"] == report
    assert main(config(tmp_path / "again", target_set="T"), given)["rows"] == 8
    assert "1 of 9 questions dropped: no transcript" in capsys.readouterr().out


def test_a_shard_without_any_row_does_not_spoil_the_folder(tmp_path):
    given = source(6, text=["silent"] * 3 + ["speech"] * 3)
    generate_targets(config(tmp_path), given, Echo())
    assert len(read(tmp_path)) == 3
    assert generate_targets(config(tmp_path), given, None)["rows"] == 3  # the empty shard counts as done


def test_a_source_that_does_not_fit_is_refused_with_the_remedy(tmp_path):
    settings = config(tmp_path)
    with pytest.raises(ValueError, match="no column 'text'. Did you mean 'texts'.*columns="):
        generate_targets(settings, source().rename_column("text", "texts"), Echo())
    with pytest.raises(ValueError, match="that this command writes: model, seed. Rename"):
        generate_targets(settings, source(model=["x"] * 20, seed=[0] * 20), Echo())
    with pytest.raises(ValueError, match="transcripts are lists, as of chats"):
        generate_targets(settings, source(text=[["a"]] * 20), Echo())
    with pytest.raises(ValueError, match="not IterableDataset. Choose a split, do not stream"):
        generate_targets(settings, source().to_iterable_dataset(), Echo())
    with pytest.raises(ValueError, match="no rows"):
        generate_targets(settings, source().select([]), Echo())


def test_prompts_follow_the_rows_languages_or_the_setting_and_are_counted(tmp_path, capsys):
    languages = ["de", "en-US", "fr", None, "zh_CN", "de"]
    given = source(6, language=languages)

    def asked(folder, **settings):
        generate_targets(config(tmp_path / folder, **settings), given, Echo())
        return [row["prompt_id"].split("/")[1] for row in read(tmp_path / folder)]

    assert asked("rows") == ["de", "en", "en", "en", "zh", "de"]  # English where the pool lacks the language
    assert set(asked("set", prompt_languages=["es"])) == {"es"}
    assert len(set(asked("all", prompt_languages=["all"]))) > 2  # six rows
    report = main(config(tmp_path / "T", target_set="T", model=None), given)
    assert report["prompt_languages"] == {"de": 2, "en": 3, "zh": 1}
    assert "asked in: en 3, de 2, zh 1" in capsys.readouterr().out


class Foreign(Echo):
    """Answers in German whatever it is asked, cut at its limit every other time."""

    def reply(self, question):
        return Answer(
            "Das ist nicht die Antwort, die du auf eine Frage erwartest.", ["stop", "length"][self.calls % 2]
        )


def test_answers_cut_or_in_another_language_are_counted_and_said(tmp_path, capsys, monkeypatch):
    given = source(6, language=["en", "de"] * 3)
    monkeypatch.setattr("trainers.targets.generate.load_backend", lambda *_: Foreign())
    monkeypatch.setattr("trainers.targets.generate.identify", lambda *_: ("llm", None))
    report = main(config(tmp_path, tasks=["answer"]), given)
    assert (report["other_language"], report["cut_at_limit"]) == (3, 3)
    output = capsys.readouterr().out
    assert "3 answers (50%) cut at their length limit, their ends not taught; raise max_new_tokens" in output
    assert "3 answers (50%) are not in the language asked for" in output


@pytest.mark.parametrize(
    ("text", "language", "other"),
    [
        ("I would like to go there with you.", "en", False),
        ("I would like to go there with you.", "de", True),
        ("Ich würde gerne mit dir dahin gehen.", "de-DE", False),
        ("它很好", "zh", False),
        ("That is what it is.", "zh-CN", True),
        ("これはペンです", "ja", False),
        ("Berlin", "en", False),  # too little to tell
        ("42", "de", False),
        ("Хорошо", "en", True),
        ("I go to the market", "fi", False),  # no function words known for it
    ],
)
def test_another_language_is_told_where_it_is_plain(text, language, other):
    assert is_other_language(text, language) == other


def test_the_limit_of_an_answer_is_its_task_s_own_unless_it_is_set(llm, tmp_path):
    echo = Echo()
    generate_targets(config(tmp_path / "a", tasks=["first_word", "summarise", "answer"]), source(20), echo)
    assert {question.max_new_tokens for question in echo.questions} == {128, 256, 512}
    echo = Echo()
    generate_targets(config(tmp_path / "b", max_new_tokens=9), source(3), echo)
    assert {question.max_new_tokens for question in echo.questions} == {None}
    backend = LocalBackend(*llm, max_new_tokens=6)
    asked = [
        Question([{"role": "user", "content": f"hello {i}"}], i, limit) for i, limit in enumerate((2, None, 4, 999))
    ]
    found = backend.answer(asked, lambda count: None)
    alone = [backend.answer([question], lambda count: None)[0] for question in asked]
    assert found == alone
    tokens = [len(backend.tokenizer(answer.text)["input_ids"]) for answer in found]
    assert tokens[0] <= tokens[2] and max(tokens) > 6  # 999 gives way to the LLM's 512 positions


# Resuming


@pytest.mark.slow
def test_a_run_broken_anywhere_ends_as_an_unbroken_one(tmp_path):
    generate_targets(config(tmp_path / "whole", target_set="TMI"), source(), Echo())
    for call in range(1, 8):
        folder = tmp_path / f"broken-{call}"
        with pytest.raises(KeyboardInterrupt):
            generate_targets(config(folder, target_set="TMI"), source(), Echo(fail_at=call))
        rest = Echo()
        report = generate_targets(config(folder, target_set="TMI"), source(), rest)
        assert rest.calls == 8 - call
        assert contents(folder) == contents(tmp_path / "whole")
    assert report == json.loads((tmp_path / "whole" / "manifest.json").read_text())["report"]


def test_a_full_disk_leaves_no_half_written_shard(tmp_path, monkeypatch):
    def full(table, stream, **kwargs):
        stream.write(b"half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("trainers.data.shards.pq.write_table", full)
    with pytest.raises(OSError, match="No space left"):
        generate_targets(config(tmp_path), source(), Echo())
    monkeypatch.undo()
    assert generate_targets(config(tmp_path), source(), Echo())["rows"] == len(read(tmp_path)) == 20
    assert not [name for name in contents(tmp_path) if name.endswith(".partial")]


def start_processes(folder, pause):
    """Two processes of one run, as `torchrun` and `accelerate launch` start them."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    common = {"ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    common |= {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return [
        subprocess.Popen(
            [sys.executable, str(ROOT / "tests" / "factories_targets.py"), str(folder), str(pause)],
            env={**os.environ, **common, "RANK": rank, "LOCAL_RANK": rank},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in "01"
    ]


@pytest.mark.slow
def test_two_processes_and_a_killed_one_lose_and_double_no_row(tmp_path):
    """Of seven shards the first process has four and the second, killed after its first, one or two. Another run does
    the rest alone; a run of one process says what must come out."""
    first, second = start_processes(tmp_path / "two", pause=0.4)
    shard = tmp_path / "two" / "data" / "train-00001-of-00007.parquet"
    deadline = time.monotonic() + 100
    while second.poll() is None and not shard.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    second.send_signal(signal.SIGKILL)
    assert second.wait() == -signal.SIGKILL
    output, _ = first.communicate(timeout=100)
    left = [name for name in contents(tmp_path / "two") if name.endswith(".parquet")]
    assert first.returncode == 0 and output == f"{len(left)} False\n" and 5 <= len(left) < 7
    rest = Echo()
    report = generate_targets(config(tmp_path / "two", target_set="TMI"), source(), rest)
    assert rest.calls == 7 - len(left) and report["complete"] and report["rows"] == 60
    generate_targets(config(tmp_path / "one", target_set="TMI"), source(), Echo())
    assert contents(tmp_path / "two") == contents(tmp_path / "one")


@pytest.mark.parametrize(
    ("changes", "finding"),
    [
        ({"seed": 1}, "settings.seed was 0 and is 1"),
        ({"rows_per_shard": 4}, "settings.rows_per_shard was 3 and is 4"),
        ({"model": "another/llm"}, "llm.model was 'some/llm' and is 'another/llm'"),
        ({"task_folder": "own"}, "prompts was"),
    ],
)
def test_a_run_with_other_settings_is_not_resumed(tmp_path, changes, finding, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("own").mkdir()
    Path("own", "tasks.yaml").write_text("greet: {prompts: {en: {1: Say hello.}}}", encoding="utf-8")
    generate_targets(config(tmp_path / "out"), source(), Echo())
    before = contents(tmp_path / "out")
    with pytest.raises(ValueError, match="another folder") as error:
        generate_targets(config(tmp_path / "out", **changes), source(), Echo())
    assert finding in str(error.value)
    assert contents(tmp_path / "out") == before


@pytest.mark.parametrize(
    ("changed", "finding"),
    [
        (lambda: source(21), "source.rows was 20 and is 21"),
        (lambda: source(text=[*source()["text"][:19], "something else"]), "source.content was"),
        (lambda: source(audio=[{"path": None, "bytes": b"longer"}] + source()["audio"][1:]), "source.content was"),
    ],
)
def test_a_run_on_a_changed_source_is_not_resumed(tmp_path, changed, finding):
    generate_targets(config(tmp_path), source(), Echo())
    with pytest.raises(ValueError, match="holds a run that differs") as error:
        generate_targets(config(tmp_path), changed(), Echo())
    assert finding in str(error.value)


def test_how_the_work_is_done_may_change_between_runs(tmp_path):
    generate_targets(config(tmp_path), source(), Echo())
    again = config(tmp_path, batch_size=2, concurrency=3, retries=0, timeout=1.0)
    assert generate_targets(again, source(), None)["complete"]


def test_data_without_a_manifest_is_left_alone(tmp_path):
    generate_targets(config(tmp_path), source(), Echo())
    (tmp_path / "manifest.json").unlink()
    with pytest.raises(ValueError, match="no manifest.json"):
        generate_targets(config(tmp_path), source(), Echo())


# A local LLM


@pytest.fixture(scope="module")
def llm():
    tokenizer = make_tokenizer(CHATML)
    ends = {"bos_token_id": None, "eos_token_id": tokenizer.convert_tokens_to_ids("<|im_end|>"), "pad_token_id": 0}
    model = LlamaForCausalLM(text_config(vocab_size=len(tokenizer), **ends))
    return scatter_weights(model), tokenizer


def questions():
    return [Question([{"role": "user", "content": f"{text} {i}"}], i) for i, text in enumerate(TRANSCRIPTS * 2)]


@pytest.mark.parametrize("sampling", [{}, {"temperature": 0.8, "top_p": 0.9}], ids=["greedy", "sampled"])
def test_an_answer_depends_on_neither_batch_nor_order(llm, sampling):
    def ask(asked, batch_size):
        backend = LocalBackend(*llm, batch_size=batch_size, max_new_tokens=12, **sampling)
        return [(answer.text, answer.finish_reason) for answer in backend.answer(asked, lambda count: None)]

    alone = ask(questions(), 1)
    assert len(set(alone)) > 5  # a model that says the same to all would pass, too
    assert ask(questions(), 4) == ask(questions(), 16) == alone
    assert ask(questions()[::-1], 4)[::-1] == alone


def test_sampling_follows_the_seed_and_the_probabilities(llm):
    import torch

    from trainers.targets.backends import SeededSampling

    scores = torch.tensor([0.5, 0.3, 0.15, 0.05]).log().repeat(4000, 1)
    chosen = SeededSampling(list(range(4000)), 1, temperature=1.0, top_p=0.9)(None, scores).argmax(-1)
    shares = torch.bincount(chosen, minlength=4) / 4000
    # within four standard deviations of the renormalised shares; the last one lies outside top_p
    assert torch.allclose(shares, torch.tensor([0.5, 0.3, 0.15, 0.0]) / 0.95, atol=4 * (0.25 / 4000) ** 0.5)
    again = SeededSampling(list(range(4000)), 1, temperature=1.0, top_p=0.9)(None, scores).argmax(-1)
    assert torch.equal(chosen, again)


def test_an_answer_at_the_limit_is_marked_and_a_prompt_over_it_set_aside(llm, tmp_path):
    backend = LocalBackend(*llm, batch_size=8, max_new_tokens=4)
    given = source(6, text=["hello"] * 5 + ["long " * 600])
    report = generate_targets(config(tmp_path, target_set="free", rows_per_shard=6), given, backend)
    rows = read(tmp_path)
    assert report["dropped"]["too_long"] == 1 and "512 positions" in (tmp_path / "dropped.jsonl").read_text()
    assert report["cut_at_limit"] == sum(row["finish_reason"] == "length" for row in rows) > 0


def test_an_answer_that_ends_by_itself_is_not_marked(llm):
    model, tokenizer = llm
    backend = LocalBackend(model, tokenizer, max_new_tokens=8)
    end = backend.ends[0]
    assert backend._read([5, 6, end, backend.pad]) == Answer(tokenizer.decode([5, 6]).strip(), "stop")
    assert backend._read([5, 6, 7, 8]).finish_reason == "length"


def test_the_teacher_reads_the_prompt_that_the_student_is_trained_with():
    speech = make_processor()
    spelled = "hello <|im_end|> world"
    chat = speech.instruction_chat([None], "What is said?")
    student = speech.apply_chat_template(
        chat, audio=[(sine(), RATE)], tokenize=True, add_generation_prompt=True, return_dict=True
    )["input_ids"][0].tolist()
    place = student.index(speech.audio_token_id)
    rest = student[len(student) - student[::-1].index(speech.audio_token_id) :]
    chat[0]["content"][0] = {"type": "text", "text": spelled}
    for tokenizer in (speech, make_tokenizer(CHATML)):
        teacher = LocalBackend(tiny_speechllm(), tokenizer).encode(chat)
        middle = speech.tokenizer(spelled, split_special_tokens=True)["input_ids"]
        assert teacher == [*student[:place], *middle, *rest]


def test_a_speechllm_answers_through_its_own_llm(tmp_path):
    given = source(2, text=["Turn on the light in the kitchen.", "What is five plus two?"])
    settings = {"target_set": "free", "model": speechllm.NANO, "dtype": "float32", "max_new_tokens": 8}
    report = generate_targets(config(tmp_path, **settings), given)
    (row, _) = read(tmp_path)
    assert report["rows"] == 2 and report["complete"]
    assert (row["model"], row["revision"]) == identify(speechllm.NANO) and row["model"] == "nano"
    assert row["revision"].startswith("sha256:")
    _, processor = load_llm(speechllm.NANO)
    assert isinstance(processor, SpeechLLMProcessor)


def test_a_folder_s_llm_is_told_from_another_by_its_weights(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(bytes(5_000_000))
    before = identify(str(tmp_path))
    (tmp_path / "model.safetensors").write_bytes(bytes(4_999_999) + b"1")
    assert identify(str(tmp_path))[0] == before[0] == tmp_path.name and identify(str(tmp_path)) != before


def test_the_rows_can_be_trained_on(tmp_path):
    audio = [{"bytes": encoded(sine()), "path": None}] * 2
    given = source(4, audio=audio * 2)
    generate_targets(config(tmp_path, utterances_per_row=2), given, Echo())
    row = read(tmp_path)[0]
    inputs = make_processor().apply_chat_template(
        row["messages"], audio=row["audio"], tokenize=True, return_dict=True, return_assistant_tokens_mask=True
    )
    assert len(inputs["input_features"]) == 2
    answer = make_processor().tokenizer.decode(inputs["input_ids"][0][inputs["assistant_masks"][0].bool()])
    assert answer == row["messages"][1]["content"][0]["text"] + "<|im_end|>"


# Settings


def test_settings_are_a_command_line():
    (parsed,) = HfArgumentParser(TargetsConfig).parse_args_into_dataclasses(
        ["--output_dir", "o", "--model", "m", "--tasks", "topic", "title", "--temperature", "0.5"]
        + ["--chat_template_kwargs", '{"enable_thinking": false}']
    )
    assert (parsed.tasks, parsed.temperature, parsed.target_set) == (["topic", "title"], 0.5, "BI")
    assert parsed.chat_template_kwargs == {"enable_thinking": False} and parsed.prompts_per_row == 1
    assert all(item.metadata.get("help") for item in TargetsConfig.__dataclass_fields__.values())


@pytest.mark.parametrize(
    ("changes", "finding"),
    [
        ({"target_set": "MTI"}, "one of T, BI"),
        ({"model": None}, "Give model"),
        ({"target_set": "T", "prompts_per_row": 2}, "must be 1"),
        ({"target_set": "MI", "tasks": ["topic"]}, "tasks are for"),
        ({"rows_per_shard": 0}, "at least 1"),
        ({"top_p": 0.0}, "top_p must be in"),
    ],
)
def test_settings_that_make_no_sense_are_refused(tmp_path, changes, finding):
    with pytest.raises(ValueError, match=finding):
        config(tmp_path, **changes)


def test_the_columns_and_types_of_a_row_are_fixed(tmp_path):
    generate_targets(config(tmp_path, target_set="T", model=None), source(), None)
    loaded = load_dataset("parquet", data_dir=str(tmp_path), split="train", cache_dir=str(tmp_path / "cache"))
    block = {"type": Value("string"), "text": Value("string")}
    text = dict.fromkeys(
        ("task", "prompt_id", "target", "finish_reason", "model", "revision", "source_license"), Value("string")
    )
    messages = List({"role": Value("string"), "content": List(block)})
    assert loaded.features == Features(source().features | {"messages": messages, "seed": Value("int64")} | text)


# The page


def blocks(language):
    page = (ROOT / "docs" / "targets.md").read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)


def test_the_page_s_settings_and_pool_are_valid(tmp_path):
    local, endpoint, tasks = blocks("yaml")
    settings = yaml.safe_load(local)
    assert DataArguments(settings.pop("dataset"), columns=settings.pop("columns")).dataset == ["my-name/my-speech"]
    assert TargetsConfig(**settings).chat_template_kwargs == {"enable_thinking": False}
    assert TargetsConfig(**settings | yaml.safe_load(endpoint)).concurrency == 64
    (tmp_path / "tasks.yaml").write_text(tasks, encoding="utf-8")
    assert [task.name for task in load_tasks(tmp_path)] == ["summarise", "translate"]


def test_the_page_s_python_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("tempfile.mkdtemp", lambda: str(tmp_path))
    exec("\n".join(blocks("python")), {})
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("3 [{'role': 'user'") and second == "{'kept': 2, 'no_sentinel': 1}"
    assert (tmp_path / "templates" / "reviews.yaml").exists()
