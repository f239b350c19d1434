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
from processing_speechllm.chat_format import content_form

from .facts import write_text

MODEL_AUTO_MAP = {
    "AutoConfig": "hub_configuration.SpeechLLMConfig",
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
# `pipeline` wants remote code to be trusted wherever a config has its task among `custom_pipelines`. In a class of the
# repository's own only remote code finds them there, and the installed package needs none.
HUB_CONFIGURATION = f'''\
"""The configuration as remote code reads it: with the pipeline's task, which the installed package registers."""

from typing import TYPE_CHECKING

from .configuration_speechllm import SpeechLLMConfig as PackageConfig

if TYPE_CHECKING:  # transformers, which follows it where it copies the code of what it saves
    from .pipeline_speech_instruct import SpeechInstructPipeline  # noqa: F401


class SpeechLLMConfig(PackageConfig):
    custom_pipelines = {CUSTOM_PIPELINES!r}
'''
HUB_CONFIGURATION_FILE = "hub_configuration.py"
# Joins the blocks of each message into what the LLM's own template below it prints, as the processor does.
JOIN_BLOCKS = """\
{%%- set joined = namespace(messages=[]) -%%}
{%%- for message in messages -%%}
    {%%- if message['content'] is string or not message['content'] -%%}
        {%%- set joined.messages = joined.messages + [message] -%%}
    {%%- else -%%}
        {%%- set line = namespace(text='') -%%}
        {%%- for block in message['content'] -%%}
            {%%- if block['type'] in ['audio', 'audio_url', 'input_audio'] -%%}
                {%%- set line.text = line.text + '%(audio)s' -%%}
            {%%- elif block['text'] is defined and block['text'] is not none -%%}
                {%%- set line.text = line.text + block['text'] -%%}
            {%%- endif -%%}
        {%%- endfor -%%}
        {%%- set joined.messages = joined.messages + [dict(message, content=%(content)s)] -%%}
    {%%- endif -%%}
{%%- endfor -%%}
{%%- set messages = joined.messages %%}"""  # no white space after it: the template begins as it did


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
    template = folder / "chat_template.jinja"
    if template.is_file():
        variables = processor.tokenizer.special_tokens_map
        write_text(template, template_with_blocks(template.read_text("utf-8"), processor.audio_token, variables))
    for name, source in code_files().items():
        shutil.copyfile(source, folder / name)
    write_text(folder / HUB_CONFIGURATION_FILE, HUB_CONFIGURATION)
    _add_to_json(folder / "config.json", {"auto_map": MODEL_AUTO_MAP}, without="custom_pipelines")
    _add_to_json(folder / "processor_config.json", {"auto_map": PROCESSOR_AUTO_MAP})


def code_files() -> dict[str, Path]:
    """The files of modelling and processing code by the names they get in a Hub repository."""
    packages = [Path(package.__file__).parent for package in (modeling_speechllm, processing_speechllm)]
    sources = [source for package in packages for source in package.glob("*.py") if source.name != "__init__.py"]
    return {source.name: source for source in sorted(sources)}


def template_with_blocks(template: str, audio_token: str, variables: dict | None = None) -> str:
    """
    A chat template that prints audio blocks itself: engines render it without our processor, which would lay the
    blocks out for it. Serving engines also look into a template for loops over blocks to tell what it can read.

    Args:
        template: the LLM's, or one that this function gave, which stays as it is.
        audio_token: the placeholder.
        variables: what the template may use beside the messages (`eos_token`, ...).
    """
    form = content_form(template, audio_token, variables or {})
    if form == "blocks":
        return template
    content = "line.text" if form == "string" else "[{'type': 'text', 'text': line.text}]"
    return JOIN_BLOCKS % {"audio": audio_token, "content": content} + template


def _add_to_json(path: Path, entries: dict[str, Any], without: str | None = None) -> None:
    content = json.loads(path.read_text(encoding="utf-8")) | entries
    content.pop(without, None)
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


__all__ = [
    "CUSTOM_PIPELINES",
    "HUB_CONFIGURATION_FILE",
    "MODEL_AUTO_MAP",
    "PROCESSOR_AUTO_MAP",
    "code_files",
    "export_remote_code",
    "template_with_blocks",
]
