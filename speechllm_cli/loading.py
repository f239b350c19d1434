"""What several commands share: messages on standard error and the pipeline."""

import sys
from pathlib import Path
from typing import Any


class CommandError(Exception):
    """Ends a command with one line on standard error: the finding and the remedy."""


def report(message: object) -> None:
    """One line on standard error, whatever line breaks the message has."""
    print("speechllm:", " ".join(str(message).split()), file=sys.stderr, flush=True)


def load_pipeline(model: str | None, **options: Any) -> Any:
    """The `speech-instruct` pipeline of a Hub id, a folder or an embedded model's name, of the default one if None;
    `options` are its own.

    Raises:
        CommandError: the model, or a package that it needs, cannot be loaded.
    """
    try:
        from transformers import pipeline
        from transformers.utils import logging

        import speechllm  # registers the model classes and the task
    except (ImportError, OSError, RuntimeError) as error:
        raise CommandError(f"a package is missing or broken ({error}). Run: speechllm doctor") from error

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    model = speechllm.MODELS.get(model, model)
    if model is not None and model.startswith((".", "/", "~")) and not Path(model).expanduser().is_dir():
        raise CommandError(f"{model}: no such folder. Give a model's folder or a Hub id such as name/model.")
    try:
        pipe = pipeline("speech-instruct", model=model, pipeline_class=speechllm.SpeechInstructPipeline, **options)
    except (OSError, ValueError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".:")
        names = " or ".join(speechllm.MODELS)
        raise CommandError(
            f"cannot load {model or embedded()}: {reason}. Give a folder or Hub id of a SpeechLLM checkpoint, or a "
            f"model of the package: {names}."
        ) from error
    if pipe.model.config.model_type != "speechllm":
        raise CommandError(
            f"{model} is a {pipe.model.config.model_type} model, not a SpeechLLM. Give a SpeechLLM checkpoint, or "
            "compose one with SpeechLLMForConditionalGeneration.from_parts."
        )
    return pipe


def embedded() -> str:
    """The default model's name in output."""
    import speechllm

    return f"speechllm/{speechllm.DEFAULT}"


def ask_pipeline(pipe: Any, audio: list, instruction: str, **options: Any) -> str:
    """The answer to one prompt that holds all of `audio` and the instruction."""
    return pipe({"audio": audio, "instruction": instruction}, **options)[0]["generated_text"]
