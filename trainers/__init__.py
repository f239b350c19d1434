"""How a connector learns: alignment, imitation and distillation on TRL's `SFTTrainer`."""

from .alignment_config import SpeechAlignmentConfig
from .alignment_trainer import SpeechAlignmentTrainer
from .checkpoints.lora import lora_config
from .data.chat_collator import SpeechChatCollator
from .distillation_config import SpeechDistillationConfig
from .distillation_trainer import SpeechDistillationTrainer
from .imitation_config import SpeechImitationConfig
from .imitation_trainer import SpeechImitationTrainer

__all__ = [
    "SpeechAlignmentConfig",
    "SpeechAlignmentTrainer",
    "SpeechChatCollator",
    "SpeechDistillationConfig",
    "SpeechDistillationTrainer",
    "SpeechImitationConfig",
    "SpeechImitationTrainer",
    "lora_config",
]
