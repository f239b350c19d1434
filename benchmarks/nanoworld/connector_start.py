"""Where the connector starts: as the encoder's CTC head, a gate for every token, and the LLM's embeddings.

A stack-MLP with a sigmoid can hold exactly this: row k of its first layer is the CTC head's row for token k on the
first stacked frame, less a threshold; its second layer holds the token's embedding, and for the blank that of the
audio placeholder, which the LLM has learned to skip. Such a connector can be read before it is trained.
"""

import torch
from torch import nn

from benchmarks.nanoworld.clips import Clip
from benchmarks.nanoworld.train_encoder import CTCEncoder

SAMPLE = 500  # recordings that set the threshold


@torch.no_grad()
def start_from_ctc(
    projector: nn.Module, ctc: CTCEncoder, embeddings: torch.Tensor, clips: list[Clip], placeholder: int
) -> None:
    """Sets the connector's weights; `embeddings` is the LLM's table (vocabulary, dim), `placeholder` the skipped id.

    The threshold lies midway between the logits of the best and the second best class of frames that carry a token.
    """
    frames = torch.cat([clip.frames.float() for clip in clips[:SAMPLE]]).to(ctc.head.weight.device)
    best = ctc.head(frames).topk(2, dim=-1)
    threshold = best.values[best.indices[:, 0] > 0].median(0).values.mean()
    classes, size = ctc.head.weight.shape
    gates, values = projector.linear_1, projector.linear_2
    gates.weight.zero_()
    gates.weight[:classes, :size] = ctc.head.weight
    gates.bias[:classes] = ctc.head.bias - threshold
    values.weight[:, 0] = embeddings[placeholder]
    values.weight[:, 1:classes] = embeddings[ctc.token_ids].T
    values.bias.zero_()
