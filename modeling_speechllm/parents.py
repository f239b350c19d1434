"""The frozen parents of a SpeechLLM: where they lie, loading them, and what is said when one of them is not there."""

import os
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.utils.hub import cached_file, resolve_revision

from .configuration_speechllm import AUDIO_TOKEN
from .gguf_files import quick_gguf
from .lora_files import add_plain_lora, check_untied

# Arguments of `from_pretrained` that say how the Hub is reached, and those that choose among a repository's weights.
HUB_ARGUMENTS = ("token", "cache_dir", "local_files_only", "force_download", "proxies")
SOURCE_ARGUMENTS = ("gguf_file", "subfolder", "variant")
SPACE = "\u2581"  # in SentencePiece's vocabularies
ADAPTER = "adapter"  # what a parent's adapter is recorded under


def parent_of(part: str | PreTrainedModel, revision: str | None, **source: str | None) -> dict[str, str | None]:
    """What a config records of a parent: Hub id or absolute folder (empty for a model never loaded from one), the
    commit (None for a folder), and those of `SOURCE_ARGUMENTS` and the adapter that were given."""
    name = part if isinstance(part, str) else part.config.name_or_path
    commit = resolve_revision(name, revision) if name else None
    commit = getattr(commit, "resolved", commit)  # as a string it is the branch that was asked for
    chosen = {key: value for key, value in source.items() if value}
    if ADAPTER in chosen and os.path.isdir(chosen[ADAPTER]):
        chosen[ADAPTER] = os.path.abspath(chosen[ADAPTER])
    if os.path.isdir(name):
        name = os.path.abspath(name)
    return {"id": name, "revision": commit, **chosen}


def looks_like_path(name: str) -> bool:
    """Whether a name cannot be a Hub id (`name` or `owner/name`)."""
    return name.startswith((".", "~", os.sep)) or name.count("/") > 1 or "\\" in name or os.path.isabs(name)


@contextmanager
def naming(what: str, name: str) -> Iterator[None]:
    """Lets errors of files that are not found say `what` was loaded, and by which name.

    Raises:
        OSError: the finding and the remedy.
    """
    folder = Path(name).expanduser()
    if looks_like_path(name) and not folder.exists():
        raise FileNotFoundError(
            f"{what} {name!r}: there is no such folder ({folder.absolute()}). Correct the path, or give a Hub id."
        )
    try:
        yield
    except SafetensorError as error:
        raise OSError(
            f"{what} {name!r} could not be loaded: a file of its weights is damaged or not copied whole ({error}). "
            "Copy or download it again."
        ) from error
    except OSError as error:
        if str(error).startswith((f"{what} ", "SpeechLLM ", "LLM ", "Speech encoder ")):  # named already
            raise
        reason = "" if folder.exists() else (
            f"there is no such folder here ({folder.absolute()}), and no such Hub repository was found or reached. "
            "Correct the name, or download it while the Hub can be reached. "
        )  # fmt: skip
        raise OSError(f"{what} {name!r} could not be loaded: {reason}{error}") from error


def relative_to_checkpoint(parents: dict[str, dict], folder: str) -> dict[str, dict]:
    """`parents` as they are written into a checkpoint: folders inside of it relative to it (`./name`), so that it can
    be moved with them."""
    base = os.path.abspath(folder)

    def relative(name: str) -> str:
        inside = os.path.isabs(name) and os.path.commonpath([base, name]) == base
        return "./" + os.path.relpath(name, base).replace(os.sep, "/") if inside else name

    return _with_places(parents, relative)


def located_parents(parents: dict[str, dict], source: str) -> dict[str, dict]:
    """`parents` of the checkpoint `source` with absolute folders in place of those relative to it."""

    def located(name: str) -> str:
        beside = os.path.normpath(os.path.join(os.path.abspath(source), name))
        return beside if not os.path.isabs(name) and os.path.isdir(beside) else name

    return _with_places(parents, located)


def _with_places(parents: dict[str, dict], place: Callable[[str], str]) -> dict[str, dict]:
    """`parents` with `place` of each id and adapter in place of it."""
    return {
        part: {key: place(value) if key in ("id", ADAPTER) else value for key, value in parent.items()}
        for part, parent in parents.items()
    }


def check_keys(source: str, missing: Iterable, unexpected: Iterable, mismatched: Iterable) -> None:
    """Raises a ValueError that names the wrong keys of a checkpoint, if there are any."""
    findings = []
    for what, keys in (("is missing", missing), ("has unexpected", unexpected), ("has wrongly shaped", mismatched)):
        keys = sorted(keys)
        if keys:
            findings.append(f"{what} {len(keys)} weights ({', '.join(keys[:3])}{', ...' if len(keys) > 3 else ''})")
    if findings:
        raise ValueError(
            f"The checkpoint {str(source)!r} {' and '.join(findings)}. Missing weights would be random, so it is not "
            "loaded. Use a complete checkpoint that matches its config.json; to keep only the trained part, save with "
            "save_pretrained(folder, trained_only=True)."
        )


