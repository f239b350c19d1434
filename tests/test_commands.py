"""The commands in this process: recipes and options, what is refused and how, what a training leaves behind."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace

import pytest
import soundfile
import torch
import yaml
from conftest import name_parents, text_config, tiny_speechllm, whisper_config
from datasets import Dataset
from factories_processing import CHATML_MARKED, RATE, make_extractor, make_tokenizer
from factories_training import TEXTS, tone
from transformers import AutoModelForCausalLM

import speechllm
from benchmarks.nanoworld.recordings import choose, write_tasks
from modeling_speechllm import SpeechLLMForConditionalGeneration
from processing_speechllm import SpeechLLMProcessor
from speechllm.evaluation.config import EvaluationConfig
from speechllm_cli.loading import ask_pipeline, load_pipeline
from speechllm_cli.main import main
from trainers.commands import run as commands
from trainers.commands.arguments import LaunchArguments, ScriptArguments
from trainers.commands.inputs import evaluation_split, load_speech_model, weigh_targets
from trainers.commands.parsing import RECIPES, parse
from trainers.speech_config import NOT_ACTED_ON
from trainers.targets.prompts import load_tasks

QUICK = {
    **{"max_steps": 2, "per_device_train_batch_size": 2, "logging_steps": 1, "save_strategy": "no", "use_cpu": True},
    **{"disable_tqdm": True, "activation_checkpointing": False, "learning_rate": 1e-3},
}
CLASSES = {**commands.CLASSES, "evaluate": (EvaluationConfig, LaunchArguments)}
CONV = {"type": "conv", "convolutions": 1, "bottleneck_size": 8}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A tiny random SpeechLLM with its processor."""
    tokenizer = make_tokenizer(CHATML_MARKED)
    tokenizer.pad_token = "<|im_start|>"
    text = text_config(vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id)
    model = tiny_speechllm(
        whisper_config(num_mel_bins=80, max_source_positions=100), text, audio_token_id=len(tokenizer)
    )
    model.generation_config.max_new_tokens = 4
    path = tmp_path_factory.mktemp("model")
    model.save_pretrained(path)
    SpeechLLMProcessor.from_parts(make_extractor(), tokenizer, model.config).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """A folder with a manifest of six tones, one of which is too long for the limit that tests set."""
    path = tmp_path_factory.mktemp("data")
    lines = []
    for number in range(6):
        seconds = 3.0 if number == 5 else 0.5 + 0.1 * number
        soundfile.write(path / f"{number}.wav", tone(number, seconds), RATE)
        row = {"audio": f"{number}.wav", "text": TEXTS[number], "language": "en", "id": f"tone-{number}"}
        lines.append(json.dumps(row))
    (path / "manifest.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return path


@pytest.fixture
def recipe(tmp_path, folder, data):
    """Writes a recipe with the quick settings and those given; returns its path."""

    def write(**settings) -> str:
        base = {"model": str(folder), "dataset": [str(data)], "output_dir": str(tmp_path / "out")}
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump(QUICK | base | settings), encoding="utf-8")
        return str(path)

    return write


def run(command, *arguments, capsys) -> tuple[int, str, str]:
    status = main([command, *arguments])
    return status, *capsys.readouterr()


# Recipes and options


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_recipe_says_what_it_is_and_parses(path):
    head = path.read_text(encoding="utf-8").split("\n\n")[0].splitlines()
    comments = [line for line in head if line.startswith("#")]
    for word in ("Purpose:", "Source:", "Hardware", "Command:"):
        assert any(line.startswith(f"# {word}") for line in comments), word
    words = next(line for line in reversed(comments) if f"--config {path.stem}" in line).split()
    command = words[words.index("--config") - 1]
    filled = parse(CLASSES[command], ["--config", path.stem], "test")
    assert filled[0].output_dir == yaml.safe_load(path.read_text(encoding="utf-8"))["output_dir"]


