"""A tiny SpeechLLM's folder with facts and helper weights, a recording, and its export."""

import json
from pathlib import Path

import soundfile
import torch
from factories_processing import CHATML_MARKED, RATE
from factories_training import tiny_parts, tone
from safetensors.torch import save_file

from hub_cards.export import ExportSettings, export_checkpoint
from hub_cards.facts import write_facts

FACTS = {"model": {"name": "Tiny", "license": "apache-2.0", "languages": ["en"]}}
INSTRUCTION = "what is said"


def tiny_checkpoint(folder: Path, chat_template: str = CHATML_MARKED, **facts) -> Path:
    """A whole checkpoint with a CTC head beside the model, as no Hub repository should have it."""
    model, processor = tiny_parts(chat_template=chat_template)
    model.generation_config.max_new_tokens = 4
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    save_file({"weight": torch.arange(6.0)}, folder / "ctc_head.safetensors")
    write_facts(folder, FACTS | facts)
    return folder


def recording(folder: Path) -> Path:
    soundfile.write(folder / "tone.wav", tone(1, 0.6), RATE)
    return folder / "tone.wav"


def tiny_export(place: Path, **settings) -> Path:
    """An export with an example, that passes the check."""
    checkpoint = tiny_checkpoint(place / "checkpoint")
    example = (str(recording(place)), INSTRUCTION)
    return export_checkpoint(checkpoint, place / "exported", ExportSettings(example=example, **settings))


def edit_json(path: Path, **changes) -> None:
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | changes), encoding="utf-8")
