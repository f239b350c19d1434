"""Config of [`SpeechImitationTrainer`]."""

from dataclasses import dataclass, field

from .speech_config import SpeechTrainingConfig

DIVERGENCES = ("forward", "reverse", "jsd")


def check_cached(config: SpeechTrainingConfig, divergence_weight: float) -> None:
    """Raises a ValueError where a cached teacher cannot serve these settings."""
    if config.cached_teacher and not config.frames_cache:
        raise ValueError("cached_teacher needs frames_cache, the folder that `speechllm encode` wrote.")
    if config.cached_teacher and config.chat_template_kwargs:
        raise ValueError(
            "A cached teacher read the chat template with its defaults, so chat_template_kwargs would set teacher and "
            "student apart. Change the template itself, or set cached_teacher to False."
        )
    if config.cached_teacher and divergence_weight and config.divergence != "forward":
        raise ValueError(
            f"A cached teacher is known by its likeliest tokens, which serve the forward divergence, not "
            f"{config.divergence!r}. Set divergence to forward, or cached_teacher to False."
        )


@dataclass
class SpeechImitationConfig(SpeechTrainingConfig):
    """
    Arguments of [`SpeechImitationTrainer`], on top of [`SpeechTrainingConfig`].

    Args:
        cross_entropy_weight (`float`, *optional*, defaults to `1.0`):
            Weight of the cross-entropy on the answers.
        divergence_weight (`float`, *optional*, defaults to `0.0`):
            Weight of the divergence from the teacher, the same LLM reading the transcript (Ultravox: 1, with
            `cross_entropy_weight` 0 and `temperature` 2). 0 is off.
        divergence (`str`, *optional*, defaults to `"forward"`):
            `"forward"` KL(teacher || student), `"reverse"` KL(student || teacher), or `"jsd"`, the generalised
            Jensen-Shannon divergence.
        jsd_beta (`float`, *optional*, defaults to `0.5`):
            Weight of the teacher in the mixture of `"jsd"`.
        temperature (`float`, *optional*, defaults to `1.0`):
            Of both distributions; the divergence is multiplied by its square.
        transcription_instruction (`str`, *optional*, defaults to `"Repeat the sentence:"`):
            Asked of rows without `messages`, whose answer is their transcript (target set T).
        span_probability (`float`, *optional*, defaults to `0.0`):
            Interleaving with aligned spans: share of the words that stand as text in place of their speech. Needs the
            column `words`. 0 is off.
        span_words (`list[int]`, *optional*, defaults to `[1, 5]`):
            Fewest and most words of a span.
        text_probability (`float`, *optional*, defaults to `0.0`):
            Alignment-free interleaving: in rows of several utterances, the probability that one stands as text. At
            least one stays speech. 0 is off.
        cached_teacher (`bool`, *optional*, defaults to `False`):
            Read the teacher's states from `frames_cache`, where `speechllm encode` put them with the same
            instruction: its last hidden states, or for a divergence its `top_k` likeliest tokens at this temperature
            (forward divergence only).
        top_k (`int`, *optional*, defaults to `64`):
            How many that are.

    > [!NOTE]
    > Defaults that differ from [`SpeechTrainingConfig`]: `learning_rate` is 1e-4 (BLOOMZMMS, stage 2).
    """

    cross_entropy_weight: float = field(default=1.0, metadata={"help": "Weight of the cross-entropy on answers."})
    divergence_weight: float = field(
        default=0.0, metadata={"help": "Weight of the divergence from the same LLM reading the transcript."}
    )
    divergence: str = field(
        default="forward", metadata={"help": "forward, reverse or jsd.", "choices": list(DIVERGENCES)}
    )
    jsd_beta: float = field(default=0.5, metadata={"help": "Weight of the teacher in the mixture of jsd."})
    temperature: float = field(default=1.0, metadata={"help": "Temperature of the divergence."})
    transcription_instruction: str = field(
        default="Repeat the sentence:", metadata={"help": "Asked of rows without messages."}
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
    cached_teacher: bool = field(
        default=False, metadata={"help": "Read the teacher's states from frames_cache in place of running it."}
    )
    top_k: int = field(default=64, metadata={"help": "Tokens per position of a cached teacher's distribution."})
    learning_rate: float = field(default=1e-4, metadata={"help": "Peak learning rate."})

    def __post_init__(self):
        super().__post_init__()
        if self.divergence not in DIVERGENCES:
            raise ValueError(f"divergence={self.divergence!r} must be one of {', '.join(DIVERGENCES)}.")
        if self.temperature <= 0:
            raise ValueError(f"temperature={self.temperature} must be positive.")
        for name in ("span_probability", "text_probability", "jsd_beta"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}={getattr(self, name)} must be from 0 to 1.")
        if len(self.span_words) != 2 or not 1 <= self.span_words[0] <= self.span_words[1]:
            raise ValueError(f"span_words={self.span_words} must be [fewest, most], at least 1.")
        check_cached(self, self.divergence_weight)
        if not self.cross_entropy_weight and not self.divergence_weight:
            raise ValueError("cross_entropy_weight and divergence_weight are both 0: nothing would be learned.")


__all__ = ["SpeechImitationConfig"]