def test_options_win_over_the_recipe_and_mappings_may_be_json(recipe):
    path = recipe(connector=CONV, columns={"a": "b"}, learning_rate="2e-3", augmentation={"speed_factors": [0.9]})
    classes = commands.CLASSES["imitate"]
    config, script, _ = parse(classes, ["--config", path], "test")
    assert (config.learning_rate, config.augmentation) == (2e-3, {"speed_factors": [0.9]})
    assert (script.connector, script.columns) == (CONV, {"a": "b"})
    options = ["--learning-rate", "5e-4", "--connector", '{"type": "granite"}', "--dataset", "x", "y", "--max_steps=7"]
    options += [
        "--augmentation",
        '{"noise_probability": 0.5}',
        "--no_save_trained_only",
        "--target_weights",
        '{"T": 1}',
    ]
    config, script, _ = parse(classes, [*options, f"--config={path}"], "test")
    assert (config.learning_rate, config.max_steps, config.save_trained_only) == (5e-4, 7, False)
    assert config.augmentation == {"noise_probability": 0.5} and script.target_weights == {"T": 1}
    assert script.connector == {"type": "granite"} and script.dataset == ["x", "y"]


@pytest.mark.parametrize("command", CLASSES)
def test_unknown_settings_are_refused_with_the_nearest(command, tmp_path, capsys):
    name = "output_dirr"
    (tmp_path / "recipe.yaml").write_text(f"{name}: x\n")
    status, output, errors = run(command, "--config", str(tmp_path / "recipe.yaml"), capsys=capsys)
    assert (status, output) == (2, "") and f"{name} (did you mean output_dir?)" in errors
    status, _, errors = run(command, f"--{name}", "x", capsys=capsys)
    assert status == 2 and f"{name} (did you mean output_dir?)" in errors


@pytest.mark.parametrize(
    ("text", "finding"),
    [
        ("max_steps: many", "invalid int value: 'many'"),
        ("dataset: {a: b}", "dataset is a list"),
        ("max_steps: [1, 2]", "max_steps takes one value"),
        ("max_steps: 1\nmax_steps: 2", "max_steps stands twice (line 2)"),
        ("- max_steps", "holds no settings"),
        ("max_steps: [1", "while parsing"),
        ("connector: '{type: conv}'\nmodel: m\ndataset: [d]", "connector is no JSON"),
        ("model: [a, b]\ndataset: [d]", "model=['a', 'b'] is not one name"),
        ("dataset: [d]", "Name a model"),
        ("model: m", "Name the data"),
        ("model: m\naudio: a\ntext: t\ndataset: [d]", "not both"),
    ],
)
def test_settings_that_do_not_fit_are_one_message(text, finding, tmp_path, capsys):
    (tmp_path / "recipe.yaml").write_text(text)
    status, output, errors = run("imitate", "--config", str(tmp_path / "recipe.yaml"), capsys=capsys)
    assert (status, output) == (2, "")
    assert errors.startswith("speechllm: ") and finding in errors and "Traceback" not in errors


@pytest.mark.parametrize(
    ("name", "setting"),
    [
        ("group_by_length", "train_sampling_strategy: group_by_length"),
        ("evaluation_strategy", "eval_strategy"),
        ("text_column", 'columns: {"its name": "text"}'),
    ],
)
def test_a_setting_of_another_name_is_named(name, setting, capsys):
    status, _, errors = run("align", f"--{name}", "true", capsys=capsys)
    assert status == 2 and f"{name} (did you mean {setting}?)" in errors


@pytest.mark.slow
def test_what_comes_next_is_said(recipe, tmp_path, capsys):
    for command, words in (("align", "speechllm imitate --model"), ("imitate", "Ask it: speechllm ask")):
        status, output, _ = run(command, "--config", recipe(output_dir=str(tmp_path / command)), capsys=capsys)
        assert status == 0 and words in output.splitlines()[-1]


@pytest.mark.slow
def test_a_single_path_is_a_list_of_one(recipe, data, capsys):
    path = recipe(dataset=str(data), max_seconds=2)
    status, output, _ = run("align", "--config", path, capsys=capsys)
    assert status == 0 and f"{data}: manifest, split train, 6 clips\nTraining data: 5 of 6 rows kept" in output
    assert ScriptArguments(model="m", dataset="d", eval_dataset="e").eval_dataset == ["e"]


def test_datasets_of_one_audio_a_row_and_of_several_are_told_apart(recipe, data, tmp_path, capsys):
    chat = [{"role": "user", "content": "<audio>"}, {"role": "assistant", "content": "yes"}]
    path = tmp_path / "chats.jsonl"
    path.write_text(json.dumps({"messages": chat, "audios": [str(data / "0.wav")]}), encoding="utf-8")
    status, _, errors = run("imitate", "--config", recipe(dataset=[str(data), str(path)]), capsys=capsys)
    assert status == 2 and f"'audio' is a list in {path} and one value in {data}. Columns of one name" in errors


