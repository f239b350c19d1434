"""How a connector learns: alignment, imitation and distillation on TRL's `SFTTrainer`."""

from .alignment_config import SpeechAlignmentConfig
from .alignment_trainer import SpeechAlignmentTrainer
from .distillation_config import SpeechDistillationConfig
from .distillation_trainer import SpeechDistillationTrainer
from .imitation_config import SpeechImitationConfig
from .imitation_trainer import SpeechImitationTrainer
from .lora import lora_config

__all__ = [
    "SpeechAlignmentConfig",
    "SpeechAlignmentTrainer",
    "SpeechDistillationConfig",
    "SpeechDistillationTrainer",
    "SpeechImitationConfig",
    "SpeechImitationTrainer",
    "lora_config",
]
