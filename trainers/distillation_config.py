"""Config of [`SpeechDistillationTrainer`]."""

from dataclasses import dataclass, field

from .objectives.teacher_config import TeacherArguments
from .speech_config import SpeechTrainingConfig

MEANS = ("utterances", "tokens")


@dataclass
class SpeechDistillationConfig(TeacherArguments, SpeechTrainingConfig):
    """
    Arguments of [`SpeechDistillationTrainer`], on top of [`TeacherArguments`] and [`SpeechTrainingConfig`].

    Args:
        input_weight (`float`, *optional*, defaults to `1.0`):
            lambda_IN of LAD, weight of the distance between the last audio tokens and the transcript's embeddings.
            The paper does not tell it; 1 is DiVA's.
        input_mean (`str`, *optional*, defaults to `"utterances"`):
            What L_IN is a mean over: `"utterances"`, each the mean of its tokens (LAD), or all `"tokens"` alike
            (DiVA's code).
        output_weight (`float`, *optional*, defaults to `1.0`):
            lambda_OUT, weight of the distance between the last hidden states after hearing and after reading.
        language_weight (`float`, *optional*, defaults to `1.0`):
            lambda_LID, weight of the gate's cross-entropy, for connectors with a language gate. Ours: the paper does
            not tell it.
        teacher_forcing (`bool`, *optional*, defaults to `True`):
            Pick the query bank entry by the language label with a probability that falls from 1 to 0 on a cosine over
            the first half of training (LAD, hard selection).
        response_weight (`float`, *optional*, defaults to `0.0`):
            Weight of the divergence between the answers' distributions after hearing and after reading, for rows with
            `messages` (response distillation). 0 is off, as in DiVA and LAD, which need no answers.
        instruction (`str`, *optional*):
            Text after the audio (and after the transcript, for the teacher) in rows without `messages`. By default
            the audio is the whole user turn, as in DiVA and LAD.

    > [!NOTE]
    > Defaults that differ from [`SpeechTrainingConfig`]: `learning_rate` is 5.6e-5, as in LAD.
    """

    input_weight: float = field(default=1.0, metadata={"help": "lambda_IN of LAD."})
    input_mean: str = field(
        default="utterances", metadata={"help": "L_IN is a mean over utterances or tokens.", "choices": list(MEANS)}
    )
    output_weight: float = field(default=1.0, metadata={"help": "lambda_OUT of LAD."})
    language_weight: float = field(default=1.0, metadata={"help": "lambda_LID of LAD."})
    teacher_forcing: bool = field(
        default=True, metadata={"help": "Scheduled teacher forcing of the query bank by the language label."}
    )
    response_weight: float = field(
        default=0.0, metadata={"help": "Weight of the divergence between the answers' distributions."}
    )
    instruction: str | None = field(default=None, metadata={"help": "Text after the audio, by default none."})
    learning_rate: float = field(default=5.6e-5, metadata={"help": "Peak learning rate."})

    def __post_init__(self):
        super().__post_init__()
        self.check_teacher_arguments(self.response_weight)
        if self.input_mean not in MEANS:
            raise ValueError(f"input_mean={self.input_mean!r} must be one of {', '.join(MEANS)}.")
        if self.cached_teacher and self.output_weight and self.response_weight:
            raise ValueError(
                "A cache holds one kind of teacher states: hidden for output_weight, or top_k for response_weight. "
                "Set one of the two to 0, or cached_teacher to False."
            )
        if not (self.input_weight or self.output_weight or self.response_weight):
            raise ValueError("input_weight, output_weight and response_weight are all 0: nothing would be learned.")


__all__ = ["SpeechDistillationConfig"]
