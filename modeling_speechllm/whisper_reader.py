"""A connector that reads with Whisper's own decoder: one embedding of the LLM per token that it reads.

Whisper's decoder writes down greedily what it hears in the encoder's frames. Each token that it writes becomes one
vector, the LLM's own embedding of it. So an LLM has ears before any training, as good as the recogniser's. The
gradient is that of the embeddings weighted by the decoder's posterior (LegoSLM does so with CTC posteriors, arXiv
2505.11352; straight-through), so that encoder, decoder and table can be trained through the LLM like any other
connector. It is the slowest to prefill: the decoder goes token by token, and each window of longer audio is read for
itself.

Unusual here:
- How many placeholders an audio takes depends on its length alone, as with every connector. `used` marks those that
  carry a token; the model takes the others out of attention and positions (as `ctc_compress`).
- Frames are those of the audio's own length and of half a second of silence after it (the processor's
  `trailing_silence`), not of a whole window. Without any silence Whisper does not find the end, and repeats. It reads
  with timestamps, under Whisper's own rules for them, and stops at an end that lies within `END` of the window's.
  Where Whisper ends before that, its own loop would read anew from there; here it reads on if the rest has speech.
- A window is not read at all where Whisper tells that nothing is said (`no_speech_probability`): by its token for no
  speech, and by what it would begin with if it might, a note such as "[Music]". All that it would write is invented.
- What greedy decoding repeats is read once (`said`). Whisper's way out, sampling, would give another text each time.
- Where gradients are wanted, the tokens are read first, without; then one pass over all of them gives the posteriors.
"""

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import initialization as init
from transformers.cache_utils import DynamicCache, EncoderDecoderCache
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled
from transformers.masking_utils import create_bidirectional_mask, create_causal_mask
from transformers.models.whisper.modeling_whisper import WhisperDecoderLayer

from .configuration_connectors import WhisperReaderConfig
from .connector_base import Connector, ConnectorOutput, fold_windows, length_mask, unfold_tokens
from .ctc_compress import TokenTable
from .generation import CACHE
from .lengths import output_length, stage_length
from .whisper_qformer import decoder_config

END = 100  # frames (2 s): a segment that ends so near the end of its window is the last
TEXT, ENDED, BEGUN = 0, 1, 2  # what was written last: text, a segment's end, the beginning of the next


