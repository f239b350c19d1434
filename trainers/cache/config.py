"""What `speechllm encode` is told: which model, where to, how much and how exact."""

from dataclasses import dataclass, field

from ..data.settings import ModelSettings

STORAGE_DTYPES = ("float16", "bfloat16", "float32")
TEACHERS = ("none", "hidden", "top_k")


@dataclass
class EncodeConfig(ModelSettings):
    """
    Arguments of [`encode_dataset`], beside [`ModelSettings`]. Train with the same `dtype`, or the cache is refused.

    Args:
        > Parameters that control what is stored

        output_dir (`str`, *optional*, defaults to `"cache"`):
            Folder of the cache. A run that was killed goes on there.
        layers (`str` or `list[int]`, *optional*):
            Encoder layers: `"all"` or their numbers as in a connector's `layers`. By default those that the connector
            reads. More than it reads serve several connectors from one cache.
        storage_dtype (`str`, *optional*, defaults to `"float16"`):
            `"float16"`, `"bfloat16"` (for encoders whose layers leave float16's range) or `"float32"` (exact).
        shard_bytes (`int`, *optional*, defaults to `1_000_000_000`):
            A shard is written when it holds this much, and kept in memory until then.
        shard_seconds (`float`, *optional*, defaults to `300.0`):
            A shard is written after this time too: a run that is killed loses no more of its work.
        max_bad_share (`float`, *optional*, defaults to `0.01`):
            Stop when more than this share of the rows cannot be used; fewer are set aside, counted and listed.

        > Parameters that control the teacher's states

        teacher (`str`, *optional*, defaults to `"none"`):
            `"hidden"`: last hidden state at the last position of the prompt (DiVA, LAD). `"top_k"`: the most likely
            tokens at each position that predicts the answer.
        top_k (`int`, *optional*, defaults to `64`):
            Tokens kept for each position; the rest of the probability is what they leave of 1.
        temperature (`float`, *optional*, defaults to `1.0`):
            Logits are divided by it before they are normalised; that of the loss.
        instruction (`str`, *optional*):
            What the teacher's prompts hold beside the transcript; part of the fingerprint.

        > Parameters that control speed

        device (`str`, *optional*):
            Where the frozen parts run; by default each process takes its accelerator, or the CPU.
        batch_seconds (`float`, *optional*, defaults to `240.0`):
            Seconds of audio in a batch, padding included; longer audio runs alone.
        teacher_batch_size (`int`, *optional*, defaults to `8`):
            Rows that the LLM reads at once.
        decoding_threads (`int`, *optional*, defaults to `4`):
            Threads that decode audio while the encoder runs, 0 for none.
    """

    device: str | None = field(default=None, metadata={"help": "Device of the frozen parts; by default the best."})
    output_dir: str = field(default="cache", metadata={"help": "Folder of the cache; a killed run goes on there."})
    layers: list[str] | None = field(
        default=None,
        metadata={"help": "Encoder layers, all or their numbers; by default those that the connector reads."},
    )
    storage_dtype: str = field(
        default="float16", metadata={"help": "Precision on disk.", "choices": list(STORAGE_DTYPES)}
    )
    shard_bytes: int = field(default=1_000_000_000, metadata={"help": "Bytes of a shard."})
    shard_seconds: float = field(
        default=300.0, metadata={"help": "A shard is written after this time too; a killed run loses no more."}
    )
    max_bad_share: float = field(
        default=0.01, metadata={"help": "Stop when more than this share of the rows cannot be used."}
    )
    teacher: str = field(
        default="none", metadata={"help": "Which states of the LLM are stored.", "choices": list(TEACHERS)}
    )
    top_k: int = field(default=64, metadata={"help": "Tokens kept for each answer position."})
    temperature: float = field(default=1.0, metadata={"help": "Logits are divided by it, as in the loss."})
    instruction: str | None = field(
        default=None, metadata={"help": "What the teacher's prompts hold beside the transcript."}
    )
    batch_seconds: float = field(
        default=240.0, metadata={"help": "Seconds of audio in a batch, padding included; longer audio runs alone."}
    )
    teacher_batch_size: int = field(default=8, metadata={"help": "Rows that the LLM reads at once."})
    decoding_threads: int = field(default=4, metadata={"help": "Threads that decode audio, 0 for none."})

    def __post_init__(self):
        super().__post_init__()
        for name, allowed in (("storage_dtype", STORAGE_DTYPES), ("teacher", TEACHERS)):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name}={getattr(self, name)!r} is not one of {', '.join(allowed)}.")
        for name in ("shard_bytes", "shard_seconds", "top_k", "temperature", "batch_seconds", "teacher_batch_size"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name}={getattr(self, name)} must be positive.")
        if self.layers in ("all", ["all"]):
            self.layers = "all"
        elif self.layers is not None:
            try:
                self.layers = [int(layer) for layer in self.layers]
            except ValueError as error:
                raise ValueError(f'layers={self.layers} must be "all" or layer numbers.') from error


__all__ = ["STORAGE_DTYPES", "TEACHERS", "EncodeConfig"]
