"""The three trainers: what they minimise, what they leave alone, and that splitting a step changes nothing."""

import copy
import json

import pytest
import torch
from conftest import name_parents, text_config
from datasets import Dataset
from factories_training import LANGUAGES, tiny_parts, tone_rows
from test_text_only import FAMILIES
from torch.nn import functional as F
from transformers import AutoModelForCausalLM

from modeling_speechllm import SpeechLLMForConditionalGeneration
from modeling_speechllm.query_bank import QueryBank
from trainers import (
    SpeechAlignmentConfig,
    SpeechAlignmentTrainer,
    SpeechDistillationConfig,
    SpeechDistillationTrainer,
    SpeechImitationConfig,
    SpeechImitationTrainer,
)
from trainers.checkpoints.lora import lora_config
from trainers.data.loaders import count_tokens

pytestmark = pytest.mark.slow

BANK = {
    "type": "whisper_qformer",
    "queries": 12,
    "decoder_layers": 1,
    "heads": 2,
    "languages": LANGUAGES,
    "gate": "attention",
    "gate_size": 8,
}
CONFORMER = {
    "type": "conformer_ctc",
    "layers": None,
    "reduced_size": 8,
    "channels": 2,
    "hidden_size": 16,
    "blocks": 2,
    "heads": 2,
    "ffn_size": 32,
    "gating_size": 16,
    "kernel": 3,
    "languages": LANGUAGES,
    "language_block": 1,
    "dropout": 0.0,
}
TRAINERS = {
    "alignment": (SpeechAlignmentTrainer, SpeechAlignmentConfig, None),
    "alignment-language": (SpeechAlignmentTrainer, SpeechAlignmentConfig, CONFORMER),
    "imitation": (SpeechImitationTrainer, SpeechImitationConfig, None),
    "imitation-divergence": (SpeechImitationTrainer, SpeechImitationConfig, None),
    "distillation": (SpeechDistillationTrainer, SpeechDistillationConfig, BANK),
    "distillation-response": (SpeechDistillationTrainer, SpeechDistillationConfig, None),
}
SETTINGS = {
    "imitation-divergence": {"divergence_weight": 0.5, "temperature": 2.0},
    "distillation-response": {"response_weight": 1.0, "divergence": "reverse"},
}


def build(kind, folder, rows=None, model=None, processor=None, peft=None, eval_rows=None, **settings):
    trainer_class, config_class, connector = TRAINERS[kind]
    if model is None:
        model, processor = tiny_parts(connector)
    rows = tone_rows(answered=kind.startswith(("imitation", "distillation-response"))) if rows is None else rows
    settings = {
        **{"max_steps": 4, "logging_steps": 1, "learning_rate": 1e-2, "per_device_train_batch_size": 4},
        **{"use_cpu": True, "disable_tqdm": True, "save_strategy": "no", "gradient_checkpointing": False},
        **{"lr_scheduler_type": "constant", "teacher_forcing": False} | SETTINGS.get(kind, {}) | settings,
    }
    if not kind.startswith("distillation"):
        settings.pop("teacher_forcing")
    args = config_class(str(folder), **settings)
    return trainer_class(
        model, args, train_dataset=rows, eval_dataset=eval_rows, processing_class=processor, peft_config=peft
    )


def logged(trainer, name="loss"):
    return [entry[name] for entry in trainer.state.log_history if name in entry]


def test_an_evaluation_of_which_ctc_can_place_nothing_is_no_perfect_one(tmp_path):
    far_too_long = tone_rows(text=[" ".join(["what is said here"] * 50)] * 8)
    trainer = build("alignment", tmp_path, eval_rows=far_too_long)
    with pytest.raises(ValueError, match="None of the transcripts .* can be placed by CTC"):
        trainer.evaluate()
    mixed = tone_rows(text=[" ".join(["what is said here"] * 50)] * 7 + ["a"])
    metrics = build("alignment", tmp_path / "mixed", eval_rows=mixed).evaluate()
    assert metrics["eval_infeasible"] == pytest.approx(7 / 8) and metrics["eval_loss"] > 0


@pytest.mark.parametrize("kind", TRAINERS)
def test_a_trainer_learns_the_connector_and_leaves_the_rest(kind, tmp_path):
    trainer = build(kind, tmp_path, max_steps=12)
    before = {name: parameter.detach().clone() for name, parameter in trainer.model.named_parameters()}
    trainer.train()
    losses = logged(trainer)
    assert losses[-1] < losses[0]
    for name, parameter in trainer.model.named_parameters():
        if "multi_modal_projector" not in name:
            assert torch.equal(parameter, before[name]), name
    assert any(not torch.equal(p, before[n]) for n, p in trainer.model.named_parameters())


