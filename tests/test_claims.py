"""The papers' claims stay true in the small, and the benchmark of them keeps what it promises."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from filelock import FileLock

from benchmarks.claims import runner
from benchmarks.claims.commands import run_command
from benchmarks.claims.interference import measure
from benchmarks.claims.nano import choose
from benchmarks.claims.nano_rows import Spoken, asked
from benchmarks.claims.real import describe
from benchmarks.claims.report import (
    figure,
)
from benchmarks.claims.runner import Job, missing_before, run_job, training_facts
from benchmarks.claims.variants import Variant, fill, load_paper, merge, papers
from benchmarks.claims.worlds import World, by_language, read_rows, write_rows
from benchmarks.nanoworld.recordings import write_recording
from benchmarks.nanoworld.tasks import draw
from benchmarks.nanoworld.world import frames
from modeling_speechllm.configuration_connectors import connector_config
from modeling_speechllm.connectors import build_connector
from speechllm import NANO
from trainers.commands.inputs import load_checkpoint
from trainers.commands.run import CLASSES
from trainers.imitation_config import SpeechImitationConfig
from trainers.imitation_trainer import ImitationCollator
from trainers.objectives.speech_inputs import connect, embed_prompts

# The claims themselves


@pytest.mark.slow
def test_a_hard_bank_hears_two_interfering_languages_that_shared_queries_mix_up():
    shared, hard = (measure(selection, languages=2, layers=1, steps=250, seed=0) for selection in (None, "hard"))
    assert hard < 0.5 * shared


def interleaved_batch(span_probability: float, text_probability: float, several: bool):
    """Model, batch and kept audio tokens of the embedded model's English example, once or twice in a row."""
    model, processor = load_checkpoint(NANO, "float32")
    examples = json.loads((runner.Path(NANO) / "examples" / "examples.json").read_text(encoding="utf-8"))
    text = next(entry["text"] for entry in examples if entry["language"] == "en")
    words, seconds = text.split(), 1.5
    times = [
        {"word": word, "start": seconds * place / len(words), "end": seconds * (place + 1) / len(words)}
        for place, word in enumerate(words)
    ]
    row = {"id": "one", "audio": f"{NANO}/examples/en.wav", "text": text, "words": times, "draw": (0, 0)}
    if several:
        row |= {name: [row[name], row[name]] for name in ("audio", "text", "words")}
    audios = [{"type": "audio"}] * (2 if several else 1)
    question = {"role": "user", "content": [*audios, {"type": "text", "text": "\nName the device."}]}
    row["messages"] = [question, {"role": "assistant", "content": [{"type": "text", "text": "light"}]}]
    args = SpeechImitationConfig(
        "unused", span_probability=span_probability, text_probability=text_probability, use_cpu=True, bf16=False
    )
    return model, ImitationCollator(processor, args)([row])


def gradients(model, batch) -> torch.Tensor:
    """Length (audio tokens,) of the loss's gradient at each audio token of the connector's output."""
    connected = connect(model, batch)
    connected.embeddings.retain_grad()
    hidden = model.model.language_model(**embed_prompts(model, batch, connected), use_cache=False).last_hidden_state
    logits = model.compute_logits(hidden)
    torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten()).backward()
    return connected.embeddings.grad.norm(dim=-1)


def test_interleaving_teaches_the_audio_tokens_that_stay_and_no_other():
    model, batch = interleaved_batch(span_probability=0.5, text_probability=0.0, several=False)
    whole = interleaved_batch(0.0, 0.0, several=False)[1]
    kept = batch["audio_keep"]
    assert 0 < int(kept.sum()) < kept.numel()
    found = gradients(model, batch)
    assert (found[kept] > 0).all() and (found[~kept] == 0).all()
    assert (gradients(model, whole) > 0).all()
    assert batch["labels"][batch["labels"] >= 0].tolist() == whole["labels"][whole["labels"] >= 0].tolist()


def test_an_utterance_that_stands_as_text_teaches_through_the_other_one_alone():
    model, batch = interleaved_batch(span_probability=0.0, text_probability=1.0, several=True)
    kept = batch["audio_keep"]
    assert sorted(kept.any(-1).tolist()) == [False, True]
    found = gradients(model, batch)
    assert (found[kept] > 0).all() and (found[~kept] == 0).all()


