"""What fewer audio tokens save: `ctc_compress`, which gives the LLM no more vectors than it read tokens, against
`stack_mlp`, on the same encoder, LLM and clips.

    python -m benchmarks.audio_tokens --encoder WHISPER_BASE --llm SMOLLM2_135M

The reader is made to read as an English speaker speaks: its head's weights are random, and its bias is set so that it
reads about `--rate` tokens per second. So nothing is said about quality, only about speed. Times are CPU seconds (wall
seconds on a GPU), in turns, the median of the ratios: the first token of a prompt, and a training step (cross-entropy,
the connector trained, forward and backward).
"""

import argparse
import statistics
from typing import Any

import torch

from .frozen_passes import clock
from .loading import speech

CONNECTORS = {
    "stack_mlp, stride 8": {"type": "stack_mlp"},
    "stack_mlp, stride 4": {"type": "stack_mlp", "stride": 4},
    "ctc_compress": {"type": "ctc_compress", "blocks": 2},
}


def reading(model: Any, features: torch.Tensor, mask: torch.Tensor, seconds: float, rate: float) -> None:
    """Sets the head of a reading connector so that it reads `rate` tokens per second of these clips."""
    connector = model.model.multi_modal_projector
    with torch.no_grad():
        connector.load_vocabulary(torch.arange(connector.config.vocabulary), model.get_input_embeddings().weight)
        torch.nn.init.normal_(connector.head.weight, std=1.0)
        low, high = -500.0, 500.0
        for _ in range(24):
            connector.head.bias[-1] = (low + high) / 2
            read = model.get_audio_features(features, mask).connector.used.sum().item()
            low, high = (connector.head.bias[-1].item(), high) if read > rate * seconds else (low, (low + high) / 2)


class Case:
    """A model with one connector, and a batch of prompts about the clips with an answer."""

    def __init__(self, encoder: str, llm: str, connector: dict, clips: list, rate: float, device: str):
        from modeling_speechllm import SpeechLLMForConditionalGeneration
        from processing_speechllm import SpeechLLMProcessor

        torch.manual_seed(0)
        self.model = SpeechLLMForConditionalGeneration.from_parts(encoder, llm, connector).to(device).eval()
        self.model.freeze("encoder", "llm")
        processor = SpeechLLMProcessor.from_parts(encoder, llm, self.model.config)
        content = [{"type": "audio"}, {"type": "text", "text": "Transcribe the speech."}]
        chats = [[{"role": "user", "content": content}] for _ in clips]
        inputs = processor.apply_chat_template(
            chats, audio=[(clip, 16000) for clip in clips], add_generation_prompt=True, tokenize=True, return_dict=True
        ).to(device)
        self.inputs = dict(inputs)
        features, mask = self.inputs["input_features"], self.inputs["input_features_mask"]
        if connector["type"] == "ctc_compress":
            reading(self.model, features, mask, sum(len(clip) for clip in clips) / 16000, rate)
        with torch.no_grad():
            output = self.model.get_audio_features(features, mask).connector
        self.tokens = int(output.lengths.sum() if output.used is None else output.used.sum())
        answer = processor.tokenizer("turn off the radio in the kitchen", add_special_tokens=False)["input_ids"]
        answers = torch.tensor([answer] * len(clips), device=device)
        ids = torch.cat([self.inputs["input_ids"], answers], dim=1)
        mask = torch.cat([self.inputs["attention_mask"], torch.ones_like(answers)], dim=1)
        self.batch = self.inputs | {"input_ids": ids, "attention_mask": mask, "dummy_audio": False, "language": None}
        self.answers = answers

    @torch.no_grad()
    def first_token(self) -> None:
        self.model.generate(**self.inputs, max_new_tokens=1, do_sample=False)

    def step(self) -> None:
        from trainers.objectives.speech_inputs import connect, embed_prompts, read_prompts

        hidden = read_prompts(self.model, embed_prompts(self.model, self.batch, connect(self.model, self.batch)))
        logits = self.model.compute_logits(hidden[:, -self.answers.shape[1] - 1 : -1])
        torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), self.answers.flatten()).backward()
        self.model.zero_grad()


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.audio_tokens",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--encoder", required=True, help="Hub id or folder of a Whisper checkpoint")
    parser.add_argument("--llm", required=True, help="Hub id or folder of a causal LM that chats")
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rate", type=float, default=3.5, help="tokens read per second")
    parser.add_argument("--turns", type=int, default=5)
    arguments = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    clips = [speech(arguments.seconds)] * arguments.batch
    parts = arguments.encoder, arguments.llm
    cases = {name: Case(*parts, settings, clips, arguments.rate, device) for name, settings in CONNECTORS.items()}
    times: dict[tuple[str, str], list[float]] = {}
    for turn in range(arguments.turns + 1):
        for kind in ("first_token", "step"):
            for name, case in cases.items():
                begin = clock(device == "cuda")
                getattr(case, kind)()
                if turn:
                    times.setdefault((name, kind), []).append(clock(device == "cuda") - begin)
    base = next(iter(cases))
    print(f"| connector | audio tokens per {arguments.seconds:g} s | first token | ratio | training step | ratio |")
    print("|---|---:|---:|---:|---:|---:|")
    for name, case in cases.items():
        cells = [name, f"{case.tokens / arguments.batch:.0f}"]
        for kind in ("first_token", "step"):
            pairs = zip(times[name, kind], times[base, kind], strict=True)
            ratio = statistics.median(one / other for one, other in pairs)
            cells += [f"{statistics.median(times[name, kind]):.2f} s", f"{ratio:.2f}"]
        print(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
