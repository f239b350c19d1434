"""What a SpeechLLM needs where vLLM runs it (its Transformers backend, which knows of no model).

The backend embeds text and audio, attends and computes logits by itself; of the model it asks the audio's embeddings
and the LLM's hidden states. What it would lose without a word is refused when the model is built.
"""

from typing import Any

import torch

from .connectors import CONNECTORS


def runs_under_vllm(config: Any) -> bool:
    """Whether vLLM builds the model of this config, whose attention it takes over."""
    return config.text_config._attn_implementation in ("vllm", "vllm_mla")


def check_under_vllm(config: Any) -> None:
    """
    Raises:
        ValueError: a checkpoint or an LLM that vLLM would run otherwise than it is, with the remedy.
    """
    if config.trained_groups:
        raise ValueError(
            f"This checkpoint holds trained parts alone ({', '.join(config.trained_groups)}), and vLLM does not fetch "
            "their parents. Make it whole: speechllm export FOLDER OUT."
        )
    connector = config.connector["type"]
    if CONNECTORS[connector].leaves_out:
        raise ValueError(
            f"The connector {connector} leaves audio tokens out of attention and positions, which vLLM cannot. Serve "
            "this model with `speechllm serve`."
        )
    for name in ("logits_scaling", "logits_soft_cap"):
        if getattr(config.text_config, name, None) not in (None, 1):
            raise ValueError(
                f"The LLM changes its logits by {name}, which vLLM's Transformers backend does not read, so that "
                "probabilities and sampling would be others. Install speechllm beside vLLM (its plugin reads "
                "logits_scaling), or serve this model with `speechllm serve`."
            )


class PlaceholdersAside:
    """Mixin of an embedding table: ids beyond it are of placeholders, whose embedding is replaced; any row will do."""

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        return super().forward(input_ids.masked_fill(input_ids >= self.num_embeddings, 0))


def prepare_for_vllm(model: Any) -> None:
    """Makes a base model what vLLM takes it for."""
    # By this list it leaves out weights, of the head too, which is its own beside the base model.
    model._keys_to_ignore_on_load_unexpected = []
    if model.config.audio_token_id >= model.config.text_config.vocab_size:
        # It asks the LLM's table itself. In its place it puts its own, and keeps what a class of `nn.Embedding` adds.
        table = model.get_input_embeddings()
        table.__class__ = type(type(table).__name__, (PlaceholdersAside, type(table)), {})


__all__ = ["check_under_vllm", "prepare_for_vllm", "runs_under_vllm"]