def spoken_english(folder, split: str, count: int) -> list:
    """Recordings of English requests as `Spoken`, made here."""
    made = []
    for number, utterance in enumerate(choose(split, {"en": count}, seed=0)):
        seconds = write_recording((folder / f"{split}-{number}.wav", utterance))
        if seconds is not None:  # espeak-ng crashes on a few
            request = next(f for f in frames() if (f.key, f.text("en")) == (utterance.key, utterance.text))
            made.append(Spoken(f"{split}-{number}", utterance.text, "en", request, seconds))
    return made


def exact_rows(spoken: list, task: str) -> list[dict]:
    """The recordings, each asked one task, with its exact answer."""
    rng = random.Random(0)
    drawn = [(row, draw(task, row.request, "en", rng)) for row in spoken]
    return [row.as_row() | asked(row, example.instruction, example.answer, task) for row, example in drawn]


@pytest.mark.slow
def test_instructions_teach_one_that_transcripts_never_saw(tmp_path):
    """MI over T: a connector with a broken last layer, repaired by transcripts or by translations of the same
    recordings, is asked to translate what it never heard."""
    train, unseen = spoken_english(tmp_path, "train", 32), spoken_english(tmp_path, "validation", 12)
    write_rows(tmp_path / "T", exact_rows(train, "transcribe"), tmp_path)
    write_rows(tmp_path / "MI", exact_rows(train, "translate"), tmp_path)
    write_rows(tmp_path / "translate", exact_rows(unseen, "translate"), tmp_path)
    model, processor = load_checkpoint(NANO, "float32")
    torch.manual_seed(0)
    torch.nn.init.normal_(model.model.multi_modal_projector.linear_2.weight, std=0.02)
    model.save_pretrained(tmp_path / "start")
    processor.save_pretrained(tmp_path / "start")
    settings = {"model": str(tmp_path / "start"), "eval_dataset": [str(tmp_path / "translate")], "learning_rate": 2e-3}
    settings |= {"max_steps": 20, "eval_strategy": "steps", "eval_steps": 20, "save_strategy": "no", "use_cpu": True}
    settings |= {"per_device_train_batch_size": 8, "disable_tqdm": True, "activation_checkpointing": False}
    losses = {}
    for name in ("T", "MI"):
        output = tmp_path / f"model-{name}"
        run_command("imitate", settings | {"dataset": [str(tmp_path / name)], "output_dir": str(output)})
        losses[name] = training_facts(output)["losses"]["cross_entropy"]
    assert losses["MI"] < 0.97 * losses["T"]


# The variants


@pytest.mark.parametrize("world", ["nano", "real"])
@pytest.mark.parametrize("name", papers())
def test_every_variant_of_every_paper_is_a_recipe_of_its_command(name, world):
    paper = load_paper(name, world, {"parents": "parents"})
    known = {
        item.name for command in ("align", "imitate", "distill") for cls in CLASSES[command] for item in fields(cls)
    }
    assert paper.variants and paper.columns
    for variant in paper.variants.values():
        assert set(variant.settings) <= known
        assert not variant.after or paper.variants[variant.after].keep
        assert not variant.frames or variant.frames in describe(Path("out"), None).frames
        if variant.same_as:
            other, _, same = variant.same_as.partition("/")
            assert same in load_paper(other, world, {"parents": "parents"}).variants
        elif variant.settings.get("connector"):  # of a type that has all of these settings
            assert connector_config(dict(variant.settings["connector"])).type == variant.settings["connector"]["type"]


def test_variants_of_lad_have_one_size_in_the_nano_world():
    sizes = []
    for variant in load_paper("lad", "nano").variants.values():
        with torch.device("meta"):
            connector = build_connector(dict(variant.settings["connector"]), 256, 256, 250)
        sizes.append(sum(parameter.numel() for parameter in connector.parameters()))
    assert max(sizes) < 1.05 * min(sizes)


def test_settings_merge_deeply_and_values_are_filled_in_or_named():
    merged = merge({"a": {"b": 1, "c": 2}, "d": 3}, {"a": {"b": None, "e": "$long"}})
    assert merged == {"a": {"c": 2, "e": "$long"}, "d": 3}
    assert fill(merged, {"long": 16}, "here") == {"a": {"c": 2, "e": 16}, "d": 3}
    assert fill("L = $long", {"long": 16}, "here") == "L = 16"
    with pytest.raises(ValueError, match="here: .short is none of the world's values"):
        fill(["$short"], {"long": 16}, "here")
    with pytest.raises(ValueError, match="no paper 'ladd'"):
        load_paper("ladd", "nano")
    with pytest.raises(ValueError, match="knows no world 'mars'"):
        load_paper("lad", "mars")
    assert merge({"a": {"b": 1}}, {"a": {"c": None}}) == {"a": {"b": 1, "c": None}}  # no key of the base: it is said


