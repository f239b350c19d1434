"""The package as a whole: what it declares, what its README promises, who may import whom."""

import importlib
import re
import shlex
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import speechllm
from speechllm_cli.doctor import IMPORT_NAMES

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def requirements() -> list[Requirement]:
    return [Requirement(line) for line in metadata.requires("speechllm")]


def python(code: str, **options) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, **options)


def readme_commands() -> dict[str, str]:
    """README's set-up commands by name: the one line in the block below each marking comment."""
    return dict(re.findall(r"^<!-- command: (\w+) -->\n```sh\n(.+)\n```$", README, flags=re.MULTILINE))


def test_readme_has_two_commands_of_one_line_each():
    commands = readme_commands()
    assert set(commands) == {"answer", "tests"}
    assert commands["answer"].startswith("pip install . && speechllm ask ")
    assert commands["tests"] == 'pip install -e ".[dev]" && python -m pytest -q -n 2'
    assert README.count("pip install") == 2


def run_ci(folder: Path, failing: str = "") -> tuple[int, list[str]]:
    """`.ci/run` with stand-ins for the programs that it starts: its exit status, and what it started."""
    notes = folder / "notes"
    make_venv = '#!/bin/sh\nif [ "$2" = venv ]; then mkdir -p "$3/bin" && : > "$3/bin/activate"; fi\n'
    take_note = f'#!/bin/sh\necho "${{0##*/}} $*" >> {notes}\n[ "${{0##*/}}" != "{failing}" ]\n'
    for name in ("python3.11", "pip", "python", "speechllm"):
        (folder / name).write_text(make_venv if name == "python3.11" else take_note)
        (folder / name).chmod(0o755)
    result = subprocess.run([ROOT / ".ci" / "run"], env={"PATH": f"{folder}:/usr/bin:/bin"}, capture_output=True)
    return result.returncode, notes.read_text(encoding="utf-8").splitlines()


def test_ci_runs_exactly_readme_s_commands(tmp_path):
    commands = readme_commands()
    parts = f"{commands['answer']} && {commands['tests']}".split(" && ")
    assert run_ci(tmp_path) == (0, [" ".join(shlex.split(part)) for part in parts])


@pytest.mark.parametrize(("failing", "started"), [("pip", 1), ("speechllm", 2), ("python", 4)])
def test_ci_stops_with_an_error_at_the_first_failure(tmp_path, failing, started):
    status, notes = run_ci(tmp_path, failing)
    assert status != 0 and len(notes) == started


def test_version_is_the_changelog_s_latest():
    headings = re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert speechllm.__version__ == metadata.version("speechllm") == headings[0]


@pytest.mark.parametrize(
    "requirement", [item for item in requirements() if item.marker is None], ids=lambda requirement: requirement.name
)
def test_each_declared_dependency_is_there(requirement):
    assert requirement.specifier.contains(metadata.version(requirement.name), prereleases=True)
    importlib.import_module(IMPORT_NAMES.get(requirement.name, requirement.name.replace("-", "_")))


@pytest.mark.parametrize("arguments", ["--help", "ask --help", "ask --sing", "push --help", "--version"])
def test_the_command_line_is_parsed_without_heavy_imports(arguments, tmp_path):
    result = python(
        f"""
import sys
from speechllm_cli.main import main
try:
    main({arguments.split()})
except SystemExit:
    pass
print(sorted({{"torch", "transformers", "numpy", "speechllm"}} & set(sys.modules)))
""",
        cwd=tmp_path,
    )
    assert result.stdout.endswith("[]\n"), result.stdout + result.stderr


# Parts of the toolkit, and packages of theirs, that an answer needs nothing of.
NOT_FOR_AN_ANSWER = {
    *("trainers", "trl", "peft", "datasets", "pandas", "pyarrow", "scipy", "sklearn", "matplotlib", "torchcodec"),
    *("speechllm.evaluation", "gguf", "jiwer", "sacrebleu", "deepspeed", "bitsandbytes"),
}


@pytest.mark.slow
def test_the_first_answer_imports_nothing_of_training_and_evaluation(tmp_path):
    clip = str(ROOT / "speechllm" / "nano" / "examples" / "en.wav")
    result = python(
        f"""
import sys
import speechllm
heavy = {NOT_FOR_AN_ANSWER}
print(sorted(heavy & set(sys.modules)))
from speechllm_cli.main import main
main(["ask", {clip!r}, "what was said", "--model", "nano"])
print(sorted(heavy & set(sys.modules)))
""",
        cwd=tmp_path,
    )
    lines = result.stdout.splitlines()
    assert lines[0] == lines[-1] == "[]" and len(lines) == 3, result.stdout + result.stderr


@pytest.mark.slow
def test_import_registers_everything(tmp_path):
    result = python(
        """
import speechllm
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForMultimodalLM
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING
from transformers.pipelines import PIPELINE_REGISTRY

config = AutoConfig.for_model("speechllm")
print(type(config).__name__, PROCESSOR_MAPPING[type(config)].__name__)
models = [AutoModel, AutoModelForCausalLM, AutoModelForMultimodalLM]
print(*(auto._model_mapping[type(config)].__name__ for auto in models))
_, task, _ = PIPELINE_REGISTRY.check_task("speech-instruct")
print(task["impl"].__name__, task["default"]["model"][0] == speechllm.MODELS[speechllm.DEFAULT])
""",
        cwd=tmp_path,
    )
    assert result.stdout.split() == [
        *("SpeechLLMConfig", "SpeechLLMProcessor"),
        *("SpeechLLMModel", "SpeechLLMForConditionalGeneration", "SpeechLLMForConditionalGeneration"),
        *("SpeechInstructPipeline", "True"),
    ], result.stderr


def test_code_is_clean():
    result = subprocess.run([sys.executable, "-m", "ruff", "check", "."], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout


def test_links_between_pages_lead_somewhere():
    for page in [ROOT / "README.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"
