"""docs/new-language.md as it stands: every block run in order, on generated speech of a language that is new."""

import json
import random
import re
import shlex
import string
from pathlib import Path

import pytest
import soundfile
import torch
from transformers import (
    AutoModelForCausalLM,
    Wav2Vec2Config,
    Wav2Vec2CTCTokenizer,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2ForCTC,
    Wav2Vec2Processor,
)

import speechllm
from benchmarks.hours_costs import table
from modeling_speechllm import SpeechLLMForConditionalGeneration
from processing_speechllm import SpeechLLMProcessor
from speechllm.speech_synthesis.espeak import speak
from speechllm_cli.main import main

PAGE = Path(__file__).parents[1] / "docs" / "new-language.md"
WORDS = {"who": ["mtoto", "mwalimu", "mama"], "does": ["anasoma", "ananunua"], "what": ["kitabu", "maziwa", "gari"]}


def blocks() -> list[list[str]]:
    """Lines of the page's shell blocks."""
    found = re.findall(r"^```sh\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    return [block.splitlines() for block in found]


def code() -> str:
    """The page's Python."""
    return "\n".join(re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL))


def write_recordings(folder: Path) -> None:
    draw = random.Random(0)
    for split, count in (("train", 12), ("validation", 2), ("test", 2)):
        (folder / split).mkdir(parents=True)
        for number in range(count):
            text = " ".join(draw.choice(words) for words in WORDS.values())
            soundfile.write(folder / split / f"{number:03}.wav", speak(text, draw.choice(["sw+m1", "sw+f2"])), 16000)
            (folder / split / f"{number:03}.txt").write_text(text, encoding="utf-8")


def write_parents(folder: Path) -> None:
    """The embedded model's encoder and LLM, as somebody else would have published them."""
    model = SpeechLLMForConditionalGeneration.from_pretrained(speechllm.NANO, dtype=torch.float32)
    processor = SpeechLLMProcessor.from_pretrained(speechllm.NANO)
    llm = AutoModelForCausalLM.from_config(model.config.text_config)
    llm.base_model.load_state_dict(model.model.language_model.state_dict())
    llm.get_output_embeddings().load_state_dict(model.lm_head.state_dict())
    llm.generation_config = model.generation_config
    model.model.audio_tower.encoder.save_pretrained(folder / "encoder")
    processor.feature_extractor.save_pretrained(folder / "encoder")
    llm.save_pretrained(folder / "llm")
    processor.tokenizer.save_pretrained(folder / "llm")


def write_recogniser(folder: Path) -> None:
    """A random CTC model."""
    folder.mkdir()
    symbols = ["<pad>", "<s>", "</s>", "<unk>", "|", *string.ascii_lowercase]
    (folder / "vocab.json").write_text(json.dumps({symbol: place for place, symbol in enumerate(symbols)}))
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = Wav2Vec2Config(
        **sizes, conv_dim=(8,) * 7, num_conv_pos_embeddings=8, num_conv_pos_embedding_groups=2, vocab_size=len(symbols)
    )
    torch.manual_seed(0)
    Wav2Vec2ForCTC(config).save_pretrained(folder)
    tokenizer = Wav2Vec2CTCTokenizer(str(folder / "vocab.json"))
    Wav2Vec2Processor(feature_extractor=Wav2Vec2FeatureExtractor(), tokenizer=tokenizer).save_pretrained(folder)


@pytest.mark.slow
def test_the_page_runs_from_recordings_to_a_folder_for_the_hub(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_recordings(tmp_path / "recordings")
    write_parents(tmp_path)
    write_recogniser(tmp_path / "asr")
    exec(code(), {})
    choices, *rest = blocks()
    names = [line.split("=", 1)[0] for line in choices]
    chosen = {"AUDIO": "./encoder", "TEXT": "./llm", "ASR": "./asr", "STEPS": "8", "LANGUAGE": "sw"}
    chosen["CONNECTOR"] = '{"type": "stack_mlp", "stride": 1, "width": 3}'
    assert set(names) == set(chosen)
    for line in (line for block in rest for line in block):
        command, *arguments = shlex.split(line)
        arguments = [string.Template(word).substitute(chosen) for word in arguments]
        assert command == "speechllm"
        status = main(arguments)
        output = capsys.readouterr()
        assert status == 0, f"{line}\n{output.out[-2000:]}{output.err[-2000:]}"
    for name in ("aligned", "taught"):
        history = json.loads((tmp_path / name / "trainer_state.json").read_text())["log_history"]
        assert history, name
    metrics = json.loads((tmp_path / "scores" / "results.json").read_text())
    assert metrics["rows"]["scored"] == 2
    asked = json.loads((tmp_path / "scores-instruct" / "results.json").read_text())
    assert asked["rows"]["scored"] == 6 and set(asked["groups"]["task"]) == {"first_word", "count", "reply"}
    assert asked["overall"]["speech"]["form"]["rows"] == 6 and asked["overall"]["speech"]["exact"]["rows"] == 4
    assert (tmp_path / "hub-folder" / "README.md").is_file()


def test_the_table_of_costs_is_what_its_script_prints():
    assert "\n".join(table()) in PAGE.read_text(encoding="utf-8")


def test_every_command_of_the_page_is_there():
    known = {shlex.split(line)[1] for block in blocks()[1:] for line in block}
    steps = ["doctor", "inspect", "transcribe", "align", "targets", "imitate", "evaluate", "ask", "export", "check"]
    assert [step for step in steps if step not in known] == []
