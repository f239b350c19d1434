"""Config of [`SpeechImitationTrainer`]."""

from dataclasses import dataclass, field

from .objectives.teacher_config import TeacherArguments
from .speech_config import SpeechTrainingConfig


@dataclass
class SpeechImitationConfig(TeacherArguments, SpeechTrainingConfig):
    """
    Arguments of [`SpeechImitationTrainer`], on top of [`TeacherArguments`] and [`SpeechTrainingConfig`].

    Args:
        cross_entropy_weight (`float`, *optional*, defaults to `1.0`):
            Weight of the cross-entropy on the answers.
        divergence_weight (`float`, *optional*, defaults to `0.0`):
            Weight of the divergence from the teacher, the same LLM reading the transcript (Ultravox: 1, with
            `cross_entropy_weight` 0 and `temperature` 2). 0 is off.
        end_token_weight (`float`, *optional*, defaults to `0.0`):
            Weight of the same divergence at the last label of each answer alone, where the LLM ends its turn, as a
            mean over answers (Ultravox: as much as `divergence_weight`). 0 is off.
        transcription_instruction (`str`, *optional*, defaults to `"Repeat the sentence:"`):
            Asked of rows without `messages`, whose answer is their transcript (target set T). `{audio}` in it says
            where the speech stands (BLOOMZMMS: `"Repeat the sentence: {audio}. "`); without it the speech comes first.
        span_probability (`float`, *optional*, defaults to `0.0`):
            Interleaving with aligned spans: share of the words that stand as text in place of their speech. Needs the
            column `words`. 0 is off.
        span_words (`list[int]`, *optional*, defaults to `[1, 5]`):
            Fewest and most words of a span.
        text_probability (`float`, *optional*, defaults to `0.0`):
            Alignment-free interleaving: in rows of several utterances, the probability that one stands as text. At
            least one stays speech. 0 is off.

    > [!NOTE]
    > Defaults that differ from [`SpeechTrainingConfig`]: `learning_rate` is 1e-4 (BLOOMZMMS, stage 2).
    """

    cross_entropy_weight: float = field(default=1.0, metadata={"help": "Weight of the cross-entropy on answers."})
    divergence_weight: float = field(
        default=0.0, metadata={"help": "Weight of the divergence from the same LLM reading the transcript."}
    )
    end_token_weight: float = field(
        default=0.0, metadata={"help": "Weight of the divergence at the last label of each answer alone."}
    )
    transcription_instruction: str = field(
        default="Repeat the sentence:",
        metadata={"help": "Asked of rows without messages; {audio} is where the speech stands, by default first."},
    )
    span_probability: float = field(
        default=0.0, metadata={"help": "Share of the words that stand as text in place of their speech."}
    )
    span_words: list[int] = field(
        default_factory=lambda: [1, 5], metadata={"help": "Fewest and most words of a span."}
    )
    text_probability: float = field(
        default=0.0, metadata={"help": "Probability that an utterance of a row with several stands as text."}
    )
    learning_rate: float = field(default=1e-4, metadata={"help": "Peak learning rate."})

    def __post_init__(self):
        super().__post_init__()
        self.check_teacher_arguments(self.divergence_weight)
        if self.end_token_weight and not self.divergence_weight:
            raise ValueError("end_token_weight adds to the divergence. Set divergence_weight too.")
        for name in ("span_probability", "text_probability"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}={getattr(self, name)} must be from 0 to 1.")
        if len(self.span_words) != 2 or not 1 <= self.span_words[0] <= self.span_words[1]:
            raise ValueError(f"span_words={self.span_words} must be [fewest, most], at least 1.")
        if not self.cross_entropy_weight and not self.divergence_weight:
            raise ValueError("cross_entropy_weight and divergence_weight are both 0: nothing would be learned.")


__all__ = ["SpeechImitationConfig"]
