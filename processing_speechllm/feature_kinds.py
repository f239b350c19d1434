"""The feature extractors that speech encoders come with: how each is called, and how many positions it gives.

Whatever an extractor's own layout, features leave the processor with time as their last axis: `(samples,)` or
`(features, positions)`. Positions are counted by stages from samples, as the encoder's frames are from positions.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class FeatureKind:
    """
    Args:
        stages: extractor -> stages from samples to positions, see `stage_length`.
        size: extractor -> features per position, None for raw samples.
        shortest: extractor -> samples it needs whatever the encoder needs.
        fills_hops: the audio is filled up with silence to whole hops, so that its last, partly filled one counts.
        frames_first: the extractor gives `(positions, features)`.
        options: arguments of its call.
    """

    stages: Callable[[Any], list[dict]]
    size: Callable[[Any], int | None]
    shortest: Callable[[Any], int]
    fills_hops: bool = False
    frames_first: bool = False
    options: dict = field(default_factory=dict)


WAVEFORM = FeatureKind(stages=lambda extractor: [], size=lambda extractor: None, shortest=lambda extractor: 1)
FEATURE_KINDS = {
    # Whisper, Qwen2-Audio, Audio Flamingo 3. The STFT mirrors half a window at each end, and cannot mirror more than
    # there is.
    "WhisperFeatureExtractor": FeatureKind(
        stages=lambda extractor: [{"kernel": extractor.hop_length, "stride": extractor.hop_length, "ceil": True}],
        size=lambda extractor: extractor.feature_size,
        shortest=lambda extractor: extractor.n_fft // 2 + 1,
        fills_hops=True,
        options={"truncation": False},
    ),
    # Parakeet. Its last frame is zeros, outside its own mask; its normalisation over time needs two positions.
    "ParakeetFeatureExtractor": FeatureKind(
        stages=lambda extractor: [{"kernel": extractor.hop_length, "stride": extractor.hop_length}],
        size=lambda extractor: extractor.feature_size,
        shortest=lambda extractor: 2 * extractor.hop_length,
        frames_first=True,
    ),
    # w2v-BERT 2.0, SeamlessM4T: Kaldi's frames of 25 ms every 10 ms, stacked; its own mask leaves out an odd last one.
    "SeamlessM4TFeatureExtractor": FeatureKind(
        stages=lambda extractor: [
            {"kernel": 400, "stride": 160},
            {"kernel": extractor.stride, "stride": extractor.stride},
        ],
        size=lambda extractor: extractor.num_mel_bins * extractor.stride,
        shortest=lambda extractor: 1,
        frames_first=True,
    ),
}


def feature_kind(feature_extractor: Any) -> FeatureKind:
    """
    The kind of an extractor, by its class or one it inherits from; all of raw waveforms are alike.

    Raises:
        ValueError: an extractor of no known kind, with the known ones.
    """
    if feature_extractor.model_input_names[0] == "input_values":
        return WAVEFORM
    for ancestor in type(feature_extractor).__mro__:
        if ancestor.__name__ in FEATURE_KINDS:
            return FEATURE_KINDS[ancestor.__name__]
    raise ValueError(
        f"{type(feature_extractor).__name__} is not supported. Use {', '.join(FEATURE_KINDS)} or one of raw "
        "waveforms, such as Wav2Vec2FeatureExtractor."
    )


__all__ = ["FEATURE_KINDS", "FeatureKind", "feature_kind"]