def test_evaluation_takes_the_validation_split_of_folders_that_have_one(data, tmp_path):
    assert evaluation_split(str(data), None) == "train"
    for name in ("train", "dev"):
        (tmp_path / f"{name}.jsonl").write_bytes((data / "manifest.jsonl").read_bytes())
    assert evaluation_split(str(tmp_path), None) == "validation"
    assert evaluation_split("owner/name", None) == "validation"
    assert evaluation_split(str(tmp_path), "train") == "train"


def test_a_recipe_that_is_not_there_names_those_that_are(capsys):
    status, _, errors = run("imitate", "--config", "nano-imitat", capsys=capsys)
    assert status == 2 and "nano-imitate.yaml" in errors


@pytest.mark.parametrize("command", CLASSES)
def test_help_lists_settings_and_an_example(command, capsys):
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    text = capsys.readouterr().out
    assert stop.value.code == 0
    assert "--output_dir" in text and "60 seconds with it" in text
    assert f"speechllm {command} --config nano-" in text or f"speechllm {command} --dataset nano-" in text


@pytest.mark.parametrize("command", commands.FIRST)
def test_the_short_help_shows_ten_settings_and_the_long_one_all_by_group(command, capsys):
    texts = {}
    for words in (["--help"], ["--help", "all"]):
        with pytest.raises(SystemExit):
            main([command, *words])
        texts[len(words)] = capsys.readouterr().out
    short, long = (set(re.findall(r"^  --(\w+)", texts[size], re.MULTILINE)) for size in (1, 2))
    assert short == {"config", *commands.FIRST[command]} and len(short) == 11
    classes = commands.CLASSES[command]
    refused = set(NOT_ACTED_ON) if command in commands.TRAINERS else set()
    assert long == {"config"} | {item.name for cls in classes for item in fields(cls) if item.init} - refused
    assert f"speechllm {command} --help all" in texts[1]
    assert ("\ntransformers:\n" in texts[2]) == (command in commands.TRAINERS) and "\ndata:\n" in texts[2]


def test_the_list_of_commands_imports_nothing_heavy():
    code = (
        "import sys; from speechllm_cli.main import build_parser; text = build_parser().format_help();"
        "assert all(name in text for name in ('align', 'imitate', 'distill', 'targets', 'encode'));"
        "print(sorted({'torch', 'transformers', 'trainers', 'numpy'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (result.stdout, result.stderr) == ("[]\n", "")


def test_the_readme_trains_with_recipes_that_are_packaged():
    section = (RECIPES.parents[2] / "README.md").read_text(encoding="utf-8").split("## Train")[1].split("\n## ")[0]
    named = re.findall(r"speechllm (\w+) --config (\S+)", section)
    assert {command for command, _ in named} == {"targets", "encode", *commands.TRAINERS}
    for command, recipe in named:
        parse(commands.CLASSES[command], ["--config", recipe], "test")


# What is checked before anything is launched


@pytest.fixture
def unlaunched(monkeypatch):
    """Fails where processes would be launched or weights loaded."""

    def never(*arguments):
        raise AssertionError("went on")

    for name in ("start_through_accelerate", "load_speech_model"):
        monkeypatch.setattr(commands, name, never)


@pytest.mark.parametrize(
    ("settings", "finding"),
    [
        ({"dataset": ["./nowhere.jsonl"]}, "nowhere.jsonl: no such file"),
        ({"dataset": ["nowhere/train"]}, "nowhere/train: no such file or folder here"),
        ({"eval_dataset": ["/nowhere"]}, "Check the path in eval_dataset"),
        ({"model": "./nowhere"}, "model: there is no folder './nowhere'"),
        ({"model": "nowhere/model"}, "nowhere/model"),
        ({"connector": "stack_mpl"}, "Unknown connector 'stack_mpl'"),
        ({"frames_cache": "nowhere"}, "frames_cache: there is no 'nowhere'"),
        ({"augmentation": {"noise_folder": "nowhere"}}, "no noise_folder 'nowhere'"),
        ({"report_to": "wandb"}, "pip install wandb"),
        ({"accelerate_config": "zero2"}, 'pip install "speechllm[deepspeed]"'),
        ({"accelerate_config": "zero5"}, "no file 'zero5'"),
        ({"push_to_hub": True}, "HF_HUB_OFFLINE is set"),
        ({"columns": {"nothing": "text"}}, "no column 'nothing'"),
    ],
)
def test_all_that_can_be_checked_is_checked_before_a_launch(
    settings, finding, recipe, unlaunched, monkeypatch, capsys
):
    known = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name in ("wandb", "deepspeed") else known(name)
    )
    status, _, errors = run("align", "--config", recipe(**{"accelerate_config": "ddp"} | settings), capsys=capsys)
    assert status == 2 and finding in errors, errors


