"""A folder that loads anywhere with `trust_remote_code=True`: weights, processor and a copy of the code.

The two bottom packages are flat and import only from their own folder, so their files are copied as they stand; that
is simpler than transformers' own copying, which writes one Auto class per save.
"""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import modeling_speechllm
import processing_speechllm

MODEL_AUTO_MAP = {
    "AutoConfig": "configuration_speechllm.SpeechLLMConfig",
    "AutoModel": "modeling_speechllm.SpeechLLMModel",
    "AutoModelForCausalLM": "modeling_speechllm.SpeechLLMForConditionalGeneration",
    "AutoModelForMultimodalLM": "modeling_speechllm.SpeechLLMForConditionalGeneration",
}
PROCESSOR_AUTO_MAP = {"AutoProcessor": "processing_speechllm.SpeechLLMProcessor"}
CUSTOM_PIPELINES = {
    "speech-instruct": {
        "impl": "pipeline_speech_instruct.SpeechInstructPipeline",
        "pt": ["AutoModelForMultimodalLM"],
        "type": "multimodal",
    }
}


def export_remote_code(model: Any, processor: Any, folder: str | os.PathLike, **save_kwargs: Any) -> None:
    """Saves `model` and `processor` into `folder` so that they load without this package being installed.

    Args:
        model: a `SpeechLLMForConditionalGeneration`.
        processor: its `SpeechLLMProcessor`.
        folder: made if it does not exist; ready for `huggingface_hub.upload_folder`.
        **save_kwargs: arguments of the model's `save_pretrained` (`trained_only`, `max_shard_size`, ...).
    """
    folder = Path(folder)
    model.save_pretrained(folder, **save_kwargs)
    processor.save_pretrained(folder)
    for package in (modeling_speechllm, processing_speechllm):
        for source in Path(package.__file__).parent.glob("*.py"):
            if source.name != "__init__.py":
                shutil.copyfile(source, folder / source.name)
    _add_to_json(folder / "config.json", {"auto_map": MODEL_AUTO_MAP, "custom_pipelines": CUSTOM_PIPELINES})
    _add_to_json(folder / "processor_config.json", {"auto_map": PROCESSOR_AUTO_MAP})


def _add_to_json(path: Path, entries: dict[str, Any]) -> None:
    content = json.loads(path.read_text(encoding="utf-8")) | entries
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(partial, path)


__all__ = ["export_remote_code"]
