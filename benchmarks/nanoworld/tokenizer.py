"""The nano LLM's tokenizer: byte-level BPE in which nearly every word of the world is one token.

Words begin with "▁" also at the start of a text, so a word is the same token wherever it stands; Chinese is one token
per character; a line break is a token of its own. Text is therefore tokenised piece by piece: a prompt, a line break
and a request give the same ids together as apart.
"""

import random
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from benchmarks.nanoworld.prompts import PROMPTS
from benchmarks.nanoworld.tasks import draw, tasks_for
from benchmarks.nanoworld.world import LANGUAGES, frames

PAD, START, END, AUDIO = "<pad>", "<|im_start|>", "<|im_end|>", "<|audio|>"
SPECIALS = [PAD, START, END, AUDIO]
VOCABULARY = 2600  # with the 256 bytes and the line break

CHAT_TEMPLATE = """\
{%- for message in messages -%}
{%- if message['role'] == 'assistant' -%}
{{ '<|im_start|>assistant\\n' }}{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}
{%- else -%}
{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' }}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}
"""


def corpus(seed: int = 0) -> list[str]:
    """Every request, prompt and answer shape of the world, sampled once per frame and language."""
    rng = random.Random(seed)
    lines = ["user", "assistant", "system"] * 50
    for frame in frames():
        for language in LANGUAGES:
            lines.append(frame.text(language))
            example = draw(rng.choice(tasks_for(frame, language)), frame, language, rng)
            lines += [example.instruction, example.answer]
    lines += [prompt.text for prompts in PROMPTS.values() for prompt in prompts if not prompt.held_out]
    words = {word for line in lines for word in line.strip(" .,:?¿").split(" ") if word.isascii() or len(word) < 15}
    return lines + sorted(words) * 20


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Trains the BPE on the corpus and wraps it with special tokens and chat template."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Metaspace(prepend_scheme="always"),
            pre_tokenizers.Split(Regex(r"[\u4e00-\u9fff]|▁?[0-9]|[^\w▁]"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.Sequence(
        [decoders.ByteLevel(), decoders.Replace("▁", " "), decoders.Strip(" ", 1, 0)]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=SPECIALS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        min_frequency=2,
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus(), trainer)
    tokenizer.add_tokens([AddedToken("\n", normalized=False, special=False)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=END,
        additional_special_tokens=[START, AUDIO],
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
        model_max_length=1024,
        padding_side="left",
    )


def get_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """The tokenizer in `folder`, trained and saved there on first use."""
    if not (folder / "tokenizer.json").exists():
        build_tokenizer().save_pretrained(folder)
    return PreTrainedTokenizerFast.from_pretrained(folder)
