"""How a connector learns: alignment, imitation and distillation on TRL's `SFTTrainer`."""

from .alignment_config import SpeechAlignmentConfig
from .alignment_trainer import SpeechAlignmentTrainer
from .checkpoints.lora import lora_config
from .distillation_config import SpeechDistillationConfig
from .distillation_trainer import SpeechDistillationTrainer
from .imitation_config import SpeechImitationConfig
from .imitation_trainer import SpeechImitationTrainer

__all__ = [
    "SpeechAlignmentConfig",
    "SpeechAlignmentTrainer",
    "SpeechDistillationConfig",
    "SpeechDistillationTrainer",
    "SpeechImitationConfig",
    "SpeechImitationTrainer",
    "lora_config",
]