def test_without_any_argument_the_command_prints_its_help(capsys):
    assert main([]) == 0
    assert "60 seconds with it" in capsys.readouterr().out


# A training


@pytest.mark.slow
def test_a_training_leaves_a_model_that_answers(recipe, data, tmp_path, capsys):
    path = recipe(connector=CONV, max_seconds=2, eval_dataset=[str(data)], eval_strategy="steps", eval_steps=1)
    status, output, errors = run("imitate", "--config", path, capsys=capsys)
    assert status == 0, errors
    assert "Training data: 5 of 6 rows kept, 1 removed by max_seconds" in output and "eval_loss" in output
    out = tmp_path / "out"
    assert ask_pipeline(load_pipeline(str(out)), [str(data / "0.wav")], "hello") is not None
    model = SpeechLLMForConditionalGeneration.from_pretrained(out)
    assert model.config.connector["type"] == "conv"
    history = json.loads((out / "trainer_state.json").read_text())["log_history"]
    assert sum("loss" in entry for entry in history) == 2
    assert not list(out.rglob("*.bin"))


@pytest.mark.slow
def test_of_known_parents_the_trained_part_alone_is_saved_and_goes_on(recipe, folder, data, tmp_path, capsys):
    parents = write_parents(folder, tmp_path)
    settings = parents | {"model": None, "connector": CONV}
    status, _, errors = run("align", "--config", recipe(**settings), capsys=capsys)
    assert status == 0, errors
    assert (tmp_path / "out" / "trained.safetensors").exists() and not (
        tmp_path / "out" / "model.safetensors"
    ).exists()
    second = recipe(model=str(tmp_path / "out"), output_dir=str(tmp_path / "second"))
    status, _, errors = run("imitate", "--config", second, capsys=capsys)
    assert status == 0, errors
    assert (tmp_path / "second" / "trained.safetensors").exists()
    pipe = load_pipeline(str(tmp_path / "second"))
    assert pipe.model.config.connector["type"] == "conv"
    assert ask_pipeline(pipe, [str(data / "0.wav")], "hello") is not None


def write_parents(folder: Path, place: Path) -> dict[str, str]:
    """Encoder and LLM of a SpeechLLM in folders of their own."""
    model = SpeechLLMForConditionalGeneration.from_pretrained(folder)
    processor = SpeechLLMProcessor.from_pretrained(folder)
    llm = AutoModelForCausalLM.from_config(model.config.text_config)
    names = {"audio": str(place / "encoder"), "text": str(place / "llm")}
    model.model.audio_tower.encoder.save_pretrained(names["audio"])
    processor.feature_extractor.save_pretrained(names["audio"])
    llm.save_pretrained(names["text"])
    processor.tokenizer.save_pretrained(names["text"])
    return names


@pytest.mark.slow
def test_lora_is_merged_into_a_model_like_any_other(recipe, folder, data, tmp_path, capsys):
    status, _, errors = run("imitate", "--config", recipe(lora_groups=["llm"], learning_rate=0.1), capsys=capsys)
    assert status == 0, errors
    before = SpeechLLMForConditionalGeneration.from_pretrained(folder).state_dict()
    after = SpeechLLMForConditionalGeneration.from_pretrained(tmp_path / "out").state_dict()
    changed = {name.split(".")[1] for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"language_model", "multi_modal_projector"}
    assert load_pipeline(str(tmp_path / "out"))


def test_a_finished_training_is_not_overwritten(recipe, tmp_path, capsys):
    out = tmp_path / "out"
    out.mkdir()
    (out / "config.json").write_text("{}")
    status, _, errors = run("align", "--config", recipe(), capsys=capsys)
    assert status == 2 and "config.json already" in errors and "another output_dir" in errors


