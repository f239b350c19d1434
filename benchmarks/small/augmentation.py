"""What a batch of log-mel features goes through in training, on the device: other speeds and voices, noise, a
telephone's band, and SpecAugment's masks.

Whisper's features are `log10(power) / 4 + 1`, so powers add after `10 ** (4 * (x - 1))`. Everything is drawn anew per
recording, from one generator.
"""

from dataclasses import dataclass

import torch
from torch.nn import functional as F

TELEPHONE_BIN = 56  # of 80 mel bins up to 8 kHz: those above it lie over 3.4 kHz
SPAN = 2.0  # Whisper's features end 8 powers of ten below the loudest


@dataclass
class Augmentation:
    """
    Args:
        speed, voice: largest change of tempo, and of the mel axis (vocal tracts), as shares.
        noise: share of recordings with noise, 0 to 25 dB under the speech, of random colour.
        telephone: share of recordings without anything over 3.4 kHz.
        masks: time masks per second; mask_seconds: longest. bands: masks over mel bins; band_bins: widest.
    """

    speed: float = 0.15
    voice: float = 0.1
    noise: float = 0.3
    telephone: float = 0.1
    masks: float = 1.0
    mask_seconds: float = 0.35
    bands: int = 2
    band_bins: int = 16

    def __call__(
        self, mels: torch.Tensor, lengths: torch.Tensor, generator: torch.Generator
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Features (batch, frames, bins), zero past their lengths (batch,) -> the same, of other lengths."""
        mels, lengths = self.warp(mels, lengths, generator)
        mels = self.spoil(mels, lengths, generator)
        return self.mask(mels, lengths, generator), lengths

    def uniform(self, count: int, generator: torch.Generator, low: float = -1.0, high: float = 1.0) -> torch.Tensor:
        """(count,) numbers in [low, high)."""
        return torch.rand(count, generator=generator, device=generator.device) * (high - low) + low

    def warp(
        self, mels: torch.Tensor, lengths: torch.Tensor, generator: torch.Generator
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Time and mel axis, each stretched about its beginning."""
        batch, frames, bins = mels.shape
        tempo = 1 + self.speed * self.uniform(batch, generator)
        tract = 1 + self.voice * self.uniform(batch, generator)
        longer = (lengths * tempo / 2).long() * 2  # whole encoder frames
        size = int(longer.max())
        time = torch.arange(size, device=mels.device)[None] / tempo[:, None]
        bin = torch.arange(bins, device=mels.device)[None] / tract[:, None]
        grid = torch.stack(
            [
                ((2 * bin + 1) / bins - 1)[:, None, :].expand(batch, size, bins),
                ((2 * time + 1) / frames - 1)[:, :, None].expand(batch, size, bins),
            ],
            dim=-1,
        )
        warped = F.grid_sample(mels[:, None], grid, padding_mode="border", align_corners=False)[:, 0]
        return warped.masked_fill(~inside(longer, size)[..., None], 0.0), longer

    def spoil(self, mels: torch.Tensor, lengths: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Noise, and a telephone's band."""
        batch, frames, bins = mels.shape
        valid = inside(lengths, frames)[..., None]
        loudest = mels.masked_fill(~valid, -torch.inf).amax((1, 2), keepdim=True)
        level = (mels * valid).sum((1, 2), keepdim=True) / (valid.sum((1, 2), keepdim=True) * bins)
        speech = level + 0.6 * (loudest - level)  # about where the speech itself is
        decibel = self.uniform(batch, generator, 0.0, 25.0)[:, None, None]
        tilt = self.uniform(batch, generator, -0.6, 0.6)[:, None, None]
        slope = torch.linspace(-0.5, 0.5, bins, device=mels.device)
        power = torch.empty_like(mels).exponential_(generator=generator).clamp(min=1e-3)  # of one frame of noise
        noise = speech - decibel / 40 + tilt * slope + power.log10() / 4
        mixed = torch.logaddexp(mels * BASE, noise * BASE) / BASE
        noisy = self.uniform(batch, generator, 0.0, 1.0) < self.noise
        mels = torch.where(noisy[:, None, None], mixed, mels)
        mels = torch.maximum(mels, loudest - SPAN)
        narrow = self.uniform(batch, generator, 0.0, 1.0) < self.telephone
        high = torch.arange(bins, device=mels.device) >= TELEPHONE_BIN
        mels = torch.where(narrow[:, None, None] & high, loudest - SPAN, mels)
        return mels.masked_fill(~valid, 0.0)

    def mask(self, mels: torch.Tensor, lengths: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """SpecAugment (Park et al. 2019, arXiv 1904.08779): spans of time and of mel bins are zero."""
        batch, frames, bins = mels.shape
        number = max(round(self.masks * frames / 100), 1)
        shape = (batch, number)
        width = torch.rand(shape, generator=generator, device=mels.device) * self.mask_seconds * 100
        start = torch.rand(shape, generator=generator, device=mels.device) * lengths[:, None]
        used = torch.arange(number, device=mels.device)[None] < (self.masks * lengths / 100).round()[:, None]
        hidden = spans(start, width * used, frames)
        width = torch.rand((batch, self.bands), generator=generator, device=mels.device) * self.band_bins
        start = torch.rand((batch, self.bands), generator=generator, device=mels.device) * (bins - width)
        return mels.masked_fill(hidden[:, :, None] | spans(start, width, bins)[:, None, :], 0.0)


BASE = 4 * torch.log(torch.tensor(10.0)).item()  # features times this are natural logarithms of powers


def inside(lengths: torch.Tensor, size: int) -> torch.Tensor:
    """(batch,) -> (batch, size), true before the length."""
    return torch.arange(size, device=lengths.device)[None] < lengths[:, None]


def spans(start: torch.Tensor, width: torch.Tensor, size: int) -> torch.Tensor:
    """Starts and widths (batch, number) -> (batch, size), true in any of them."""
    place = torch.arange(size, device=start.device)
    return ((place >= start[..., None]) & (place < (start + width)[..., None])).any(1)
