"""The regime of LAD's claim, alone: languages that want the same sounds at other places.

    python -m benchmarks.claims.interference

Sentences of a few symbols are heard as frames (symbol, place, accent of the language, noise) and are to be written as
embeddings, in every language in an order of its own. This is what shared queries cannot do well: query i has to look
elsewhere in each language. The connector is the package's Whisper-decoder Q-Former with its bank and gate, the losses
are those of `SpeechDistillationTrainer` (L_IN and L_LID), teacher forcing falls as it does there. No encoder, no LLM:
seconds per line.
"""

import argparse
from statistics import fmean, stdev

import torch
from torch.nn import functional as F

from modeling_speechllm.connectors import build_connector
from modeling_speechllm.query_bank import teacher_forcing_probability
from trainers.objectives.ctc import language_loss
from trainers.objectives.distances import input_distance

SIZE, SYMBOLS, LENGTH, FRAMES = 32, 12, 4, 3  # width; symbols; symbols in a sentence; frames of a symbol
BATCH, RATE, ASKED = 32, 3e-3, 256


class Speech:
    """Batches of spoken sentences and the embeddings to write.

    Args:
        languages: how many; the first writes in the order that is heard.
        generator: of the sentences. Sounds, accents and orders are always the same.
    """

    def __init__(self, languages: int, generator: torch.Generator):
        fixed = torch.Generator().manual_seed(1)
        self.languages, self.generator = languages, generator
        self.sounds = torch.randn(SYMBOLS, SIZE, generator=fixed)
        self.places = torch.randn(FRAMES * LENGTH, SIZE, generator=fixed)
        self.words = F.normalize(torch.randn(SYMBOLS, SIZE, generator=fixed), dim=-1)
        self.accents = torch.randn(languages, SIZE, generator=fixed)
        heard = torch.arange(LENGTH)
        others = [torch.randperm(LENGTH, generator=fixed) for _ in range(languages - 2)]
        self.orders = torch.stack([heard, heard.flip(0), *others][:languages])

    def batch(self, size: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Frames (batch, frames, dim), languages (batch,), embeddings to write (batch, symbols, dim)."""
        symbols = torch.randint(SYMBOLS, (size, LENGTH), generator=self.generator)
        language = torch.randint(self.languages, (size,), generator=self.generator)
        frames = self.sounds[symbols].repeat_interleave(FRAMES, 1) + self.places
        frames = frames + 0.5 * self.accents[language][:, None]
        frames = frames + 0.3 * torch.randn(frames.shape, generator=self.generator)
        return frames, language, self.words[symbols.gather(1, self.orders[language])]


def measure(selection: str | None, languages: int, layers: int, steps: int, seed: int) -> float:
    """
    L_IN on unheard sentences after training.

    Args:
        selection: `hard` or `soft` bank with an attention gate, or None for shared queries.
        languages: how many, the bank's entries.
        layers: of the decoder.
        steps: updates of 32 sentences.
        seed: of weights and sentences.
    """
    torch.manual_seed(seed)
    settings = {"type": "whisper_qformer", "queries": LENGTH, "positions": LENGTH, "hidden_size": SIZE, "heads": 2}
    settings |= {"decoder_layers": layers, "ffn_size": 64}
    if selection is not None:
        names = [str(number) for number in range(languages)]
        settings |= {"languages": names, "gate": "attention", "gate_size": 16, "selection": selection}
    connector = build_connector(settings, SIZE, SIZE)
    optimizer = torch.optim.AdamW(connector.parameters(), lr=RATE)
    speech = Speech(languages, torch.Generator().manual_seed(seed))
    for step in range(steps):
        connector.bank.teacher_forcing = teacher_forcing_probability(step, steps)
        frames, language, wanted = speech.batch(BATCH)
        optimizer.zero_grad()
        output = connector(frames, places_of(frames), None if selection is None else language)
        loss = input_distance(output.embeddings, symbols_of(wanted), wanted, symbols_of(wanted))[0]
        if selection is not None:
            loss = loss + language_loss(output.language_logits, language)[0]
        (loss / BATCH).backward()
        optimizer.step()
    connector.eval()
    frames, _, wanted = Speech(languages, torch.Generator().manual_seed(10_000 + seed)).batch(ASKED)
    with torch.no_grad():
        output = connector(frames, places_of(frames), None)
    return float(input_distance(output.embeddings, symbols_of(wanted), wanted, symbols_of(wanted))[0]) / ASKED


def places_of(frames: torch.Tensor) -> torch.Tensor:
    """Lengths (batch,) of frames that all are valid."""
    return torch.full((len(frames),), frames.shape[1])


symbols_of = places_of


def main() -> None:
    """The command line: a table over languages and layers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--languages", type=int, nargs="+", default=[1, 2, 6])
    parser.add_argument("--layers", type=int, nargs="+", default=[1, 2])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print("| languages | decoder layers | shared | soft bank | hard bank | hard against shared |")
    print("|---:|---:|---:|---:|---:|---:|", flush=True)
    for languages in arguments.languages:
        for layers in arguments.layers:
            found = {
                kind: [measure(kind, languages, layers, arguments.steps, seed) for seed in range(arguments.seeds)]
                for kind in (None, "soft", "hard")
            }
            cells = [
                f"{fmean(values):.3f}" + (f" ± {stdev(values):.3f}" if len(values) > 1 else "")
                for values in found.values()
            ]
            share = 100 * (fmean(found["hard"]) / fmean(found[None]) - 1)
            print(f"| {languages} | {layers} | {' | '.join(cells)} | {share:+.0f} % |", flush=True)


if __name__ == "__main__":
    main()