@pytest.mark.slow
def test_the_same_command_goes_on_and_false_starts_anew_only_in_an_empty_folder(recipe, tmp_path, capsys):
    path = recipe(save_strategy="steps", save_steps=2)
    assert run("align", "--config", path, capsys=capsys)[0] == 0
    status, output, _ = run("align", "--config", path, "--max_steps", "4", capsys=capsys)
    assert status == 0 and f"Going on from {tmp_path / 'out' / 'checkpoint-2'}" in output
    history = json.loads((tmp_path / "out" / "trainer_state.json").read_text())["log_history"]
    assert [entry["step"] for entry in history if "loss" in entry] == [1, 2, 3, 4]
    status, _, errors = run("align", "--config", path, "--resume_from_checkpoint", "false", capsys=capsys)
    assert status == 2 and "checkpoint-2" in errors
    status, output, _ = run(
        "align",
        "--config",
        path,
        "--resume_from_checkpoint",
        "false",
        "--output_dir",
        str(tmp_path / "new"),
        capsys=capsys,
    )
    assert status == 0 and "Going on" not in output


@pytest.mark.slow
def test_a_cache_is_written_and_trained_from(recipe, folder, data, tmp_path, capsys):
    cache = str(tmp_path / "cache")
    arguments = ["--model", str(folder), "--dataset", str(data), "--output_dir", cache, "--device", "cpu"]
    status, output, errors = run("encode", *arguments, "--storage_dtype", "float32", capsys=capsys)
    assert status == 0 and "audios 6" in output, errors
    path = recipe(train_sampling_strategy="sequential")
    losses = []
    for name, extra in (("a", []), ("b", ["--frames_cache", cache])):
        out = tmp_path / name
        status, _, errors = run("align", "--config", path, "--output_dir", str(out), *extra, capsys=capsys)
        assert status == 0, errors
        history = json.loads((out / "trainer_state.json").read_text())["log_history"]
        losses.append([entry["loss"] for entry in history if "loss" in entry])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


# What goes wrong


@pytest.mark.parametrize(
    ("error", "status", "finding"),
    [
        (FloatingPointError("The loss is nan."), 1, "The loss is nan."),
        (RuntimeError("9 of 10 rows cannot be used."), 1, "9 of 10 rows"),
        (KeyboardInterrupt(), 130, "stopped."),
        (FileNotFoundError("no such folder."), 2, "no such folder."),
    ],
)
def test_errors_are_one_message_and_say_how_to_go_on(error, status, finding, recipe, tmp_path, monkeypatch, capsys):
    def broken(*arguments):
        raise error

    broken.__code__ = broken.__code__.replace(co_filename=commands.__file__)
    monkeypatch.setattr(commands, "train", broken)
    got, output, errors = run("distill", "--config", recipe(), capsys=capsys)
    assert (got, output) == (status, "") and finding in errors and errors.count("\n") == 1
    assert status == 2 or "The same command goes on" in errors


def test_an_error_of_another_library_keeps_its_traceback(recipe, monkeypatch):
    monkeypatch.setattr(commands, "train", lambda *settings: torch.zeros(2) @ torch.zeros(3))
    with pytest.raises(RuntimeError, match="inconsistent tensor size|size mismatch|1D"):
        main(["distill", "--config", recipe()])


def test_accelerate_starts_the_same_command(recipe, tmp_path, monkeypatch, capsys):
    started = []
    monkeypatch.delenv(commands.LAUNCHED, raising=False)
    monkeypatch.setattr(os, "execv", lambda program, words: started.append(words) or 0)
    monkeypatch.setattr(os, "environ", dict(os.environ))
    path, config = recipe(), tmp_path / "two.yaml"
    config.write_text("num_processes: 2\n")
    arguments = ["--config", path, "--accelerate_config", str(config), "--max_steps", "3"]
    main(["align", *arguments])
    assert started[0][1:] == [
        *("-m", "accelerate.commands.launch", "--config_file", str(config), "-m", "speechllm_cli.main", "align"),
        *arguments,
    ]
    monkeypatch.setattr(
        os, "environ", {name: value for name, value in os.environ.items() if name != commands.LAUNCHED}
    )
    assert main(["align", "--config", path, "--accelerate_config", "five"]) == 2
    assert "no file 'five'" in capsys.readouterr().err
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    assert main(["align", "--config", path, "--accelerate_config", "ddp"]) == 2
    assert "is for several GPUs, and this machine has none. Two processes on a CPU" in capsys.readouterr().err
    (tmp_path / "cpu.yaml").write_text("distributed_type: MULTI_CPU\nuse_cpu: true\nnum_processes: 2\n")
    assert main(["align", "--config", path, "--accelerate_config", str(tmp_path / "cpu.yaml")]) == 2
    assert "starts several processes on a CPU, of which Accelerate makes one each. Two" in capsys.readouterr().err
    assert len(started) == 1