def test_no_connector_of_the_nano_world_reads_layers_that_its_cache_has_not():
    for paper in ("lad", "mtbi", "bloomzmms", "across"):
        for variant in load_paper(paper, "nano").variants.values():
            connector = variant.settings.get("connector")
            if connector and not variant.same_as:
                told = {key: connector[key] for key in ("type", "layers") if key in connector}
                assert connector_config(told).layers is None, variant.name


def test_rows_lie_beside_their_recordings_and_in_their_languages(tmp_path):
    rows = [{"audio": "speech/a.wav", "language": "en"}, {"audio": ["speech/a.wav", "b.wav"], "language": "de"}]
    write_rows(tmp_path / "data" / "set", rows, tmp_path)
    found = read_rows(tmp_path / "data" / "set")
    assert found[0]["audio"] == "../../speech/a.wav" and found[1]["audio"] == ["../../speech/a.wav", "../../b.wav"]
    assert read_rows(tmp_path) is None
    assert [row["language"] for row in by_language(found, ["de"])["de"]] == ["de"]
    with pytest.raises(ValueError, match="No rows of zh"):
        by_language(found, ["de", "zh"])


# The runner, with commands that only say that they were called


@pytest.fixture
def world(tmp_path) -> World:
    sets = {"set": {"dataset": ["questions"], "task": "question"}}
    sets |= {f"set-{language}": {"dataset": [language], "task": "question"} for language in ("en", "de")}
    data = {name: name for name in ("rows", "rows-en", "rows-de")}
    return World("nano", {"paper": {"model": "nano"}}, data, {"rows": "frames"}, sets, languages=("en", "de"))