@pytest.mark.parametrize("kind", TRAINERS)
@pytest.mark.parametrize("split", [(8, 1), (2, 4), (1, 8)])
def test_the_curve_does_not_depend_on_how_a_step_is_split(kind, split, tmp_path):
    size, accumulation = split
    reference = build(kind, tmp_path / "a", per_device_train_batch_size=8, max_steps=3)
    reference.train()
    trainer = build(
        kind,
        tmp_path / "b",
        per_device_train_batch_size=size,
        gradient_accumulation_steps=accumulation,
        max_steps=3,
    )
    trainer.train()
    for name in ("loss", "grad_norm"):
        assert logged(trainer, name) == pytest.approx(logged(reference, name), rel=2e-4), name


@pytest.mark.parametrize("family", FAMILIES)
def test_the_trained_loss_is_the_model_s_own_for_every_llm_family(family, tmp_path):
    """TRL's fused head would leave out logit scales and soft caps."""
    _, processor = tiny_parts()
    text = copy.deepcopy(FAMILIES[family])
    text.vocab_size, text.max_position_embeddings = len(processor.tokenizer), 128
    model, processor = tiny_parts(text=text)
    rows = tone_rows(4, answered=True)
    trainer = build("imitation", tmp_path, rows, model, processor, max_steps=1)
    trainer.train()
    model.eval()
    batch = trainer.data_collator([row | {"draw": (0, index)} for index, row in enumerate(rows)])
    names = ("input_ids", "attention_mask", "labels", "input_features", "input_features_mask")
    fresh = build("imitation", tmp_path, rows, model, processor, max_steps=1)
    terms = fresh.objective(model, batch)
    own = model(**{name: batch[name] for name in names}).loss
    ours = terms["cross_entropy"].total / batch["counts"]["answer_tokens"]
    torch.testing.assert_close(ours, own, rtol=1e-5, atol=1e-5)


def test_the_teacher_is_the_llm_alone_reading_the_transcript(tmp_path):
    trainer = build("imitation-divergence", tmp_path)
    rows = [row | {"draw": (0, index)} for index, row in enumerate(trainer.train_dataset)][:2]
    batch = trainer.data_collator(rows)
    hidden = trainer.teacher_hidden(trainer.model, batch)
    chats = [
        [{"role": "user", "content": f"{row['text']}\nwhat is said here"}, {"role": "assistant", "content": answer}]
        for row in rows
        for answer in [row["messages"][1]["content"][0]["text"]]
    ]
    tokenizer = trainer.processing_class.tokenizer
    for chat, states, size in zip(chats, hidden, batch["teacher_attention_mask"].sum(-1), strict=True):
        ids = tokenizer.apply_chat_template(chat, tokenize=True, return_dict=True, return_tensors="pt")["input_ids"]
        assert ids.shape[1] == size
        alone = trainer.model.model.language_model(input_ids=ids).last_hidden_state[0]
        torch.testing.assert_close(states[:size], alone, rtol=1e-4, atol=1e-5)


def test_distillation_compares_the_last_prompt_positions(tmp_path):
    trainer = build("distillation", tmp_path)
    rows = [row | {"draw": (0, index)} for index, row in enumerate(trainer.train_dataset)][:3]
    trainer.model.eval()
    with torch.no_grad():
        together = trainer.objective(trainer.model, trainer.data_collator(rows))
        alone = [trainer.objective(trainer.model, trainer.data_collator([row])) for row in rows]
    for name in ("input", "output", "language"):
        torch.testing.assert_close(
            together[name].total, sum(terms[name].total for terms in alone), rtol=1e-4, atol=1e-4
        )


def test_teacher_forcing_follows_the_schedule(tmp_path):
    trainer = build("distillation", tmp_path, teacher_forcing=True, max_steps=4, per_device_train_batch_size=8)
    seen = []
    bank = next(module for module in trainer.model.modules() if isinstance(module, QueryBank))
    forward = trainer.objective

    def spy(model, batch):
        seen.append(bank.teacher_forcing)
        return forward(model, batch)

    trainer.objective = spy
    trainer.train()
    assert seen == pytest.approx([1.0, 0.5, 0.0, 0.0], abs=1e-6)


