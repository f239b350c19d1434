"""The embedded model as a newcomer meets it: README, docs and commands, word for word."""

import json
import re
import shlex
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

import speechllm
from speechllm_cli import doctor
from speechllm_cli.demo import load_examples
from speechllm_cli.loading import load_pipeline
from speechllm_cli.main import main

ROOT = Path(__file__).parent.parent
LANGUAGES = {"en", "zh", "vi", "id", "es", "de"}


def code_blocks(page: str, language: str) -> list[str]:
    text = (ROOT / page).read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


@pytest.fixture
def run_script(pytestconfig):
    """Runs Python code in a process of its own, with the suite's own warning filters."""
    filters = [entry.split(":") for entry in pytestconfig.getini("filterwarnings")]
    setup = "import warnings\n" + "".join(
        f"warnings.filterwarnings({action!r}, category={category}, module={module!r})\n"
        for action, _, category, module in filters
    )

    def run(code: str) -> subprocess.CompletedProcess:
        command = [sys.executable, "-c", setup + code]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)

    return run


@pytest.mark.slow
def test_readme_s_first_command_gets_the_expected_answer():
    ask = shlex.split(re.search(r"&& (speechllm ask .+)$", code_blocks("README.md", "sh")[0], re.MULTILINE)[1])
    program = str(Path(sysconfig.get_path("scripts")) / ask[0])
    result = subprocess.run([program, *ask[1:]], cwd=ROOT, capture_output=True, text=True, timeout=300)
    rows = load_examples(Path(speechllm.SMALL) / "examples")
    (row,) = [row for row in rows if Path(row["file"]).name == Path(ask[2]).name]
    (expected,) = [item["expected"] for item in row["questions"] if item["instruction"] == ask[3]]
    assert (result.returncode, result.stdout, result.stderr) == (0, expected + "\n", "")


@pytest.mark.slow
def test_readme_s_python_runs_as_it_stands(run_script):
    first, *others = code_blocks("README.md", "python")
    assert len([line for line in first.splitlines() if line.strip()]) <= 12
    result = run_script(first)
    assert result.returncode == 0, result.stderr
    assert "deprecated" not in result.stderr
    assert len(result.stdout.splitlines()) == 4
    assert others and all("from_parts" in block for block in others)  # they need the Hub


@pytest.mark.slow
def test_the_blocks_of_the_pipeline_s_page_run_one_after_the_other(run_script):
    result = run_script("\n".join(code_blocks("docs/pipeline.md", "python")))
    assert result.returncode == 0, result.stderr
    assert "deprecated" not in result.stderr
    by_pipeline, by_model = result.stdout.strip("\n").split("\n")
    assert by_pipeline == by_model != ""


def test_the_demo_is_all_as_expected(capsys):
    assert main(["demo", "--model", "nano"]) == 0
    output = capsys.readouterr().out
    assert "✗" not in output
    rows = load_examples(Path(speechllm.NANO) / "examples")
    assert {row["language"] for row in rows} == LANGUAGES
    assert all(len(row["questions"]) >= 3 for row in rows)
    assert output.count("✓") == sum(len(row["questions"]) for row in rows)


def test_the_demo_notices_a_wrong_answer(tmp_path, monkeypatch, capsys):
    (row, *_) = load_examples(Path(speechllm.NANO) / "examples")
    row["questions"] = [{**row["questions"][0], "expected": "something else"}]
    (tmp_path / "examples").mkdir()
    (tmp_path / "examples" / "examples.json").write_text(json.dumps([row]), encoding="utf-8")
    pipe = load_pipeline("nano")
    monkeypatch.setattr("speechllm_cli.demo.load_pipeline", lambda model: pipe)
    monkeypatch.setitem(speechllm.MODELS, "nano", str(tmp_path))
    assert main(["demo", "--model", "nano"]) == 1
    assert "0 of 1 answers" in capsys.readouterr().out


def test_the_demo_asks_where_nothing_is_expected(tmp_path, monkeypatch, capsys):
    (row, *_) = load_examples(Path(speechllm.NANO) / "examples")
    row["questions"] = [{"instruction": row["questions"][0]["instruction"]}]
    (tmp_path / "examples").mkdir()
    (tmp_path / "examples" / "examples.json").write_text(json.dumps([row]), encoding="utf-8")
    pipe = load_pipeline("nano")
    monkeypatch.setattr("speechllm_cli.demo.load_pipeline", lambda model: pipe)
    assert main(["demo", "--model", str(tmp_path)]) == 0
    output = capsys.readouterr().out
    assert "en.wav" in output and not any(word in output for word in ("✓", "✗", "as expected"))


@pytest.mark.slow
def test_doctor_finds_the_embedded_model_well():
    (finding,) = doctor.check_embedded_model()
    assert finding.status == "ok", finding.detail


@pytest.mark.parametrize("name", ["model.safetensors", "examples/examples.json", "README.md"])
def test_the_embedded_folder_is_complete(name):
    assert (Path(speechllm.NANO) / name).stat().st_size > 0


def test_the_embedded_model_is_small():
    files = [path for path in Path(speechllm.NANO).glob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 25e6
