"""Alignment: CTC over the LLM's own input embeddings (BLOOMZMMS, stage 1; Denisov & Vu 2024, arXiv 2404.10922)."""

from typing import Any

import torch
from transformers import PreTrainedModel

from modeling_speechllm.conformer_ctc import ctc_logits
from modeling_speechllm.connector_base import length_mask

from .alignment_config import SpeechAlignmentConfig
from .data.chats import IGNORED
from .data.collators import Example, SpeechCollator
from .objectives.ctc import ctc_loss, language_ctc_loss
from .objectives.speech_inputs import connect
from .objectives.terms import Term
from .speech_config import check_given
from .speech_trainer import SpeechTrainer


class AlignmentCollator(SpeechCollator):
    """Audio and transcript tokens; no prompts, the LLM itself is not run."""

    runs_llm = False

    def prompts(self, examples: list[Example]) -> dict[str, Any]:
        batch = self.transcripts(examples)
        tokens = int(batch["transcript_lengths"].sum())
        return batch | {"counts": {"input_tokens": tokens, "transcript_tokens": tokens}}


class SpeechAlignmentTrainer(SpeechTrainer):
    """
    Teaches a connector to spell the transcript in the LLM's tokens, with the LLM's frozen embeddings as CTC's output
    layer, and its intermediate CTC, if it has one, to tell the language.

    loss = ctc_weight * CTC / utterances + language_weight * language CTC / labelled utterances

    Reported beside the terms: `infeasible`, the share of utterances that have more tokens than CTC can place, which
    cannot teach anything. If it is not small, take a connector with a higher token rate. A connector with a CTC of its
    own (`ctc_compress`) is trained through that, without the LLM's table; a transcript with a token that it cannot
    read is infeasible too.

    Args:
        model, args ([`SpeechAlignmentConfig`]), train_dataset, eval_dataset, processing_class, peft_config, callbacks:
            see [`SpeechTrainer`]. Rows need `audio` and `text`, `language` for the language CTC.
    """

    _tag_names = ["speechllm", "speech-alignment"]
    _name = "SpeechAlignment"
    objective_name = "alignment: CTC over the LLM's vocabulary"
    works = ("bloomzmms",)
    config_class = SpeechAlignmentConfig
    collator_class = AlignmentCollator

    def __init__(
        self,
        model: PreTrainedModel,
        args: SpeechAlignmentConfig | None = None,
        *rest: Any,
        processing_class: Any = None,
        **kwargs: Any,
    ):
        check_given(type(self), model, args, processing_class, None, None, {})
        if model.config.text_config.pad_token_id is None:  # then the processor pads with another special token
            model.config.text_config.pad_token_id = processing_class.tokenizer.pad_token_id
        model.model.ctc_blank  # noqa: B018  raises where the LLM has no blank
        super().__init__(model, args, *rest, processing_class=processing_class, **kwargs)

    def predictions(self, model: PreTrainedModel, batch: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
        """CTC logits (audios, audio tokens, vocabulary), and the transcripts' tokens (audios, tokens)."""
        connected = connect(model, batch)
        if connected.ctc_logits is None:
            logits = ctc_logits(connected.embeddings, self.whole_parameters(model.get_input_embeddings())["weight"])
        else:
            tokens, reader = model.get_input_embeddings().num_embeddings, model.model.multi_modal_projector
            logits = reader.over_tokens(connected.ctc_logits, tokens, model.model.ctc_blank)
        places = torch.arange(batch["transcript_ids"].shape[1], device=logits.device)
        beyond = places >= batch["transcript_lengths"][:, None]
        return logits, batch["transcript_ids"].masked_fill(beyond, IGNORED)

    def objective(self, model: PreTrainedModel, batch: dict[str, Any]) -> dict[str, Term]:
        connected = connect(model, batch)
        heard = float(not batch["dummy_audio"])  # the silence of a batch without audio has no transcript
        targets, sizes = batch["transcript_ids"], batch["transcript_lengths"]
        if connected.ctc_logits is None:
            table = self.whole_parameters(model.get_input_embeddings())["weight"]
            logits, blank, spelled = ctc_logits(connected.embeddings, table), model.model.ctc_blank, sizes
        else:
            logits, blank = connected.ctc_logits, connected.ctc_logits.shape[-1] - 1
            targets = model.model.multi_modal_projector.classes_of(targets)
            unknown = ((targets < 0) & length_mask(sizes, targets.shape[1])).any(1)
            # A transcript that the connector cannot spell counts as one that does not fit.
            spelled, targets = torch.where(unknown, connected.lengths + 1, sizes), targets.clamp(min=0)
        total, infeasible = ctc_loss(logits, connected.lengths, targets, spelled, blank)
        terms = {
            "ctc": Term(heard * total, "utterances", self.args.ctc_weight),
            "infeasible": Term(torch.as_tensor(infeasible), "utterances", 0.0),
        }
        if connected.language_ctc_logits is not None:
            logits, lengths = connected.language_ctc_logits, connected.language_ctc_lengths
            total, _ = language_ctc_loss(logits, lengths, batch["language"], sizes)
            terms["language_ctc"] = Term(total, "labelled", self.args.language_weight)
        return terms

    def evaluation_loop(self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> Any:
        """As in [`SpeechTrainer`].

        Raises:
            ValueError: no transcript of the set can be placed, whose loss would be 0 and look perfect.
        """
        output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        if output.metrics.get(f"{metric_key_prefix}_infeasible") == 1:
            raise ValueError(
                "None of the transcripts of the evaluation set can be placed by CTC: they have more tokens than their "
                "audios, or tokens that the connector cannot read. Take a connector with a higher token rate, or give "
                "one with a vocabulary of its own the tokens of the data (load_vocabulary)."
            )
        return output


__all__ = ["AlignmentCollator", "SpeechAlignmentTrainer"]