def chosen(kwargs: dict[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """The entries of `kwargs` with these names that are given (not None)."""
    return {name: kwargs[name] for name in names if kwargs.get(name) is not None}


def load_causal_lm(
    text: str,
    config: PreTrainedConfig | None = None,
    gguf_file: str | None = None,
    adapter: str | None = None,
    **kwargs: Any,
) -> PreTrainedModel:
    """Causal LM from a Hub id or folder.

    Args:
        text: Hub id or folder.
        config: settings of the LLM that take the place of its own, where they are of its kind.
        gguf_file: file in `text` with quantised weights, which are dequantised.
        adapter: Hub id or folder of a PEFT adapter, which is merged.
        **kwargs: `from_pretrained` arguments.

    Raises:
        ValueError: an encoder-decoder or a family without a causal LM class, by name; missing weights.
        OSError: no such model, by name.
    """
    if gguf_file:
        from transformers import GgufConfig  # transformers 5.24

        kwargs = {"quantization_config": GgufConfig(dequantize=True)} | kwargs
    with naming("LLM", text), quick_gguf() if gguf_file else nullcontext():
        if config is not None:
            kwargs["config"] = own_config(text, config, gguf_file, **kwargs)
        causal_lm, info = AutoModelForCausalLM.from_pretrained(
            text, gguf_file=gguf_file, output_loading_info=True, **kwargs
        )
    check_keys(text, info["missing_keys"], [], [])
    return causal_lm if adapter is None else merged(causal_lm, adapter, **chosen(kwargs, HUB_ARGUMENTS))


def merged(model: PreTrainedModel, adapter: str, **hub: Any) -> PreTrainedModel:
    """A model with a PEFT adapter (Hub id or folder) added to its weights for good.

    Raises:
        OSError: no such adapter, by name.
        ValueError: one that cannot be added to weights, as prompt tuning, or that is of another model.
    """
    with naming("Adapter", adapter):
        if add_plain_lora(model, adapter, **hub):
            return model
    with naming("Adapter", adapter), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of PEFT's own use of transformers
        from peft import PeftModel
        from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer

        try:
            adapted = PeftModel.from_pretrained(model, adapter, **hub)
        except ValueError as error:
            if "adapter_config.json" not in str(error):
                raise
            raise OSError(str(error)) from error
        except RuntimeError as error:  # shapes of another model
            raise ValueError(f"Adapter {adapter!r} does not fit this LLM: {error}") from error
    if not isinstance(adapted.base_model, BaseTuner):
        raise ValueError(f"Adapter {adapter!r} is of a kind that has no weights to merge. Give a LoRA adapter.")
    layers = [part for part in adapted.modules() if isinstance(part, BaseTunerLayer)]
    check_untied(adapted.get_base_model(), [layer.get_base_layer() for layer in layers], adapter)
    return adapted.merge_and_unload()


def own_config(text: str, config: PreTrainedConfig, gguf_file: str | None, **kwargs: Any) -> PreTrainedConfig:
    """The LLM's own config with the settings of `config`; sizes and quantisation of its weights stay its own."""
    names = (*HUB_ARGUMENTS, "revision", "subfolder", "trust_remote_code")
    own = AutoConfig.from_pretrained(text, gguf_file=gguf_file, **chosen(kwargs, names))
    if type(own) is not type(config):  # that of a larger model, of which it is a part
        return own
    kept = {"vocab_size", "quantization_config", "dtype", "torch_dtype", "auto_map", "_name_or_path", "architectures"}
    for name, value in config.to_dict().items():
        if name not in kept and name in own.to_dict() and own.to_dict()[name] != value:
            setattr(own, name, value)
    return own


def placeholder_id(text: str, gguf_file: str | None = None, **hub: Any) -> int:
    """Id of the audio placeholder in the LLM's tokenizer, or the one it gets when added at the end.

    Raises:
        ValueError: no tokenizer there.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(text, **hub)
    except (OSError, ValueError) as error:
        if gguf_file is not None:
            from transformers.integrations.gguf import read_gguf_metadata  # transformers 5.24

            key = "tokenizer.ggml.tokens"
            tokens = read_gguf_metadata(cached_file(text, gguf_file, **hub), (key,))[0][key]
            return tokens.index(AUDIO_TOKEN) if AUDIO_TOKEN in tokens else len(tokens)
        raise ValueError(
            f"No tokenizer was found with the LLM {text!r}, so the id of the audio placeholder is unknown. "
            "Pass audio_token_id=..., or a folder that holds the tokenizer too."
        ) from error
    return tokenizer.get_vocab().get(AUDIO_TOKEN, len(tokenizer))


def read_decoder(settings: dict | str | None, **hub: Any) -> tuple[dict | str | None, PreTrainedModel | None]:
    """The pretrained Whisper decoder that a `whisper_qformer` or `whisper_reader` connector names, and the settings
    with its sizes.

    Raises:
        ValueError: the checkpoint is no whole Whisper model; a language that it does not know.
        OSError: no such model, by name.
    """
    if not isinstance(settings, dict) or not settings.get("decoder"):
        return settings, None
    decoder = settings["decoder"]
    with naming("Whisper decoder", decoder):
        config = AutoConfig.from_pretrained(decoder, **hub)
        if config.model_type != "whisper" or (config.architectures or [""])[0] == "WhisperEncoder":
            raise ValueError(f"decoder={decoder!r} is no whole Whisper checkpoint, so it has no decoder.")
        model, info = AutoModel.from_pretrained(decoder, output_loading_info=True, **hub)
        sizes = {
            "hidden_size": config.d_model,
            "decoder_layers": config.decoder_layers,
            "heads": config.decoder_attention_heads,
            "ffn_size": config.decoder_ffn_dim,
            "positions": config.max_target_positions,
        }
        if settings.get("type") == "whisper_reader":
            sizes |= reading_tokens(GenerationConfig.from_pretrained(decoder, **hub), config, settings.get("language"))
    check_keys(decoder, info["missing_keys"], [], [])
    return sizes | settings, model.decoder


def reading_tokens(generation: GenerationConfig, config: PreTrainedConfig, language: str | None) -> dict[str, Any]:
    """Whisper's own tokens, as settings of `whisper_reader`.

    Raises:
        ValueError: a language that this Whisper does not know, with those that it knows; no timestamps.
    """
    if getattr(generation, "no_timestamps_token_id", None) is None:
        raise ValueError(
            "whisper_reader: the Whisper decoder's generation_config.json has no no_timestamps_token_id, so its "
            "timestamps are unknown. Take that file from the checkpoint that it was made from."
        )
    times = generation.no_timestamps_token_id + 1
    end = config.eos_token_id
    suppressed = [token for token in getattr(generation, "suppress_tokens", None) or [] if 0 <= token < end]
    prompt = [config.decoder_start_token_id]
    if getattr(generation, "is_multilingual", False):
        code, languages = f"<|{language or 'en'}|>", generation.lang_to_id
        if code not in languages:
            known = ", ".join(sorted(name.strip("<|>") for name in languages))
            raise ValueError(f"whisper_reader: language {language!r} is not one that this Whisper knows: {known}.")
        prompt += [languages[code], generation.task_to_id["transcribe"]]
    elif language not in (None, "en"):
        raise ValueError(
            f"whisper_reader: language {language!r}, but this Whisper knows English alone. Take a multilingual one, "
            "or leave language out."
        )
    return {
        "tokens": config.vocab_size,
        "end": end,
        "times": times,
        "prompt": [*prompt, times],
        "no_speech": times - 2,  # as transformers' own Whisper finds it
        "suppress_tokens": suppressed,
    }


def reading_vocabulary(
    decoder: str, text: str, end: int, hub: dict[str, Any] | None = None, gguf_file: str | None = None, **source: str
) -> dict[int, list[int]]:
    """Whisper's tokens before `end` that the LLM can spell, each with the LLM's tokens of the same text: mostly one,
    as byte-level vocabularies share most of their entries. Parts of characters that the LLM has no token for are left
    out.

    Args:
        decoder, text: Hub ids or folders of the two tokenizers.
        end: Whisper's end token.
        hub: how the Hub is reached, for both.
        gguf_file: file in `text` that has the tokenizer where there are no files of one.
        **source: `revision` and `subfolder` of the LLM.
    """
    hub = hub or {}
    with naming("Whisper tokenizer", decoder):
        whisper = AutoTokenizer.from_pretrained(decoder, **hub)
    with naming("LLM tokenizer", text):
        try:
            llm = AutoTokenizer.from_pretrained(text, **hub, **source)
        except (OSError, ValueError):
            if gguf_file is None:
                raise
            llm = AutoTokenizer.from_pretrained(text, gguf_file=gguf_file, **hub, **source)
    known, found, other = llm.get_vocab(), {}, {}
    sentencepiece = any(piece.startswith(SPACE) for piece in known)
    for token, id in whisper.get_vocab().items():
        if id >= end:
            continue
        spelled = whisper.convert_tokens_to_string([token])
        piece = spelled.replace(" ", SPACE) if sentencepiece else token
        if piece in known:
            found[id] = [known[piece]]
        elif spelled and "\ufffd" not in spelled:  # else a part of a character
            other[id] = spelled
    ids = llm(list(other.values()), add_special_tokens=False).input_ids if other else []
    return dict(sorted((found | {id: tokens for id, tokens in zip(other, ids, strict=True) if tokens}).items()))


__all__ = ["check_keys", "load_causal_lm", "located_parents", "naming", "parent_of", "relative_to_checkpoint"]