@pytest.fixture
def called(monkeypatch) -> list:
    """What the runner has called: commands with their settings, evaluations with their model."""
    calls = []

    def command(name, settings, recipe):
        calls.append((name, settings))
        model = runner.Path(settings["output_dir"])
        model.mkdir(parents=True)
        (model / "config.json").write_text("{}")
        history = [{"loss": 2.0}, {"eval_loss": 1.5, "eval_output": settings["seed"] + 1.0}]
        (model / "trainer_state.json").write_text(json.dumps({"log_history": history}))
        (model / "facts.json").write_text(json.dumps({"training": [{"trained_parameters": 7}]}))

    def evaluate(config):
        calls.append(("evaluate", config.dataset[0]))
        folder = runner.Path(config.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        lines = [{"system": system, "id": "a"} for system in ("text_bound", "speech")]
        (folder / "answers.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        value = {"value": 50.0 if config.dataset[0] != "de" else 70.0, "low": 1, "high": 2, "rows": 1}
        return {"overall": {"speech": {"f1": value}}, "groups": {}, "rows": {"scored": 1}}

    monkeypatch.setattr(runner, "run_command", command)
    monkeypatch.setattr("speechllm.evaluation.run.evaluate", evaluate)
    return calls


def variant(**changes) -> Variant:
    given = {"paper": "paper", "name": "one", "title": "one", "command": "imitate", "settings": {"max_steps": 10}}
    return Variant(**given | {"data": "rows", "questions": ("set",)} | changes)


def test_a_result_is_made_once_and_a_killed_job_goes_on(tmp_path, world, called):
    job = Job(tmp_path, world, variant(), seed=3)
    result = run_job(job)
    assert result["losses"] == {"loss": 1.5, "output": 4.0} and result["trained_parameters"] == 7
    assert figure(result, "set.overall.speech.f1") == 50.0
    assert not (job.folder / "whole" / "model").exists()  # only its figures stay
    assert run_job(job) == result and [name for name, _ in called] == ["imitate", "evaluate"]
    job.result.unlink()  # as if killed after the questions
    assert run_job(job) == result and [name for name, _ in called] == ["imitate", "evaluate"]
    job.result.unlink()  # as if killed in them
    (job.folder / "whole/scores/set/figures.json").unlink()
    assert run_job(job)["losses"] == result["losses"]
    assert [name for name, _ in called] == ["imitate", "evaluate", "evaluate"]


def test_a_job_that_another_process_is_at_is_refused(tmp_path, world, called):
    job = Job(tmp_path, world, variant(), seed=0)
    job.folder.mkdir(parents=True)
    with FileLock(job.folder / "lock"), pytest.raises(RuntimeError, match="Another process is at work"):
        run_job(job)
    assert called == [] and run_job(job)["trained_parameters"] == 7


@pytest.mark.slow
def test_a_worker_ends_with_a_killed_main_process():
    code = """
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
import os, time
from benchmarks.claims.runner import end_with_parent
with ProcessPoolExecutor(1, get_context("spawn"), end_with_parent) as pool:
    print(pool.submit(os.getpid).result(), flush=True)
    pool.submit(time.sleep, 600).result()
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        worker = int(process.stdout.readline())
        process.kill()
    for _ in range(300):
        try:
            os.kill(worker, 0)
        except ProcessLookupError:
            return
        if "\nState:\tZ" in Path(f"/proc/{worker}/status").read_text():  # ended; nobody asks for its status
            return
        time.sleep(0.1)
    os.kill(worker, signal.SIGKILL)
    raise AssertionError("the worker goes on after the main process")


def test_a_job_with_other_settings_is_refused_by_what_changed(tmp_path, world, called):
    run_job(Job(tmp_path, world, variant(), seed=0))
    with pytest.raises(ValueError, match="max_steps.*10.*20"):
        run_job(Job(tmp_path, world, variant(settings={"max_steps": 20}), seed=0))
    with pytest.raises(ValueError, match="after was None and is 'two'"):
        run_job(Job(tmp_path, world, variant(after="two"), seed=0))


def test_parts_divide_the_updates_and_their_figures_are_averaged_and_their_seconds_added(tmp_path, world, called):
    job = Job(tmp_path, world, variant(parts="languages"), seed=0)
    result = run_job(job)
    trainings = [settings for name, settings in called if name == "imitate"]
    assert [settings["max_steps"] for settings in trainings] == [5, 5]
    assert [settings["dataset"] for settings in trainings] == [["rows-en"], ["rows-de"]]
    assert figure(result, "set.overall.speech.f1") == 60.0 and result["parts"] == 2
    for part, seconds in (("en", 3.0), ("de", 5.0)):
        trained = job.folder / part / "trained.json"
        trained.write_text(json.dumps(json.loads(trained.read_text()) | {"seconds": seconds}))
    job.result.unlink()
    assert run_job(job)["seconds"]["training"] == 8.0


def test_frames_are_those_of_the_data_or_those_that_the_variant_names(tmp_path, world, called):
    world = replace(world, frames={"rows": "frames", "reading": "frames-reading"})
    run_job(Job(tmp_path, world, variant(), seed=0))
    run_job(Job(tmp_path, world, variant(name="reads", frames="reading"), seed=0))
    trainings = [settings for name, settings in called if name == "imitate"]
    assert [settings["frames_cache"] for settings in trainings] == ["frames", "frames-reading"]


def test_a_variant_goes_on_from_another_ones_model(tmp_path, world, called):
    second = Job(tmp_path, world, variant(name="two", after="one", settings={"connector": "x"}), seed=0)
    first = Job(tmp_path, world, variant(keep=True), seed=0)
    assert missing_before([second]) == [second] and missing_before([second, first]) == []
    run_job(first)
    assert missing_before([second]) == []
    run_job(second)
    settings = called[-2][1]
    assert settings["model"].endswith("paper/one/seed-0/whole/model") and "connector" not in settings


def test_the_bound_is_asked_once_and_lent_to_the_other_variants(tmp_path, world, called):
    run_job(Job(tmp_path, world, variant(), seed=0))
    run_job(Job(tmp_path, world, variant(name="two"), seed=0))
    run_job(Job(tmp_path, world, variant(name="three", changes_llm=True), seed=0))
    run_job(Job(tmp_path, world, variant(name="elsewhere"), seed=0, device="cuda"))  # in another precision
    lent = "whole/scores/set/answers.part-90000.jsonl"
    borrowed = {path.parts[-6] for path in tmp_path.glob(f"nano/runs/paper/*/seed-0/{lent}")}
    assert borrowed == {"two"}
    lines = (tmp_path / "nano/runs/paper/two/seed-0" / lent).read_text().splitlines()
    assert [json.loads(line)["system"] for line in lines] == ["text_bound"]


def test_the_cascade_is_asked_of_the_frozen_llm_alone(tmp_path, world, called, monkeypatch):
    from speechllm.evaluation import run

    cascades, evaluate = [], run.evaluate
    monkeypatch.setattr(run, "evaluate", lambda config: cascades.append(config.cascade) or evaluate(config))
    asked = {"set": {**world.questions["set"], "cascade": "whisper", "cascade_num_beams": 1}}
    world = replace(world, questions=asked)
    run_job(Job(tmp_path, world, variant(), seed=0))
    run_job(Job(tmp_path, world, variant(name="changed", changes_llm=True), seed=0))
    assert cascades == ["whisper", None]