def test_evaluation_is_a_mean_over_all_items_however_batched(tmp_path):
    results = []
    for size in (1, 3, 8):
        trainer = build("imitation", tmp_path, eval_rows=tone_rows(answered=True), per_device_eval_batch_size=size)
        results.append(trainer.evaluate())
    for result in results[1:]:
        for name in ("eval_loss", "eval_cross_entropy", "eval_token_accuracy"):
            assert result[name] == pytest.approx(results[0][name], rel=1e-5)


def test_evaluation_does_not_tell_the_gate_the_language(tmp_path):
    trainer = build("distillation", tmp_path, eval_rows=tone_rows())
    right = trainer.evaluate()
    wrong = trainer.evaluate(tone_rows(language=["de"] * 8))
    assert right["eval_output"] == pytest.approx(wrong["eval_output"])
    assert right["eval_language"] != pytest.approx(wrong["eval_language"])


def test_reports_tell_terms_accuracies_and_speed(tmp_path):
    trainer = build("distillation", tmp_path, max_steps=1)
    trainer.train()
    entry = trainer.state.log_history[0]
    for name in ("input", "output", "language", "language_accuracy", "tokens_per_second", "audio_seconds_per_second"):
        assert entry[name] >= 0, name
    assert entry["loss"] == pytest.approx(entry["input"] + entry["output"] + entry["language"], rel=1e-4)


@pytest.mark.parametrize("groups", [["llm"], ["encoder"], ["connector"], ["encoder", "llm"]])
def test_lora_on_any_group_trains_adapters_and_whole_groups_and_reloads(groups, tmp_path):
    from peft import PeftModel

    torch.manual_seed(0)
    model, processor = tiny_parts()
    peft = lora_config(model, groups, rank=2)
    settings = {
        "save_strategy": "steps",
        "save_steps": 4,
        "train_groups": ["connector"] if "connector" not in groups else [],
    }
    trainer = build("imitation", tmp_path, None, model, processor, peft, **settings)
    names = [name for name, parameter in trainer.model.named_parameters() if parameter.requires_grad]
    assert any("lora_" in name for name in names)
    assert all("lora_" in name or "multi_modal_projector" in name for name in names)
    trainer.train()
    assert logged(trainer)[-1] < logged(trainer)[0]
    row = trainer.data_collator.for_evaluation()([trainer.train_dataset[0] | {"draw": (0, 0)}])
    inputs = {name: row[name] for name in ("input_ids", "attention_mask", "input_features", "input_features_mask")}
    trainer.model.eval()
    expected = trainer.model(**inputs).logits
    base, _ = tiny_parts()
    again = PeftModel.from_pretrained(base, tmp_path / "checkpoint-4").eval()
    torch.testing.assert_close(again(**inputs).logits, expected, rtol=1e-5, atol=1e-5)


def test_the_teacher_reads_without_the_adapters(tmp_path):
    torch.manual_seed(0)
    model, processor = tiny_parts()
    batch_rows = tone_rows(2, answered=True)
    plain = build("imitation-divergence", tmp_path, batch_rows, model, processor)
    batch = plain.data_collator([row | {"draw": (0, index)} for index, row in enumerate(batch_rows)])
    expected = plain.teacher_hidden(model, batch)
    tuned = build(
        "imitation-divergence",
        tmp_path,
        batch_rows,
        model,
        processor,
        lora_config(model, ["llm"], rank=2),
        max_steps=3,
    )
    tuned.train()
    torch.testing.assert_close(tuned.teacher_hidden(tuned.speech_model, batch), expected, rtol=1e-5, atol=1e-5)


def test_text_only_rows_and_batches_are_trained_on(tmp_path):
    rows = [dict(row) for row in tone_rows(8, answered=True)]
    for row in rows[:6]:
        row["audio"] = None
        row["messages"] = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "world"}]
    for row in rows[6:]:
        row["messages"] = None
    trainer = build("imitation", tmp_path, max_steps=8, per_device_train_batch_size=1)
    trainer.train_dataset = rows  # Arrow wants one form of content
    collator = trainer.data_collator
    batch = collator([row | {"draw": (0, index)} for index, row in enumerate(rows[:2])])
    assert batch["dummy_audio"] and batch["counts"]["utterances"] == 0
    terms = trainer.objective(trainer.model, batch)
    (terms["cross_entropy"].total).backward()
    gradients = [p.grad for n, p in trainer.model.named_parameters() if p.requires_grad]
    assert all(gradient is not None and not gradient.any() for gradient in gradients)


