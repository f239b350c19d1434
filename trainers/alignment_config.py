"""Config of [`SpeechAlignmentTrainer`]."""

from dataclasses import dataclass, field

from .speech_config import SpeechTrainingConfig


@dataclass
class SpeechAlignmentConfig(SpeechTrainingConfig):
    """
    Arguments of [`SpeechAlignmentTrainer`], on top of [`SpeechTrainingConfig`].

    Args:
        ctc_weight (`float`, *optional*, defaults to `0.8`):
            Weight of the CTC over the LLM's vocabulary (BLOOMZMMS: 0.8).
        language_weight (`float`, *optional*, defaults to `0.2`):
            Weight of the intermediate language CTC, for connectors that have one (BLOOMZMMS: 0.2).

    > [!NOTE]
    > Defaults that differ from [`SpeechTrainingConfig`]: `learning_rate` is 1e-4, as in BLOOMZMMS.
    """

    ctc_weight: float = field(default=0.8, metadata={"help": "Weight of the CTC over the LLM's vocabulary."})
    language_weight: float = field(default=0.2, metadata={"help": "Weight of the intermediate language CTC."})
    learning_rate: float = field(default=1e-4, metadata={"help": "Peak learning rate."})


__all__ = ["SpeechAlignmentConfig"]
