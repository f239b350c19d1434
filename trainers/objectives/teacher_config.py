"""Settings of the teacher that imitation and distillation share."""

from dataclasses import dataclass, field

DIVERGENCES = ("forward", "reverse", "jsd")


@dataclass
class TeacherArguments:
    """
    How student and teacher, the same LLM reading the transcript, are compared; part of a trainer's config.

    Args:
        divergence (`str`, *optional*, defaults to `"forward"`):
            `"forward"` KL(teacher || student), `"reverse"` KL(student || teacher), or `"jsd"`, the generalised
            Jensen-Shannon divergence.
        jsd_beta (`float`, *optional*, defaults to `0.5`):
            Weight of the teacher in the mixture of `"jsd"`.
        temperature (`float`, *optional*, defaults to `1.0`):
            Of both distributions; the divergence is multiplied by its square.
        cached_teacher (`bool`, *optional*, defaults to `False`):
            Read the teacher's states from `frames_cache`, where `speechllm encode` put them with the same
            instruction: its last hidden states, or for a divergence its `top_k` likeliest tokens at this temperature
            (forward divergence only).
        top_k (`int`, *optional*, defaults to `64`):
            How many that are.
    """

    divergence: str = field(
        default="forward", metadata={"help": "forward, reverse or jsd.", "choices": list(DIVERGENCES)}
    )
    jsd_beta: float = field(default=0.5, metadata={"help": "Weight of the teacher in the mixture of jsd."})
    temperature: float = field(default=1.0, metadata={"help": "Temperature of the divergence."})
    cached_teacher: bool = field(
        default=False, metadata={"help": "Read the teacher's states from frames_cache in place of running it."}
    )
    top_k: int = field(default=64, metadata={"help": "Tokens per position of a cached teacher's distribution."})

    def check_teacher_arguments(self, divergence_weight: float) -> None:
        """Raises a ValueError for settings that cannot work, alone or together; `divergence_weight` is its weight."""
        if self.divergence not in DIVERGENCES:
            raise ValueError(f"divergence={self.divergence!r} must be one of {', '.join(DIVERGENCES)}.")
        if self.temperature <= 0:
            raise ValueError(f"temperature={self.temperature} must be positive.")
        if not 0 < self.jsd_beta < 1:
            raise ValueError(f"jsd_beta={self.jsd_beta} must be between 0 and 1; at the ends take forward, reverse.")
        if self.cached_teacher and not self.frames_cache:
            raise ValueError("cached_teacher needs frames_cache, the folder that `speechllm encode` wrote.")
        if self.cached_teacher and self.chat_template_kwargs:
            raise ValueError(
                "A cached teacher read the chat template with its defaults, so chat_template_kwargs would set teacher "
                "and student apart. Change the template itself, or set cached_teacher to False."
            )
        if self.cached_teacher and divergence_weight and self.divergence != "forward":
            raise ValueError(
                f"A cached teacher is known by its likeliest tokens, which serve the forward divergence, not "
                f"{self.divergence!r}. Set divergence to forward, or cached_teacher to False."
            )


__all__ = ["TeacherArguments"]
