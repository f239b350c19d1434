"""What transformers before 5.23 lacks, which serving engines pin: vLLM 0.33 takes none from 5.20 on."""

import torch

try:
    from transformers.configuration_utils import SubConfigSpec
    from transformers.modeling_utils import slice_logits_to_keep
except ImportError:
    SubConfigSpec = None

    def slice_logits_to_keep(hidden_states: torch.Tensor, logits_to_keep: int | torch.Tensor) -> torch.Tensor:
        """The hidden states `(batch, sequence, dim)` whose logits are wanted: the last so many (0 for all), those at
        indices `(positions,)` or `(batch, positions)`, or where a bool mask `(batch, sequence)` is true, which gives
        `(positions, dim)`."""
        if isinstance(logits_to_keep, int):
            return hidden_states[:, slice(-logits_to_keep, None)]
        if logits_to_keep.ndim == 1:
            return hidden_states[:, logits_to_keep]
        if logits_to_keep.dtype == torch.bool:
            return hidden_states[logits_to_keep]
        return torch.take_along_dim(hidden_states, logits_to_keep[..., None], dim=1)


__all__ = ["SubConfigSpec", "slice_logits_to_keep"]