def test_processes_that_would_each_train_alone_are_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    commands.check_processes(SimpleNamespace(world_size=2))
    with pytest.raises(ValueError, match="2 processes were started, and Accelerate counts 1.*ACCELERATE_USE_CPU=1"):
        commands.check_processes(SimpleNamespace(world_size=1))


# Parts


def rows_of(**counts: int) -> Dataset:
    targets = [name for name, count in counts.items() for _ in range(count)]
    return Dataset.from_dict({"target": targets, "id": [str(number) for number in range(len(targets))]})


def test_weights_of_targets_lose_no_row():
    rows = rows_of(T=100, MI=100, BI=7)
    mixed, counts = weigh_targets(rows, {"T": 1, "MI": 3, "BI": 0}, seed=1)
    assert set(mixed["id"]) == {row["id"] for row in rows if row["target"] != "BI"}
    assert counts["MI"] / counts["T"] == pytest.approx(3, rel=0.3) and set(counts) == {"T", "MI"}
    again, _ = weigh_targets(rows, {"T": 1, "MI": 3, "BI": 0}, seed=1)
    assert mixed["id"][:] == again["id"][:]


@pytest.mark.parametrize("weights", [{"T": 1}, {"T": 1, "MI": 1, "BI": 1}, {"T": 0, "MI": 0}])
def test_weights_must_fit_the_sets_of_the_data(weights):
    with pytest.raises(ValueError, match="no weight|no rows|all 0"):
        weigh_targets(rows_of(T=2, MI=2), weights, seed=0)


def test_a_new_connector_takes_the_place_of_the_old_one_alone(folder):
    model, processor = load_speech_model(ScriptArguments(model=str(folder), connector=CONV, dataset=["x"]))
    before = SpeechLLMForConditionalGeneration.from_pretrained(folder).state_dict()
    for name, weight in model.state_dict().items():
        assert "multi_modal_projector" in name or torch.equal(weight, before[name]), name
    weight = model.model.multi_modal_projector.convolutions[0].weight
    assert weight.std().item() == pytest.approx(model.config.initializer_range, rel=0.2)  # as from_parts draws it
    assert model.config.connector["type"] == "conv"
    inputs = processor(text=processor.audio_token, audio=[tone(0, 1.0)], sampling_rate=RATE)
    assert model(**inputs).logits.shape[1] == inputs["input_ids"].shape[1]


def test_parents_are_kept_only_while_all_else_is_trained_again(folder, tmp_path):
    model = SpeechLLMForConditionalGeneration.from_pretrained(folder)
    name_parents(model)
    model.save_pretrained(tmp_path)
    SpeechLLMProcessor.from_pretrained(folder).save_pretrained(tmp_path)
    script = ScriptArguments(model=str(tmp_path), dataset=["x"])
    assert load_speech_model(script, ["connector"])[0].config.parents is None  # the LLM may have been trained
    assert load_speech_model(script, ["encoder", "connector", "llm"])[0].config.parents is not None


@pytest.mark.parametrize("command", commands.CLASSES)
def test_nano_is_the_embedded_model(command, monkeypatch, tmp_path):
    found = []
    for name in ("train", "encode", "targets", "inspect"):
        monkeypatch.setattr(commands, name, lambda *settings: found.extend(settings))
    data = ["--dataset", str(tmp_path), "--output_dir", str(tmp_path)]
    assert main([command, "--model", "nano", *data]) == 0
    assert [group.model for group in found if hasattr(group, "model")] == [speechllm.NANO]


@pytest.mark.slow
def test_recordings_are_drawn_by_the_seed_and_splits_share_no_sentence():
    rows = choose("train", 30, seed=3)
    assert rows == choose("train", 30, seed=3) != choose("train", 30, seed=4)
    assert not {row.text for row in rows} & {row.text for row in choose("validation", 30, seed=3)}
    with pytest.raises(ValueError, match="has .* recordings"):
        choose("validation", 10**6, seed=0)


def test_the_nano_pool_is_one_that_targets_read(tmp_path):
    write_tasks(tmp_path)
    tasks = load_tasks(tmp_path)
    assert [task.name for task in tasks] == ["repeat", "translate", "intent", "language"]
    assert all(any(prompt.held_out for prompt in task.prompts) for task in tasks)