def test_bad_rows_are_set_aside_and_counted_and_too_many_stop_the_run(tmp_path):
    rows = [dict(row) for row in tone_rows(8)]
    rows[2]["audio"] = {"bytes": b"no audio", "path": None}
    dataset = Dataset.from_list(rows)
    trainer = build("alignment", tmp_path / "a", dataset, max_bad_share=0.2, max_steps=2)
    trainer.train()
    assert sum(logged(trainer, "bad_rows")) == 1
    assert [row["id"] for row in trainer.bad_rows.read()] == ["row-2"]
    good = build("alignment", tmp_path / "c", Dataset.from_list(rows[:2] + rows[3:]), max_steps=1)
    assert good.train().global_step == 1
    strict = build("alignment", tmp_path / "b", dataset, max_bad_share=0.05, max_steps=200)
    with pytest.raises(RuntimeError, match="cannot be used"):
        strict.train()


def test_a_loss_that_is_not_finite_stops_the_run_with_the_rows(tmp_path):
    trainer = build("alignment", tmp_path)
    with torch.no_grad():
        next(trainer.model.model.multi_modal_projector.parameters()).fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="update 1 .*row-"):
        trainer.train()


def test_frozen_groups_run_without_dropout(tmp_path):
    model, processor = tiny_parts(text=text_config(vocab_size=305, pad_token_id=300, attention_dropout=0.5))
    trainer = build("imitation", tmp_path, None, model, processor, max_steps=1)
    model.train()
    trainer._rest_frozen(model)
    assert not model.model.language_model.training and not model.model.audio_tower.training
    assert model.model.multi_modal_projector.training


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"train_groups": ["head"]}, "no group head"),
        ({"max_length": 100}, "max_length"),
        ({"batch_seconds": 10.0, "batch_tokens": 10}, "Choose one budget"),
        ({"remove_unused_columns": True}, "would drop the audio"),
        ({"average_best": 2}, "eval_strategy"),
        ({"average_best": 1}, "at least 2"),
        ({"frames_cache": "x", "augmentation": {"speed_factors": [0.9]}}, "Drop one"),
        ({"divergence": "l2"}, "forward, reverse, jsd"),
        ({"span_probability": 2.0}, "from 0 to 1"),
        ({"cross_entropy_weight": 0.0}, "nothing would be learned"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        SpeechImitationConfig(str(tmp_path), use_cpu=True, **settings)


def test_what_is_no_speechllm_is_refused(tmp_path):
    llm = AutoModelForCausalLM.from_config(text_config())
    with pytest.raises(TypeError, match="LlamaForCausalLM"):
        SpeechImitationTrainer(llm, SpeechImitationConfig(str(tmp_path), use_cpu=True), train_dataset=tone_rows(2))


def test_a_trained_llm_cannot_be_its_own_teacher(tmp_path):
    with pytest.raises(ValueError, match="LoRA"):
        build("distillation", tmp_path, train_groups=["connector", "llm"])


def test_interleaved_words_leave_the_answer_and_shorten_the_audio(tmp_path):
    words = [
        [{"start": 0.1 * i, "end": 0.1 * i + 0.1, "word": word} for i, word in enumerate(row["text"].split())]
        for row in tone_rows()
    ]
    rows = tone_rows(answered=True, words=words)
    plain = build("imitation", tmp_path, rows)
    mixed = build("imitation", tmp_path, rows, span_probability=0.5, span_words=[1, 1])
    drawn = [row | {"draw": (0, index)} for index, row in enumerate(rows)]
    heard, both = plain.data_collator(drawn), mixed.data_collator(drawn)
    assert both["audio_keep"].sum() < heard["input_ids"].eq(plain.model.config.audio_token_id).sum()
    for left, right in zip(heard["labels"], both["labels"], strict=True):
        assert left[left != -100].tolist() == right[right != -100].tolist()
    assert torch.isfinite(mixed.objective(mixed.model, both)["cross_entropy"].total)
    mixed.train()
    off = build("imitation", tmp_path, rows, span_probability=0.0).data_collator(drawn)
    assert torch.equal(off["input_ids"], heard["input_ids"])


def test_of_several_utterances_some_stand_as_text(tmp_path):
    single = tone_rows(4)
    content = [{"type": "audio", "text": None}, {"type": "audio", "text": None}, {"type": "text", "text": "what"}]
    rows = Dataset.from_list(
        [
            {
                "id": str(i),
                "audio": [single[i]["audio"], single[i + 1]["audio"]],
                "text": [single[i]["text"], single[i + 1]["text"]],
                "language": ["en", "de"],
                "messages": [
                    {"role": "user", "content": content},
                    {"role": "assistant", "content": [{"type": "text", "text": "hello"}]},
                ],
            }
            for i in range(3)
        ]
    )
    trainer = build("imitation", tmp_path, rows, text_probability=1.0, max_steps=2, per_device_train_batch_size=3)
    batch = trainer.data_collator([row | {"draw": (0, index)} for index, row in enumerate(rows)])
    assert batch["audio_keep"].any(-1).tolist().count(True) == 3  # one of two is heard
    trainer.train()
    assert logged(trainer)[-1] > 0


def test_checkpoints_hold_the_trained_part_where_the_parents_are_known(tmp_path):
    model, processor = tiny_parts()
    name_parents(model)
    trainer = build("imitation", tmp_path, None, model, processor, save_strategy="steps", save_steps=2)
    trainer.train()
    folder = tmp_path / "checkpoint-2"
    assert (folder / "trained.safetensors").is_file() and not (folder / "model.safetensors").exists()
    assert json.loads((folder / "config.json").read_text())["trained_groups"] == ["connector"]
    whole, processor = tiny_parts()
    trainer = build("imitation", tmp_path / "whole", None, whole, processor, save_strategy="steps", save_steps=2)
    trainer.train()
    again = SpeechLLMForConditionalGeneration.from_pretrained(tmp_path / "whole" / "checkpoint-4")
    for (name, left), right in zip(again.named_parameters(), whole.parameters(), strict=True):
        assert torch.equal(left, right), name
    assert not list((tmp_path / "whole").rglob("training_args.bin"))


def test_cross_entropy_is_over_the_answer_alone(tmp_path):
    trainer = build("imitation", tmp_path)
    rows = [row | {"draw": (0, index)} for index, row in enumerate(trainer.train_dataset)]
    batch = trainer.data_collator(rows)
    tokenizer = trainer.processing_class.tokenizer
    for row, labels in zip(rows, batch["labels"], strict=True):
        answer = tokenizer.decode(labels[labels != -100])
        assert answer == f"{row['text']} {row['text']}<|im_end|>"
    model = trainer.model
    names = ("input_ids", "attention_mask", "input_features", "input_features_mask")
    logits = model(**{name: batch[name] for name in names}).logits
    expected = F.cross_entropy(logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten(), reduction="sum")
    torch.testing.assert_close(trainer.objective(model, batch)["cross_entropy"].total, expected, rtol=1e-4, atol=1e-4)


def test_an_answer_cut_at_its_limit_is_not_taught_to_end(tmp_path):
    rows = tone_rows(answered=True, finish_reason=["length", "stop"] * 4)
    trainer = build("imitation-divergence", tmp_path, rows)
    batch = trainer.data_collator([row | {"draw": (0, index)} for index, row in enumerate(rows)])
    tokenizer = trainer.processing_class.tokenizer
    for name in ("labels", "teacher_labels"):
        ends = [tokenizer.decode(labels[labels != -100]).endswith("<|im_end|>") for labels in batch[name]]
        assert ends == [False, True] * 4


def test_batches_keep_to_a_budget_of_tokens(tmp_path):
    rows = tone_rows(answered=True)
    trainer = build("imitation", tmp_path, rows, batch_tokens=120, max_steps=4)
    processor = trainer.processing_class
    sizes = []
    for batch in trainer.get_train_dataloader():
        chosen = [row for row in rows if row["id"] in batch["ids"]]
        sizes.append(len(chosen))
        assert max(count_tokens(row, processor) for row in chosen) * len(chosen) <= 120
    assert sum(sizes) == len(rows) and max(sizes) > 1
    expected = processor.audio_token_count(8000) + len(
        processor.tokenizer("hello world \nwhat is said here hello world hello world")["input_ids"]
    )
    assert abs(count_tokens(rows[0], processor) - expected) <= 2
    trainer.train()
    stream = build("imitation", tmp_path, rows.to_iterable_dataset(), batch_tokens=120, max_steps=4, buffer_size=8)
    assert stream.train().global_step == 4


def test_a_batch_that_a_resumed_run_has_had_costs_nothing(tmp_path):
    assert build("imitation", tmp_path).data_collator([]) == {}


def test_the_teacher_reads_only_where_a_loss_compares_with_it(tmp_path):
    trainer = build("distillation", tmp_path, output_weight=0.0, max_steps=8)
    batch = trainer.data_collator([trainer.train_dataset[0] | {"draw": (0, 0)}])
    assert "teacher_input_ids" not in batch
    trainer.train()
    assert logged(trainer)[-1] < logged(trainer)[0]
    assert "teacher_input_ids" in build("distillation", tmp_path).data_collator(
        [trainer.train_dataset[0] | {"draw": (0, 0)}]
    )
