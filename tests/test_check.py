"""`speechllm check`: a sound folder passes, each fault is one failing line that says what to do."""

import json
import shutil

import pytest
import torch
from factories_publishing import edit_json, tiny_export
from safetensors.torch import save_file

from hub_cards import check
from hub_cards.check import check_folder
from hub_cards.facts import update_facts
from speechllm_cli.main import main


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    return tiny_export(tmp_path_factory.mktemp("check"))


@pytest.fixture
def folder(exported, tmp_path):
    return shutil.copytree(exported, tmp_path / "copy")


def failing(folder) -> list:
    return [finding for finding in check_folder(folder, load=False) if finding.status == "FAIL"]


@pytest.mark.slow
def test_a_sound_folder_loads_both_ways_and_answers_its_example(exported, capsys):
    assert main(["check", str(exported)]) == 0
    output = capsys.readouterr().out
    assert "FAIL" not in output and output.endswith("Ready to be published.\n")
    for line in ("load: package", "load: own code", "asked: package", "asked: own code"):
        assert f"ok    {line}" in output


def append(name, text):
    return lambda folder: (folder / name).open("a", encoding="utf-8").write(text)


def stray(folder):
    save_file({"weight": torch.zeros(1)}, folder / "head.safetensors")


def no_auto_model(folder):
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"].pop("AutoModel")
    (folder / "config.json").write_text(json.dumps(config))


def older_pipeline(folder):
    edit_json(folder / "config.json", custom_pipelines={"speech-instruct": {}})


def under_llama(folder):
    update_facts(folder, {"parents": [{"role": "LLM", "id": "meta-llama/Llama-3.1-8B", "license": "llama3.1"}]})


FAULTS = {
    "a file is missing": (lambda f: (f / "processor_config.json").unlink(), "files", "missing: processor_config.json"),
    "half a file": (append("x.partial", "x"), "files", "links or halves: x.partial"),
    "helper weights at the top": (stray, "weights", "head.safetensors"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "weights", "missing: model.safetensors"),
    "broken weights": (lambda f: (f / "model.safetensors").write_bytes(b"x" * 50), "weights", "Error"),
    "pickle by name": (append("optimizer.pt", "x"), "pickle", "optimizer.pt"),
    "pickle by content": (lambda f: (f / "state.json").write_bytes(b"\x80\x04K\x01."), "pickle", "state.json"),
    "a Hub token": (append("README.md", "hf_" + "a" * 34), "secrets", "README.md:"),
    "a Hub token in Latin-1": (
        lambda f: (f / "notes.txt").write_bytes(b"M\xfcller: hf_" + b"a" * 34),
        "secrets",
        "notes.txt:1",
    ),
    "a key in the settings": (append("facts.json", ' "api_key": "0123456789abcdef"'), "secrets", "a password"),
    "a path": (append("README.md", "\ntrained in /home/somebody/run\n"), "absolute paths", "/home/somebody"),
    "a path of Windows": (append("README.md", "\nC:\\Users\\somebody\n"), "absolute paths", "C:\\Users"),
    "an Auto class is missing": (no_auto_model, "code", "AutoModel"),
    "a pipeline that asks for remote code": (older_pipeline, "code", "config.json has custom_pipelines"),
    "a module is missing": (lambda f: (f / "lengths.py").unlink(), "code", "lengths.py is missing"),
    "metadata that cannot be read": (lambda f: (f / "README.md").write_text("---\na: [\n---\n"), "card", "Error"),
    "no pipeline tag": (lambda f: (f / "README.md").write_text("---\nlicense: mit\n---\n"), "card", "pipeline_tag"),
    "no licence": (lambda f: (f / "README.md").write_text("---\nlanguage: en\n---\n"), "licence", "none is stated"),
    "no text of the licence": (lambda f: (f / "LICENSE").unlink(), "licence", "the text of apache-2.0 is missing"),
    "a parent's terms": (under_llama, "licence", "under llama3.1, the card says apache-2.0"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_is_a_failing_line_with_a_remedy(folder, fault):
    assert not failing(folder)
    spoil, subject, detail = FAULTS[fault]
    spoil(folder)
    found = [finding for finding in failing(folder) if finding.subject == subject]
    assert found and detail in found[0].detail, [vars(finding) for finding in failing(folder)]
    assert all(finding.remedy for finding in found)


def test_a_folder_below_a_cache_is_seen(folder, tmp_path):
    inside = shutil.copytree(folder, tmp_path / ".cache" / "folder")
    append("README.md", "hf_" + "a" * 34)(inside)
    assert [finding.subject for finding in failing(inside)] == ["secrets"]


def test_an_empty_folder_is_said_to_be_empty(tmp_path):
    assert any(finding.detail == f"{tmp_path} is empty" for finding in failing(tmp_path))


def test_a_card_edited_by_hand_is_noted_not_refused(folder):
    append("README.md", "\nMore of my own.\n")(folder)
    notes = [f.detail for f in check_folder(folder, load=False) if f.status == "note" and f.subject == "card"]
    assert any("differs from what facts.json gives" in detail for detail in notes) and not failing(folder)


def test_facts_that_are_not_measured_are_named_with_what_measures_them(folder):
    (note,) = [f for f in check_folder(folder, load=False) if f.detail.startswith("not measured: ")]
    assert "Results, Text ability, Behaviour outside its training (2), Known failures" in note.detail
    for remedy in ("speechllm evaluate, then export --results", "overlap --card", "update_facts, see docs/publish.md"):
        assert note.remedy.count(remedy) == 1


def loaded(way, answers):
    module = "transformers_modules.x" if way == "own code" else "modeling_speechllm"
    return {"classes": ["A", "B", "C"], "modules": [module] * 3, "answers": answers}


def test_another_answer_than_the_example_s_fails(folder, monkeypatch):
    monkeypatch.setattr(
        check, "load_in_new_process", lambda place, way, questions, parents: (loaded(way, ["something else"]), "")
    )
    found = [finding for finding in check.check_loading(folder) if finding.status == "FAIL"]
    assert [finding.subject for finding in found] == ["asked: package", "asked: own code"]
    assert all("“something else”, expected “" in finding.detail for finding in found)


def test_code_that_is_not_the_folder_s_own_fails(folder, monkeypatch):
    monkeypatch.setattr(
        check, "load_in_new_process", lambda place, way, questions, parents: (loaded("package", ["?"]), "")
    )
    (first, second) = [finding for finding in check.check_loading(folder) if finding.status == "FAIL"]
    assert second.subject == "load: own code" and "classes came from modeling_speechllm" in second.detail


def test_a_model_that_cannot_be_loaded_is_not_tried(folder, capsys):
    edit_json(folder / "config.json", auto_map={})
    assert main(["check", str(folder)]) == 1
    assert "note  loading          not tried" in capsys.readouterr().out


def test_no_folder_is_a_failing_line(tmp_path, capsys):
    assert main(["check", str(tmp_path / "nothing")]) == 1
    assert "is no folder" in capsys.readouterr().out
