"""Breaks one value or step of the methods at a time, in a copy of the repository, and sees a named test fail.

    python tests/mutations.py              # all, some minutes
    python tests/mutations.py wer blank    # those whose names hold one of these words

Prints a line each, and exits with 1 if a test passes over a break, or if the text to break is no longer there.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent


class Mutation(NamedTuple):
    """What is broken, where, the text there and the one put in its place, and the test that must fail."""

    name: str
    file: str
    text: str
    broken: str
    test: str


RECIPES = "trainers/commands/recipes"
RECIPE_VALUES = "test_papers.py::test_recipes_have_the_papers_values"
PRESETS = "test_papers.py::test_presets_have_the_papers_values"
CONNECTORS = "modeling_speechllm/configuration_connectors.py"
CONFORMER = "modeling_speechllm/conformer_ctc.py"
BANK = "modeling_speechllm/query_bank.py"
CHATS = "processing_speechllm/chat_messages.py"
DISTANCES = "trainers/objectives/distances.py"
DISTILLATION = "trainers/distillation_trainer.py"
FILTERS = "trainers/data/filters.py"
WEIGHTS = "test_papers.py::test_terms_have_the_weights_of_the_settings"
MUTATIONS = [
    # LAD and DiVA
    Mutation(
        "query init std", BANK, "std=0.02", "std=0.03", "test_papers.py::test_queries_start_at_the_papers_deviation"
    ),
    Mutation(
        "straight-through",
        BANK,
        "soft - soft.detach()",
        "soft.detach() - soft",
        "test_query_bank.py::test_straight_through",
    ),
    Mutation(
        "teacher forcing",
        BANK,
        "torch.rand(len(forced)",
        "2 * torch.rand(len(forced)",
        "test_query_bank.py::test_labels_replace_the_gate_as_often_as_the_schedule_says",
    ),
    Mutation(
        "L_IN tail",
        DISTANCES,
        "(positions >= (audio_lengths - compared)[:, None])",
        "(positions < compared[:, None])",
        "test_losses.py::test_input_distance_sees_neither_padding_nor_frames_before_the_tail",
    ),
    Mutation(
        "L_IN un-squared",
        DISTANCES,
        "norms = torch.linalg.vector_norm(difference, dim=-1)",
        "norms = difference.square().sum(-1)",
        "test_losses.py::test_input_distance",
    ),
    Mutation(
        "L_IN over tokens or utterances",
        DISTANCES,
        "if not over_tokens",
        "if over_tokens",
        "test_papers.py::test_diva_s_l_in_is_a_mean_over_tokens_and_lad_s_over_utterances",
    ),
    Mutation(
        "L_OUT position",
        DISTILLATION,
        'hidden[rows, batch["prompt_end"]]',
        'hidden[rows, batch["prompt_end"] - 1]',
        "test_papers.py::test_l_out_is_taken_at_the_last_prompt_position_after_the_final_norm",
    ),
    Mutation(
        "L_OUT position of the teacher",
        DISTILLATION,
        'batch["teacher_prompt_end"]',
        'batch["teacher_prompt_end"] - 1',
        "test_papers.py::test_l_out_is_taken_at_the_last_prompt_position_after_the_final_norm",
    ),
    Mutation("lambda OUT", DISTILLATION, '"rows", self.args.output_weight', '"rows", self.args.input_weight', WEIGHTS),
    Mutation("lambda LID", DISTILLATION, "self.args.language_weight", "1.0", WEIGHTS),
    Mutation(
        "transcript tokens",
        "trainers/data/collators.py",
        "add_special_tokens=False",
        "add_special_tokens=True",
        "test_papers.py::test_transcripts_are_tokenized_without_special_tokens",
    ),
    Mutation(
        "DiVA's template",
        "trainers/data/chats.py",
        '[{"type": "audio"} for _ in range(audios)]',
        '[{"type": "text", "text": "Speech: "}, *({"type": "audio"} for _ in range(audios))]',
        "test_papers.py::test_the_speech_stands_where_the_transcript_would_in_llama_3_s_chat",
    ),
    Mutation(
        "WER boundary",
        FILTERS,
        "float(rate) <= settings.max_wer",
        "float(rate) < settings.max_wer",
        "test_filters.py::test_a_word_error_rate_at_the_limit_is_kept",
    ),
    Mutation(
        "LAD's learning rate", f"{RECIPES}/lad.yaml", "learning_rate: 5.6e-5", "learning_rate: 5e-5", RECIPE_VALUES
    ),
    Mutation("LAD's padding", f"{RECIPES}/lad.yaml", "pad_to_window: true", "pad_to_window: false", RECIPE_VALUES),
    Mutation("DiVA's warm-up", f"{RECIPES}/diva.yaml", "warmup_steps: 0.01", "warmup_steps: 400", RECIPE_VALUES),
    Mutation(
        "DiVA's batch",
        f"{RECIPES}/diva.yaml",
        "per_device_train_batch_size: 32",
        "per_device_train_batch_size: 24",
        RECIPE_VALUES,
    ),
    Mutation("DiVA's queries", CONNECTORS, '"queries": 448', '"queries": 256', PRESETS),
    # BLOOMZMMS
    Mutation("CTC blank of the preset", CONNECTORS, '"ctc_blank": 0', '"ctc_blank": 3', PRESETS),
    Mutation(
        "CTC blank in the loss",
        "trainers/alignment_trainer.py",
        "sizes, model.model.ctc_blank)",
        "sizes, model.config.text_config.pad_token_id)",
        "test_papers.py::test_the_blank_of_ctc_is_the_connector_s",
    ),
    Mutation(
        "CTC weight",
        "trainers/alignment_config.py",
        "ctc_weight: float = field(default=0.8",
        "ctc_weight: float = field(default=1.0",
        WEIGHTS,
    ),
    Mutation(
        "channels of the front",
        CONNECTORS,
        "self.hidden_size if self.channels is None",
        "64 if self.channels is None",
        "test_connectors.py::test_presets_have_the_sizes_of_their_papers",
    ),
    Mutation(
        "utterance norm",
        CONFORMER,
        "zero_past(values - mean, lengths)",
        "zero_past((values - mean) / (values.std() + 1e-5), lengths)",
        "test_connectors.py::test_utterance_norm_takes_the_mean_of_valid_frames_and_leaves_the_variance",
    ),
    Mutation(
        "language CTC's adaptor",
        CONFORMER,
        ".repeat_interleave(2, dim=1)",
        ".repeat(1, 2, 1)",
        "test_connectors.py::test_the_conformer_is_its_parts_in_order",
    ),
    Mutation(
        "rounds of the cap",
        FILTERS,
        "sorted(positions, key=rounds.__getitem__)",
        "positions",
        "test_filters.py::test_the_cap_goes_in_rounds_over_the_sentences",
    ),
    Mutation(
        "cap boundary",
        FILTERS,
        '["duration"] > 3600',
        '["duration"] >= 3600',
        "test_filters.py::test_the_cap_is_met_and_never_passed",
    ),
    Mutation(
        "languages as numbers",
        FILTERS,
        "else str(part)",
        "else part",
        "test_filters.py::test_the_cap_counts_languages_that_are_numbers",
    ),
    Mutation(
        "speech in a template",
        CHATS,
        '{"type": "text", "text": prefix}',
        '{"type": "text", "text": prefix + "\\n" * bool(prefix)}',
        "test_processor_chats.py::test_an_instruction_may_say_where_the_speech_stands",
    ),
    Mutation(
        "template and target",
        "processing_speechllm/chat_format.py",
        "('' if message",
        "('\\\\n' if message",
        "test_processor_chats.py::test_an_instruction_may_say_where_the_speech_stands",
    ),
    Mutation(
        "MI count",
        "trainers/targets/config.py",
        '2 if self.target_set in ("MI", "TMI")',
        '3 if self.target_set in ("MI", "TMI")',
        "test_papers.py::test_two_templates_are_asked_of_every_utterance",
    ),
    Mutation(
        "share of translations",
        "trainers/targets/prompts.py",
        "rng.choices(open_tasks, shares if any(shares) else None)",
        "rng.choices(open_tasks)",
        "test_prompts.py::test_weights_give_the_packaged_templates_the_authors_share_of_translations",
    ),
    Mutation("encoder", f"{RECIPES}/bloomzmms-1.yaml", "facebook/mms-1b-all", "facebook/mms-1b", RECIPE_VALUES),
    Mutation("weight decay", f"{RECIPES}/bloomzmms-2.yaml", "weight_decay: 1e-6", "weight_decay: 0.0", RECIPE_VALUES),
    Mutation("patience", f"{RECIPES}/bloomzmms-1.yaml", "patience: 3", "patience: 6", RECIPE_VALUES),
    Mutation("8 bits", f"{RECIPES}/bloomzmms-2.yaml", "quantization: 8bit", "quantization: 4bit", RECIPE_VALUES),
    # MTBI, BLSP, Ultravox
    Mutation(
        "interleaving share",
        "trainers/data/interleaving.py",
        "int(words * probability + rng.random())",
        "int(words * probability)",
        "test_interleaving.py::test_the_expected_share_of_words_is_text",
    ),
    Mutation(
        "interleaved utterances",
        "trainers/data/interleaving.py",
        "rng.random() >= probability",
        "rng.random() >= probability / 2",
        "test_interleaving.py::test_utterances_are_text_with_the_given_probability",
    ),
    Mutation(
        "BLSP's prompt", f"{RECIPES}/blsp-targets.yaml", "less than 40 words", "fewer than 40 words", RECIPE_VALUES
    ),
    Mutation(
        "BLSP's length", f"{RECIPES}/blsp-targets.yaml", "max_new_tokens: 64", "max_new_tokens: 128", RECIPE_VALUES
    ),
    Mutation("BLSP's weight decay", f"{RECIPES}/blsp.yaml", "weight_decay: 0.05", "weight_decay: 0.0", RECIPE_VALUES),
    Mutation(
        "end token",
        "trainers/speech_trainer.py",
        "ends = last_places(predicting)[predicting]",
        "ends = predicting[predicting]",
        "test_papers.py::test_the_end_token_has_a_divergence_of_its_own",
    ),
    Mutation("temperature", f"{RECIPES}/ultravox.yaml", "temperature: 2.0", "temperature: 1.0", RECIPE_VALUES),
]


def copied(folder: Path) -> Path:
    """The repository's files, those that git does not ignore, in a folder of their own."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    for name in listed.stdout.decode().split("\0"):
        if name and (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    return folder


def outcome(mutation: Mutation, folder: Path) -> str:
    """`fails` as it should, or what is wrong."""
    file = folder / mutation.file
    whole = file.read_text(encoding="utf-8")
    if mutation.text not in whole:
        return f"the text is not in {mutation.file}: {mutation.text}"
    file.write_text(whole.replace(mutation.text, mutation.broken), encoding="utf-8")
    try:
        command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", f"tests/{mutation.test}"]
        environment = {**os.environ, "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
        run = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    finally:
        file.write_text(whole, encoding="utf-8")
    if run.returncode == 1:
        return "fails"
    return "PASSES" if run.returncode == 0 else f"did not run (status {run.returncode}): {run.stdout[-500:]}"


def main(words: list[str]) -> int:
    chosen = [m for m in MUTATIONS if not words or any(word.lower() in m.name.lower() for word in words)]
    wrong = 0
    with tempfile.TemporaryDirectory() as name:
        folder = copied(Path(name))
        for mutation in chosen:
            found = outcome(mutation, folder)
            wrong += found != "fails"
            print(f"{mutation.name}: {mutation.test} {found}", flush=True)
    print(f"{len(chosen) - wrong} of {len(chosen)} breaks are seen")
    return int(wrong > 0 or not chosen)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