def said(written: list[int], end: int, times: int, frames: int, full: bool) -> int:
    """How many of the tokens that were written about a window of so many frames were said; the rest repeats them.

    - A segment with the words of an earlier one, and less time left than that one took, was not said again.
    - Where the room for tokens is full, as it is when decoding does not find out of a loop: what was written three
      times or more in a row at the end counts once.
    """
    took: dict[tuple[int, ...], int] = {}  # frames of each segment, by its words
    segment, begin, time = (), 0, 0  # words of this one; where and when it began
    for place, token in enumerate([*written, end]):
        if token < end:
            segment += (token,)
        elif segment:
            if frames - time < took.get(segment, 0):
                return begin
            took[segment], segment = token - times - time, ()
        if token >= times:
            begin, time = place + 1, token - times
    words = [place for place, token in enumerate(written) if token < end]
    for length in range(1, len(words) // 3 + 1 if full else 1):
        last = [written[place] for place in words[-3 * length :]]
        if last[: 2 * length] == last[length:]:
            first = len(words) - 3 * length
            while first and written[words[first - 1]] == written[words[first - 1 + length]]:
                first -= 1
            return words[first + length]
    return len(written)


class SharedEmbedding(nn.Embedding):
    """Token embeddings that are the output layer too; either way by a call, for which offloaded weights come back."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Token ids (...) -> vectors (..., size); states (..., size) -> logits (..., tokens)."""
        return F.linear(input, self.weight) if input.is_floating_point() else super().forward(input)


class ReaderTable(TokenTable):
    """A row of the LLM's vectors per token that is written; `copied_ids` (vocabulary,) says of which of the LLM's
    tokens a row is a copy, -1 where it is none."""

    def __init__(self, vocabulary: int, size: int):
        super().__init__(vocabulary, size)
        self.register_buffer("copied_ids", torch.full((vocabulary,), -1))

    def forward(self, read: torch.Tensor) -> torch.Tensor:
        """Rows (...) -> themselves, (..., size); weights of rows (..., vocabulary) -> their mean, (..., size)."""
        return super().forward(read) if read.is_floating_point() else F.embedding(read, self.weight)

    def initialize(self, std: float) -> None:
        super().initialize(std)
        init.copy_(self.copied_ids, torch.full_like(self.token_ids, -1))


class WhisperReader(Connector):
    """See the module."""

    leaves_out = True
    autoregressive = True

    def __init__(self, config: WhisperReaderConfig, audio_size: int, text_size: int, window: int, **kwargs: Any):
        super().__init__(config, audio_size, text_size, window, **kwargs)
        self.window = window
        size = config.hidden_size or audio_size
        self.audio_projection = nn.Identity() if size == audio_size else nn.Linear(audio_size, size)
        self.decoder_config = decoder_config(config, size, kwargs.get("attention", "sdpa"))
        self.embed_tokens = SharedEmbedding(config.tokens, size)
        self.embed_positions = nn.Embedding(config.positions, size)
        self.layers = nn.ModuleList(
            WhisperDecoderLayer(self.decoder_config, number) for number in range(config.decoder_layers)
        )
        self.layer_norm = nn.LayerNorm(size)
        self.table = ReaderTable(config.vocabulary, text_size)

    def set_attn_implementation(self, attention: str) -> None:
        self.decoder_config._attn_implementation = attention

    def load_decoder(self, decoder: nn.Module) -> None:
        """Takes the weights of a pretrained `WhisperDecoder`.

        Raises:
            ValueError: a decoder of another shape.
        """
        own = ("embed_tokens.", "embed_positions.", "layers.", "layer_norm.")
        state = decoder.state_dict()
        expected = {key: value.shape for key, value in self.state_dict().items() if key.startswith(own)}
        if {key: value.shape for key, value in state.items()} != expected:
            raise ValueError(
                f"The Whisper decoder ({len(decoder.layers)} layers of width {decoder.config.d_model}, "
                f"{decoder.config.vocab_size} tokens) does not fit the connector ({len(self.layers)} layers of width "
                f"{self.decoder_config.d_model}, {self.config.tokens} tokens). Leave these settings out, they are "
                "read from the decoder."
            )
        self.load_state_dict(state, strict=False)

    @torch.no_grad()
    def load_vocabulary(self, token_ids: torch.Tensor, embeddings: torch.Tensor) -> None:
        """What the reader may write: Whisper's tokens (vocabulary,) and the LLM's vector of each (vocabulary,
        text_size).

        Raises:
            ValueError: another number of tokens than the config's `vocabulary`.
        """
        if not len(token_ids) == len(embeddings) == self.config.vocabulary:
            raise ValueError(
                f"whisper_reader: {len(token_ids)} tokens and {len(embeddings)} vectors for "
                f"vocabulary={self.config.vocabulary}. Build the connector with as many classes as there are tokens."
            )
        self.table.token_ids.copy_(token_ids)
        self.table.weight.copy_(embeddings)

    def copied(self, embeddings: torch.Tensor) -> dict[str, torch.Tensor]:
        if (self.table.copied_ids < 0).any():
            return {}
        return {"table.weight": embeddings[self.table.copied_ids]}

    def project(self, frames: torch.Tensor, lengths: torch.Tensor, language: torch.Tensor | None) -> ConnectorOutput:
        if is_deepspeed_zero3_enabled():
            raise ValueError(
                "whisper_reader reads as many steps as there are words, other numbers on other processes, and under "
                "DeepSpeed ZeRO-3 they would wait for each other's layers for ever. Use FSDP2, DDP or ZeRO-2."
            )
        windows, window_lengths, used_windows = fold_windows(self.audio_projection(frames), lengths, self.window)
        limits = stage_length(window_lengths, **self.stages[0])
        size = int(stage_length(windows.shape[1], **self.stages[0]))
        training = self.layers.training
        self.layers.eval()  # an adapter's dropout misreads; a checkpointed layer may keep no cache in training
        tokens, hidden = self.read(windows, window_lengths, limits)
        self.layers.train(training)
        if torch.is_grad_enabled() and (windows.requires_grad or any(p.requires_grad for p in self.parameters())):
            hidden = self.hear_again(tokens, windows, window_lengths)
        spoken = tokens < self.config.end
        used = length_mask(spoken.sum(1), size)
        embedded = self.embed(hidden[spoken], tokens[spoken])
        embeddings = embedded.new_zeros(*used.shape, embedded.shape[-1]).masked_scatter(used[..., None], embedded)
        places = output_length(frames.shape[1], self.stages)  # the last window may have fewer than the others
        return ConnectorOutput(
            embeddings=unfold_tokens(embeddings, used_windows)[:, :places],
            used=unfold_tokens(used[..., None], used_windows)[:, :places, 0],
        )

    def embed(self, hidden: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """The decoder's states (written, size) and what it wrote from them (written,) -> the LLM's vectors (written,
        text_size): of the tokens, or weighted by the posterior. The gradient is that of the latter in both."""
        token_ids, hard = self.table.token_ids.to(hidden.device), self.config.selection == "hard"
        if hard and not torch.is_grad_enabled():
            return self.written(tokens, token_ids)
        logits = self.embed_tokens(hidden)[..., token_ids]
        weighted = self.table(logits.float().softmax(-1))
        return weighted + (self.written(tokens, token_ids) - weighted).detach() if hard else weighted

    def written(self, tokens: torch.Tensor, token_ids: torch.Tensor) -> torch.Tensor:
        """The LLM's vectors of Whisper's tokens (written,), all of them in the table of `token_ids`."""
        places = torch.zeros(self.config.tokens, dtype=torch.long, device=tokens.device)
        places[token_ids] = torch.arange(len(token_ids), device=tokens.device)
        return self.table(places[tokens])

    @torch.compiler.disable
    @torch.no_grad()
    def read(
        self, windows: torch.Tensor, lengths: torch.Tensor, limits: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Greedy reading of windows (rows, frames, size): what was written, (rows, steps), timestamps and, past the
        end, `end` included; and the decoder's state that each came from, (rows, steps, size). At most `limits` (rows,)
        tokens of text in a row, none where there is no speech."""
        config, device = self.config, windows.device
        known = torch.zeros(config.tokens, dtype=torch.bool, device=device)
        known[self.table.token_ids.to(device)] = True
        known[config.end :] = False
        known[config.end] = True
        known[config.times :] = True
        times = torch.arange(config.tokens - config.times, device=device)
        rows = len(windows)
        cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
        prompt = torch.tensor(config.prompt, device=device).expand(rows, -1)
        state = torch.full((rows,), BEGUN, device=device)
        latest = torch.zeros(rows, dtype=torch.long, device=device)  # time reached, in frames
        count = torch.zeros(rows, dtype=torch.long, device=device)
        told = self.decode(prompt, windows, lengths, cache)
        hidden = told[:, -1]
        done = limits < 1
        if config.no_speech is not None and config.no_speech_threshold:
            done = done | (self.no_speech_probability(told) > config.no_speech_threshold)
        tokens, states = [], []
        for _ in range(config.positions - len(config.prompt)):
            logits = self.embed_tokens(hidden).float()
            logits = logits.masked_fill(~known, -torch.inf)
            # Whisper's rules: times come in pairs and do not go back; and where they are likelier, all together, than
            # anything else is, it is one of them.
            early = times < latest[:, None] + (state == TEXT)[:, None]
            logits[:, config.times :].masked_fill_(early | (state == BEGUN)[:, None], -torch.inf)
            logits[:, : config.end].masked_fill_((state == ENDED)[:, None], -torch.inf)
            timed = logits[:, config.times :].logsumexp(-1) > logits[:, : config.times].amax(-1)
            logits[:, : config.times].masked_fill_(timed[:, None], -torch.inf)
            token = logits.argmax(-1).masked_fill(done, config.end)
            more = (token == config.end) & (state == BEGUN) & (latest > 0) & (lengths - latest > END) & ~done
            if more.any():
                more[more.clone()] = self.speaks_on(windows[more], lengths[more], latest[more])
                token = torch.where(more, logits[:, : config.end].argmax(-1), token)
            time, ended = token - config.times, token >= config.times
            closed = ended & (state == TEXT)
            done = done | (token == config.end) | closed & (time > lengths - END)
            tokens.append(token.masked_fill(done & ended, config.end))
            states.append(hidden)
            count = count + (token < config.end)
            latest = torch.where(ended, time, latest)
            state = torch.where(ended, torch.where(closed, ENDED, BEGUN), torch.full_like(state, TEXT))
            done = done | (count >= limits)
            if done.all():
                break
            hidden = self.decode(token[:, None], windows, lengths, cache)[:, -1]
        tokens = torch.stack(tokens, 1)
        facts = zip(tokens.tolist(), lengths.tolist(), (count >= limits).tolist(), strict=True)
        for row, (written, frames, full) in enumerate(facts):
            tokens[row, said(written, config.end, config.times, frames, full) :] = config.end
        return tokens, torch.stack(states, 1)

    def speaks_on(self, windows: torch.Tensor, lengths: torch.Tensor, begins: torch.Tensor) -> torch.Tensor:
        """Whether there is speech in windows (rows, frames, size) from frames `begins` (rows,) on, (rows,)."""
        if self.config.no_speech is None or not self.config.no_speech_threshold:
            return torch.zeros_like(begins, dtype=torch.bool)
        rest = lengths - begins
        places = begins[:, None] + torch.arange(int(rest.max()), device=begins.device)
        places = places.clamp(max=windows.shape[1] - 1)
        frames = windows.gather(1, places[..., None].expand(-1, -1, windows.shape[2]))
        prompt = torch.tensor(self.config.prompt, device=windows.device).expand(len(windows), -1)
        told = self.decode(prompt, frames, rest, None)
        return self.no_speech_probability(told) <= self.config.no_speech_threshold

    def no_speech_probability(self, told: torch.Tensor) -> torch.Tensor:
        """That nothing is said in windows (rows,), by the states on the prompt (rows, prompt, size).

        Whisper's own sign is the probability of its token for no speech after `<|startoftranscript|>`, above 0.6
        together with improbable words (`no_speech_threshold`, `logprob_threshold` of OpenAI's and transformers'). For
        that all is written first, and short answers of people have both; so the other sign is what it would begin with
        if it might, a bracket or a note. The two are put together as if they were independent:
        `a b / (a b + (1 - a) (1 - b))`.
        """
        start, first = self.embed_tokens(told[:, [0, -1]]).float().softmax(-1).unbind(1)
        nothing, note = start[:, self.config.no_speech], first[:, self.config.suppress_tokens].sum(-1)
        both, neither = nothing * note, (1 - nothing) * (1 - note)
        return both / (both + neither)

    def hear_again(self, tokens: torch.Tensor, windows: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """The decoder's states before each of the tokens read, (rows, steps, size), with gradients."""
        prompt = torch.tensor(self.config.prompt, device=tokens.device).expand(len(tokens), -1)
        before = torch.cat([prompt, tokens[:, :-1]], dim=1)
        hidden = self.decode(before, windows, lengths, None)
        return hidden[:, prompt.shape[1] - 1 :]

    def decode(
        self, tokens: torch.Tensor, windows: torch.Tensor, lengths: torch.Tensor, cache: EncoderDecoderCache | None
    ) -> torch.Tensor:
        """States (rows, steps, size) of Whisper's decoder on tokens (rows, steps) after those in the cache."""
        past = 0 if cache is None else cache.get_seq_length()
        places = torch.arange(past, past + tokens.shape[1], device=tokens.device)
        hidden = self.embed_tokens(tokens) + self.embed_positions(places)
        no_cache = None  # by position: its keyword is another from transformers 5.24 on
        causal = create_causal_mask(self.decoder_config, hidden, None, no_cache) if tokens.shape[1] > 1 else None
        cross = create_bidirectional_mask(
            config=self.decoder_config,
            inputs_embeds=hidden,
            attention_mask=length_mask(lengths.clamp(min=1), windows.shape[1]),  # of no frame there is no mean
            encoder_hidden_states=windows,
        )
        kept = {CACHE: cache, "use_cache": cache is not None}
        for layer in self.layers:
            hidden = layer(hidden, causal, windows, encoder_attention_mask=cross, **kept)
        return self.layer_norm(hidden)


__all__ = ["WhisperReader"]
