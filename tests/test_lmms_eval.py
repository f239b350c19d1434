"""The adapter to lmms-eval against its base class as version 0.7.3 defines it; lmms-eval itself is not needed."""

import importlib
import sys
import tomllib
import types
from pathlib import Path

import pytest
from factories_processing import RATE, encoded, sine

import speechllm

MODULE = "speechllm.evaluation.benchmarks.lmms_eval"


class Base:
    """What the adapter uses of `lmms_eval.api.model.lmms`."""

    is_simple = True

    def __init__(self):
        self._rank, self._world_size, self.task_dict = 0, 1, {}
        self.cache_hook = types.SimpleNamespace(add_partial=lambda attr, request, result: None)

    rank = property(lambda self: self._rank)
    world_size = property(lambda self: self._world_size)


@pytest.fixture
def adapter(monkeypatch):
    for name in ("lmms_eval", "lmms_eval.api", "lmms_eval.api.model"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    sys.modules["lmms_eval.api.model"].lmms = Base
    monkeypatch.delitem(sys.modules, MODULE, raising=False)
    yield importlib.import_module(MODULE)
    sys.modules.pop(MODULE, None)


def request(number, context="Transcribe the speech.", **settings):
    settings = {"max_new_tokens": 16, "do_sample": False, "temperature": 0.0} | settings
    arguments = (context, settings, lambda doc: [doc["audio"]], number, "task", "test")
    return types.SimpleNamespace(args=arguments)


def test_answers_are_the_pipelines_in_order(adapter):
    model = adapter.SpeechLLM(pretrained="nano", batch_size=2)
    files = [f"{speechllm.NANO}/examples/{name}.wav" for name in ("de", "en", "es")]
    model.task_dict = {"task": {"test": [{"audio": file} for file in files]}}
    ask = "Repeat the request word for word."
    requests = [request(0, ask), request(1, "Name the device.", max_new_tokens=8), request(2, ask)]
    answers = model.generate_until(requests)
    expected = [model.pipe({"audio": files[n], "instruction": r.args[0]}) for n, r in enumerate(requests)]
    assert answers == [answer[0]["generated_text"] for answer in expected]
    assert answers[1] == "radio" and all(answers)


def test_an_audio_that_cannot_be_used_ends_nothing_and_is_told(adapter, caplog):
    model = adapter.SpeechLLM(pretrained="nano", batch_size="2")
    files = [f"{speechllm.NANO}/examples/{name}.wav" for name in ("de", "en")]
    long = {"array": sine(40.0), "sampling_rate": RATE}
    model.task_dict = {"task": {"test": [{"audio": audio} for audio in (files[0], long, files[1])]}}
    ask = "Repeat the request word for word."
    answers = model.generate_until([request(number, ask) for number in range(3)])
    assert answers[1] == "" and answers[0] and answers[2]
    told = [record.getMessage() for record in caplog.records if record.name == adapter.__name__]
    assert told[0].startswith("task, split test, row 1: ") and "40.0 s" in told[0]
    assert told[1].startswith("1 rows were answered with nothing")
    with pytest.raises(ValueError, match="task: .*positions.* --gen_kwargs replaces a task's settings"):
        model.generate_until([request(0, ask, max_new_tokens=4096)])


def test_several_processes_and_batch_sizes_are_as_lmms_eval_asks(adapter):
    model = adapter.SpeechLLM(pretrained="nano")
    assert model.device.type == "cpu"
    with pytest.raises(ValueError, match="--batch_size auto: give a number"):
        adapter.SpeechLLM(pretrained="nano", batch_size="auto")


def test_a_row_without_audio_is_asked_by_its_text_and_told_of_once(adapter, caplog):
    model = adapter.SpeechLLM.__new__(adapter.SpeechLLM)
    model.told_of_none = False
    model.task_dict = {"task": {"test": [{"audio": None}]}}
    arguments = ("Name a colour.", {}, lambda doc: doc["audio"], 0, "task", "test")
    chats = [model._chat(arguments), model._chat((*arguments[:2], lambda doc: [], *arguments[3:]))]
    assert chats[0] == chats[1] and all(block["type"] == "text" for block in chats[0][0]["content"])
    assert len(caplog.records) == 1 and "task, split test, row 0" in caplog.text


def test_without_text_the_turn_is_the_speech_alone(adapter):
    model = adapter.SpeechLLM.__new__(adapter.SpeechLLM)
    model.task_dict = {"task": {"test": [{"audio": {"array": sine(), "sampling_rate": RATE, "path": None}}]}}
    (message,) = model._chat(request(0, " ").args)
    assert [block["type"] for block in message["content"]] == ["audio"]
    assert set(message["content"][0]["audio"]) == {"array", "sampling_rate"}


def test_settings_are_passed_on_and_unknown_ones_refused(adapter):
    greedy = {"max_new_tokens": 5, "num_beams": 2, "do_sample": False}
    assert adapter.generation_settings({**greedy, "temperature": 0, "top_p": None, "until": "\n"}, 9) == (
        greedy,
        ["\n"],
    )
    sampled, stops = adapter.generation_settings({"temperature": 0.7, "do_sample": True, "until": None}, 9)
    assert sampled == {"max_new_tokens": 9, "temperature": 0.7, "do_sample": True} and stops == []
    with pytest.raises(ValueError, match="image_aspect_ratio, which speechllm does not know"):
        adapter.generation_settings({"image_aspect_ratio": "pad"}, 9)
    with pytest.raises(ValueError, match="does not know max_length"):
        adapter.SpeechLLM(max_length=3)


def test_stop_strings_cut_and_what_is_no_audio_is_refused(adapter):
    assert adapter.cut(" yes\n\nno ", ["\n\n"]) == "yes" and adapter.cut("a ", []) == "a"
    assert adapter.as_audio(encoded(sine())) and adapter.as_audio("a.wav") == "a.wav"
    with pytest.raises(ValueError, match="which is no audio"):
        adapter.as_audio(sine())


def test_lmms_eval_finds_the_class(adapter, monkeypatch):
    registry = types.ModuleType("lmms_eval.models.registry_v2")
    registry.ModelManifest = lambda **fields: fields
    monkeypatch.setitem(sys.modules, "lmms_eval.models", types.ModuleType("lmms_eval.models"))
    monkeypatch.setitem(sys.modules, "lmms_eval.models.registry_v2", registry)
    fields = adapter.manifest()
    module, _, name = fields["simple_class_path"].rpartition(".")
    assert fields["model_id"] == "speechllm" and getattr(importlib.import_module(module), name) is adapter.SpeechLLM
    project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["entry-points"]["lmms_eval.models"] == {"speechllm": f"{MODULE}:manifest"}
