"""The `speechllm` command, in this process with a tiny random model, and twice as installed."""

import importlib.util
import io
import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import text_config, tiny_speechllm, whisper_config
from factories_processing import CHATML, encoded, make_extractor, make_tokenizer, sine
from packaging.requirements import Requirement

import speechllm
from hub_cards.findings import Finding, print_findings
from processing_speechllm import SpeechLLMProcessor
from processing_speechllm.pipeline_prompts import DEFAULT_INSTRUCTION
from speechllm_cli import ask, demo, doctor
from speechllm_cli.ask import LANGUAGES, split_inputs
from speechllm_cli.loading import ask_pipeline, load_pipeline
from speechllm_cli.main import main

COMMAND = str(Path(sysconfig.get_path("scripts")) / "speechllm")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A tiny random SpeechLLM with its processor; its answers are seven tokens of noise and an end."""
    tokenizer = make_tokenizer(CHATML)
    size = len(tokenizer)
    model = tiny_speechllm(whisper_config(num_mel_bins=80), text_config(vocab_size=size), audio_token_id=size)
    model.generation_config.max_new_tokens = 8
    model.generation_config.update(eos_token_id=tokenizer.eos_token_id, forced_eos_token_id=tokenizer.eos_token_id)
    path = tmp_path_factory.mktemp("model")
    model.save_pretrained(path)
    SpeechLLMProcessor.from_parts(make_extractor(), tokenizer, model.config).save_pretrained(path)
    return path


@pytest.fixture
def recordings(tmp_path) -> list[str]:
    """Three tones that differ, as WAV, FLAC and MP3."""
    names = []
    for number, kind in enumerate(("wav", "flac", "mp3")):
        path = tmp_path / f"tone{number}.{kind}"
        path.write_bytes(encoded(sine(0.4 + 0.2 * number, frequency=300 + 400 * number), format=kind.upper()))
        names.append(str(path))
    return names


def answers(capsys) -> list[dict]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_ask_prints_the_answer_of_the_pipeline(folder, recordings, capsys):
    assert main(["ask", recordings[0], "What is said?", "--model", str(folder)]) == 0
    expected = ask_pipeline(load_pipeline(str(folder)), [recordings[0]], "What is said?")
    assert expected.strip()
    assert capsys.readouterr().out == expected + "\n"


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (0, 2, 3, 1), (2, 3, 0, 1)])
def test_options_may_stand_anywhere(folder, recordings, capsys, order):
    words = [[recordings[0]], ["What is said?"], ["--model", str(folder)], ["--json"]]
    assert main(["ask", *(word for number in order for word in words[number])]) == 0
    row = json.loads(capsys.readouterr().out)
    assert (row["audio"], row["instruction"]) == (recordings[0], "What is said?")


def test_a_file_address_is_a_recording(folder, recordings, capsys):
    assert main(["ask", "file://" + recordings[0], "What is said?", "--model", str(folder)]) == 0
    assert capsys.readouterr().out.strip()


def test_without_an_instruction_the_audio_is_transcribed(folder, recordings, capsys):
    main(["ask", recordings[0], "--model", str(folder), "--json"])
    main(["ask", recordings[0], DEFAULT_INSTRUCTION, "--model", str(folder), "--json"])
    first, second = answers(capsys)
    assert first == second


def test_each_recording_is_asked_on_its_own(folder, recordings, capsys):
    assert main(["ask", *recordings, "What is said?", "--model", str(folder), "--json"]) == 0
    together = answers(capsys)
    for name in recordings:
        main(["ask", name, "What is said?", "--model", str(folder), "--json"])
    assert together == answers(capsys)
    assert [row["audio"] for row in together] == recordings
    assert set(together[0]) == {"audio", "instruction", "answer", "model", "finish_reason"}


def test_several_answers_as_text_carry_the_recording_s_name(folder, recordings, capsys):
    main(["ask", *recordings[:2], "What is said?", "--model", str(folder)])
    output = capsys.readouterr().out
    assert f"{recordings[0]}: " in output and f"{recordings[1]}: " in output


def test_together_puts_all_recordings_into_one_prompt(folder, recordings, capsys):
    assert main(["ask", *recordings, "What is said?", "--together", "--model", str(folder), "--json"]) == 0
    (row,) = answers(capsys)
    assert row["audio"] == recordings
    assert row["answer"] == ask_pipeline(load_pipeline(str(folder)), recordings, "What is said?")


def test_stream_prints_the_same_text(folder, recordings, capsys):
    main(["ask", recordings[0], "What is said?", "--model", str(folder)])
    whole = capsys.readouterr().out
    main(["ask", recordings[0], "What is said?", "--model", str(folder), "--stream"])
    assert capsys.readouterr().out == whole


def test_max_new_tokens_shortens_the_answer(folder, recordings, capsys):
    main(["ask", recordings[0], "Say it", "--model", str(folder), "--json"])
    main(["ask", recordings[0], "Say it", "--model", str(folder), "--json", "--max-new-tokens", "2"])
    whole, short = (row["answer"] for row in answers(capsys))
    assert len(short) < len(whole) and whole.startswith(short.rstrip("�"))


def test_standard_input_is_a_recording(folder, recordings, capsys, monkeypatch):
    content = Path(recordings[2]).read_bytes()
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(content)))
    assert main(["ask", "-", "What is said?", "--model", str(folder), "--json"]) == 0
    main(["ask", recordings[2], "What is said?", "--model", str(folder), "--json"])
    from_pipe, from_file = answers(capsys)
    assert from_pipe["audio"] == "-" and from_pipe["answer"] == from_file["answer"]


def test_a_bad_recording_is_one_line_and_the_others_are_answered(folder, recordings, tmp_path, capsys):
    cut = tmp_path / "cut.wav"
    cut.write_bytes(encoded(sine())[:5000])
    names = [recordings[0], str(cut), str(tmp_path / "missing.wav"), recordings[1]]
    assert main(["ask", *names, "What is said?", "--model", str(folder), "--json"]) == 2
    output, errors = capsys.readouterr()
    assert [json.loads(line)["audio"] for line in output.splitlines()] == recordings[:2]
    first, second = errors.splitlines()
    assert first.startswith(f"speechllm: {cut}: truncated WAV") and "again" in first
    assert second.startswith(f"speechllm: {names[2]}: no such file") and "Check the path" in second


@pytest.mark.parametrize(
    ("inputs", "finding"),
    [
        (["nowhere.wav"], "no such file"),
        (["nowhere.wav", "also-nowhere.mp3"], "no such file"),
        (["-", "-"], "given twice"),
        (["TONE", ""], "instruction is empty"),
        ([""], "name of the audio file is empty"),
        (["TONE", "say \udcff"], "is half of one"),
        (["HTTP://127.0.0.1:9/a.wav"], "cannot be downloaded"),
    ],
)
def test_unusable_input_exits_with_2_and_says_why(folder, recordings, capsys, inputs, finding):
    inputs = [recordings[0] if name == "TONE" else name for name in inputs]
    assert main(["ask", *inputs, "--model", str(folder)]) == 2
    output, errors = capsys.readouterr()
    assert output == "" and finding in errors
    assert all(line.startswith("speechllm: ") for line in errors.splitlines())


def test_silence_is_answered_with_a_warning(folder, tmp_path, capsys):
    path = tmp_path / "silence.wav"
    path.write_bytes(encoded(sine(amplitude=0.0)))
    assert main(["ask", str(path), "What is said?", "--model", str(folder)]) == 0
    output, errors = capsys.readouterr()
    assert output.strip()
    assert errors.startswith("speechllm: warning:") and "silence" in errors and errors.count("\n") == 1


@pytest.mark.parametrize("model", ["./nowhere", "nobody/no-such-model"])
def test_a_model_that_cannot_be_loaded_is_one_line(recordings, capsys, model):
    assert main(["ask", recordings[0], "What is said?", "--model", model]) == 2
    errors = capsys.readouterr().err
    assert errors.startswith("speechllm: ") and model in errors and errors.count("\n") == 1


def test_a_model_of_another_kind_is_one_line(recordings, tmp_path, capsys):
    text_config().save_pretrained(tmp_path)
    assert main(["ask", recordings[0], "What is said?", "--model", str(tmp_path)]) == 2
    errors = capsys.readouterr().err
    assert errors.startswith(f"speechllm: cannot load {tmp_path}: ") and errors.count("\n") == 1


@pytest.mark.parametrize(
    ("inputs", "expected"),
    [
        (["a.wav"], (["a.wav"], None)),
        (["a.wav", "What is said?"], (["a.wav"], "What is said?")),
        (["a.wav", "b.mp3", "说了什么"], (["a.wav", "b.mp3"], "说了什么")),
        (["a.wav", "b.mp3"], (["a.wav", "b.mp3"], None)),
        (["a.wav", "-"], (["a.wav", "-"], None)),
        (["a.wav", "https://example.org/b"], (["a.wav", "https://example.org/b"], None)),
        (["a.wav", "Who speaks in b.wav"], (["a.wav"], "Who speaks in b.wav")),
        (["What is said?"], (["What is said?"], None)),
    ],
)
def test_the_last_input_is_the_instruction_unless_it_names_audio(inputs, expected):
    assert split_inputs(inputs) == expected


def test_an_address_that_holds_its_recording_is_no_instruction():
    address = "data:audio/wav;base64,UklGR"
    assert split_inputs(["a.wav", address]) == (["a.wav", address], None)


def test_an_existing_file_without_suffix_is_a_recording(tmp_path):
    (tmp_path / "tone").write_bytes(encoded(sine()))
    assert split_inputs(["a.wav", str(tmp_path / "tone")]) == (["a.wav", str(tmp_path / "tone")], None)


def test_language_hint_is_checked_and_its_lack_of_effect_said(folder, recordings, capsys):
    assert main(["ask", recordings[0], "What is said?", "--model", str(folder), "--language", "zh-CN"]) == 0
    assert "--language zh-CN has no effect" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stop:
        main(["ask", recordings[0], "What is said?", "--language", "klingon"])
    assert stop.value.code == 2 and "language code" in capsys.readouterr().err


def test_languages_of_whisper_are_known():
    from transformers.models.whisper.tokenization_whisper import LANGUAGES as WHISPER_LANGUAGES

    assert set(WHISPER_LANGUAGES) - {"jw"} <= LANGUAGES  # Whisper calls Javanese by a withdrawn code


WRONG = ["sing", "ask", "ask a.wav --json --stream", "ask a.wav --max-new-tokens 0"]
WRONG += [
    "demo --web --port 70000",
    "ask a.wav --max-new-tokens many",
    "ask a.wav --json --bogus b",
    "check folder another",
]


@pytest.mark.parametrize("arguments", WRONG)
def test_wrong_usage_exits_with_2(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        main(arguments.split())
    assert stop.value.code == 2 and "usage: speechllm" in capsys.readouterr().err


@pytest.mark.parametrize("command", [[], ["ask"], ["demo"], ["doctor"]])
def test_help_has_an_example_that_parses(command, capsys):
    with pytest.raises(SystemExit) as stop:
        main([*command, "--help"])
    help_text = capsys.readouterr().out
    assert stop.value.code == 0
    assert "60 seconds with it" in help_text and "\n  speechllm " in help_text


class EchoPipe:
    """Answers with the instruction itself."""

    def __call__(self, row, **options):
        return [{"generated_text": row["instruction"]}]


def test_demo_marks_and_counts_unexpected_answers(tmp_path):
    (tmp_path / "zh.wav").write_bytes(encoded(sine()))
    questions = [{"instruction": "厨房", "expected": "厨房"}, {"instruction": "Room?", "expected": "kitchen"}]
    rows = [{"file": "zh.wav", "language": "zh", "text": "打开厨房的灯", "questions": questions}]
    (tmp_path / "examples.json").write_text(json.dumps(rows), encoding="utf-8")
    table, right, total = demo.run_examples(EchoPipe(), demo.load_examples(tmp_path))
    assert (right, total) == (1, 2)
    lines = list(demo.format_table(table))
    assert "✓" in lines[1] and "✗" not in lines[1]
    assert "✗" in lines[2] and lines[2].endswith("expected: kitchen")


def test_table_columns_align_over_wide_and_combining_characters():
    rows = [["厨房", "|"], ["nhà bếp", "|"], ["e\u0301", "|"], ["Küche", "|"]]
    assert len({demo.display_width(line) for line in demo.format_table(rows)}) == 1
    assert [demo.display_width(row[0]) for row in rows] == [4, 7, 1, 5]


def test_the_demo_fits_80_columns():
    rows = [
        ["en.wav", "“turn off the radio in the kitchen”", "", ""],
        ["", "Translate the request that you hear into Indonesian.", "what is the weather in Paris on Monday", "✓"],
        ["", "写下说的话。" * 5, "星期一巴黎天气怎么样" * 3, "✗ expected: 厨房"],
    ]
    lines = list(demo.format_table(rows, demo.WIDTHS))
    assert max(map(demo.display_width, lines)) <= 80 and len(lines) > len(rows)
    assert "".join("".join(row) for row in rows[2:]).replace(" ", "") in "".join(
        "".join(wrapped) for cell in rows[2] for wrapped in [demo.wrap(cell, 20)]
    ).replace(" ", "")


def test_wrong_names_are_found_before_a_model_is_loaded(monkeypatch, capsys):
    monkeypatch.setattr(ask, "load_pipeline", lambda model: pytest.fail("loaded"))
    assert main(["ask", "nowhere.wav", "also-nowhere.mp3", "What is said?"]) == 2
    assert capsys.readouterr().err.count("no such file") == 2


def test_doctor_says_which_extras_are_whole(monkeypatch):
    monkeypatch.setattr(
        doctor.metadata, "requires", lambda name: ['numpy>=2; extra == "a"', 'none-such; extra == "b"']
    )
    monkeypatch.setattr(doctor.metadata, "metadata", lambda name: Extras())
    whole, part = doctor.check_extras()
    assert (whole.status, part.status) == ("ok", "note") and whole.detail.startswith("numpy 2")
    assert "none-such is not installed" in part.detail and part.remedy.startswith('pip install ".[b]" in a clone')


def test_a_long_subject_of_a_report_stays_apart_from_its_detail(capsys):
    print_findings(iter([Finding("ok", "extra quantization", "a 1"), Finding("ok", "python", "3")]))
    assert capsys.readouterr().out == "ok    extra quantization a 1\nok    python           3\n"


class Extras:
    def get_all(self, name):
        return ["a", "b"]


def test_doctor_finds_a_package_that_hides_ours(tmp_path, monkeypatch):
    assert [finding.status for finding in doctor.check_places()] == ["ok"]
    (tmp_path / "trainers").mkdir()
    (tmp_path / "trainers" / "__init__.py").write_text("")
    spec = importlib.util.spec_from_file_location(
        "trainers", tmp_path / "trainers" / "__init__.py", submodule_search_locations=[str(tmp_path / "trainers")]
    )
    known = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec if name == "trainers" else known(name))
    failure, _ = doctor.check_places()
    assert failure.status == "FAIL" and str(tmp_path) in failure.detail and "rename or uninstall" in failure.remedy


def test_demo_without_its_recordings_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(speechllm.MODELS, speechllm.DEFAULT, str(tmp_path))
    monkeypatch.setattr(demo, "load_pipeline", lambda model: EchoPipe())
    assert main(["demo"]) == 2
    assert "examples.json is missing" in capsys.readouterr().err


def install_fake(folder: Path, name: str, version: str, code: str = "") -> None:
    """A package in `folder` with metadata, as pip would leave it."""
    (folder / f"{name}.py").write_text(code)
    metadata = folder / f"{name}-{version}.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")


@pytest.mark.parametrize(
    ("version", "code", "status", "finding"),
    [
        ("2.1", "", "ok", "2.1"),
        ("1.9", "", "FAIL", "1.9 is outside >=2"),
        ("2.1", "raise OSError('libtorch_cuda.so: cannot open')", "FAIL", "OSError: libtorch_cuda.so"),
        ("2.1", "raise RuntimeError('built for another torch')", "FAIL", "RuntimeError: built for"),
        ("2.1", "import surely_missing", "FAIL", "ModuleNotFoundError"),
        (None, "", "FAIL", "is not installed"),
    ],
)
def test_doctor_names_what_is_wrong_with_a_package(tmp_path, monkeypatch, version, code, status, finding):
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "fakelib", raising=False)
    if version is not None:
        install_fake(tmp_path, "fakelib", version, code)
    found = doctor.check_package(Requirement("fakelib>=2"))
    assert (found.status, found.subject) == (status, "fakelib")
    assert finding in found.detail
    assert found.remedy == ("" if status == "ok" else 'pip install --force-reinstall "fakelib>=2"')


def test_doctor_goes_on_after_a_check_that_breaks_down(monkeypatch, capsys):
    def broken():
        yield doctor.Finding("ok", "first", "fine")
        raise OSError("libtorch_cuda.so: cannot open shared object file")

    checks = [("packages", broken, "install it again"), ("python", doctor.check_python, "")]
    monkeypatch.setattr(doctor, "CHECKS", checks)
    assert main(["doctor"]) == 1
    fine, failure, remedy, python, *_ = capsys.readouterr().out.splitlines()
    assert fine.split() == ["ok", "first", "fine"]
    assert failure.startswith("FAIL") and "OSError: libtorch_cuda.so" in failure
    assert remedy.strip() == "-> install it again"
    assert python.startswith("ok    python")


@pytest.fixture
def broken_torchaudio(tmp_path) -> dict[str, str]:
    """An environment whose torchaudio does not fit its torch."""
    (tmp_path / "torchaudio.py").write_text("raise OSError('libtorch_cuda.so: cannot open shared object file')")
    return {**os.environ, "PYTHONPATH": str(tmp_path)}


@pytest.mark.slow
def test_doctor_survives_a_torchaudio_that_does_not_fit_torch(broken_torchaudio):
    result = run_installed("doctor", env=broken_torchaudio)
    assert result.returncode == 1 and result.stderr == ""
    lines = result.stdout.splitlines()
    (place,) = [index for index, line in enumerate(lines) if line.startswith("FAIL  torchaudio ")]
    assert "OSError: libtorch_cuda.so" in lines[place] and '"torch>=2.11,<2.15"' in lines[place + 1]
    assert lines[-1].endswith("Begin with the first: others may follow.")


@pytest.mark.slow
def test_ask_with_a_broken_package_points_to_doctor(broken_torchaudio, recordings):
    result = run_installed("ask", recordings[0], env=broken_torchaudio)
    assert result.returncode == 2 and result.stdout == ""
    assert result.stderr.startswith("speechllm: a package is missing or broken (")
    assert result.stderr.endswith("Run: speechllm doctor\n")


def test_doctor_without_any_failure_exits_with_0(monkeypatch, capsys):
    monkeypatch.setattr(doctor, "CHECKS", [("python", doctor.check_python, "")])
    assert main(["doctor"]) == 0
    assert "Everything works" in capsys.readouterr().out


def test_doctor_decodes_the_common_formats():
    findings = {finding.subject: finding.status for finding in doctor.check_decoders()}
    assert {findings[f"decode {name}"] for name in ("WAV", "FLAC", "MP3", "OGG")} == {"ok"}
    assert findings["decode others"] in ("ok", "note")  # FFmpeg may be absent


def test_doctor_hears_a_decoder_that_garbles(monkeypatch):
    monkeypatch.setattr("processing_speechllm.load_audio", lambda content, sampling_rate: sine(0.5))
    assert "FAIL" in {finding.status for finding in doctor.check_decoders()}


def run_installed(*arguments: str, **options) -> subprocess.CompletedProcess:
    """The command as pip installed it, in a process of its own."""
    return subprocess.run([COMMAND, *arguments], capture_output=True, text=True, timeout=300, **options)


@pytest.mark.slow
def test_installed_command_answers(folder, recordings, tmp_path):
    result = run_installed("ask", recordings[0], "What is said?", "--model", str(folder), "--json", cwd=tmp_path)
    assert result.returncode == 0 and result.stderr == ""
    assert json.loads(result.stdout)["answer"] == ask_pipeline(
        load_pipeline(str(folder)), [recordings[0]], "What is said?"
    )


@pytest.mark.slow
def test_installed_command_reports_in_one_line_without_a_traceback(folder, tmp_path):
    result = run_installed("ask", "nowhere.wav", "What is said?", "--model", str(folder), cwd=tmp_path)
    assert result.returncode == 2 and result.stdout == ""
    assert result.stderr.startswith("speechllm: nowhere.wav: no such file") and result.stderr.count("\n") == 1
