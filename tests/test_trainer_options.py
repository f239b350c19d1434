"""What TRL's and transformers' trainers take: acted on here, or refused by name."""

import numpy as np
import pytest
import torch
from datasets import Dataset
from factories_training import tiny_parts, tone_rows
from peft import LoraConfig, PeftModel, PromptTuningConfig, get_peft_model
from test_trainers import TRAINERS, build, logged
from torch.nn import functional as F
from trl import SFTConfig

from trainers import SpeechImitationConfig, SpeechImitationTrainer
from trainers.checkpoints.lora import lora_config
from trainers.data.loaders import build_loader
from trainers.imitation_trainer import ImitationCollator
from trainers.speech_config import NOT_ACTED_ON

OTHER = {
    "label_smoothing_factor": 0.1,
    "loss_type": "dft",
    "pad_to_multiple_of": 8,
    "router_aux_loss_coef": 0.1,
    "neftune_noise_alpha": 5.0,
    "dataset_num_proc": 2,
    "average_tokens_across_devices": False,
    "label_names": ["labels"],
    "model_init_kwargs": {"dtype": "auto"},
    "liger_kernel_config": {"rope": True},
}


@pytest.mark.parametrize("name", NOT_ACTED_ON)
def test_an_option_without_effect_is_refused_by_name(name, tmp_path):
    default = SpeechImitationConfig.__dataclass_fields__[name].default
    value = OTHER.get(name, not default if isinstance(default, bool) else "other")
    with pytest.raises(ValueError, match=f"^{name}=.* has no effect on a speech trainer. [A-Z]"):
        SpeechImitationConfig(str(tmp_path), use_cpu=True, **{name: value})


@pytest.mark.parametrize(
    ("settings", "finding"),
    [
        ({"train_sampling_strategy": "batch_rebalance"}, "batch_seconds or batch_tokens"),
        ({"train_sampling_strategy": "sequential", "batch_seconds": 9.0}, "sort rows by length"),
        ({"dataset_kwargs": {"add_special_tokens": False}}, "add_special_tokens has no effect"),
        ({"accelerator_config": {"split_batches": True}}, "dealt to processes here"),
    ],
)
def test_options_that_would_be_half_acted_on_are_refused(settings, finding, tmp_path):
    with pytest.raises(ValueError, match=finding):
        SpeechImitationConfig(str(tmp_path), use_cpu=True, **settings)


def test_what_is_given_in_a_wrong_form_is_named(tmp_path):
    model, processor = tiny_parts()
    args = SpeechImitationConfig(str(tmp_path), use_cpu=True)
    rows = tone_rows(2, answered=True)

    def given(model=model, args=args, processing_class=processor, **others):
        return SpeechImitationTrainer(model, args, rows, processing_class=processing_class, **others)

    with pytest.raises(TypeError, match="SpeechImitationConfig, not a SFTConfig"):
        given(args=SFTConfig(str(tmp_path), use_cpu=True, bf16=False))
    with pytest.raises(TypeError, match="SpeechLLMProcessor as processing_class; none was given"):
        given(processing_class=None)
    with pytest.raises(TypeError, match="a TokenizersBackend was given|a PreTrainedTokenizerFast was given"):
        given(processing_class=processor.tokenizer)
    with pytest.raises(TypeError, match="not the name 'a/model'"):
        given(model="a/model")
    with pytest.raises(ValueError, match="does not act on formatting_func"):
        given(formatting_func=str)
    with pytest.raises(TypeError, match="is a ImitationCollator, not a function"):
        given(data_collator=lambda rows: rows)
    with pytest.raises(ValueError, match="PromptTuningConfig puts learned tokens"):
        given(peft_config=PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2))
    with pytest.raises(ValueError, match="^llm: in train_groups and under adapters too"):
        args = SpeechImitationConfig(str(tmp_path), use_cpu=True, train_groups=["connector", "llm"])
        given(args=args, peft_config=lora_config(model, ["llm"], rank=2))
    model, _ = tiny_parts()
    wrapped = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"]))
    with pytest.raises(TypeError, match="merge_and_unload"):
        given(model=wrapped)


def test_a_collator_of_the_trainer_s_own_kind_is_taken(tmp_path):
    class Shouting(ImitationCollator):
        def read(self, row):
            return super().read(row | {"text": row["text"].upper()})

    model, processor = tiny_parts()
    args = SpeechImitationConfig(str(tmp_path), use_cpu=True, max_steps=1, disable_tqdm=True)
    collator = Shouting(processor, args)
    trainer = SpeechImitationTrainer(model, args, tone_rows(4), processing_class=processor, data_collator=collator)
    batch = next(iter(trainer.get_train_dataloader()))
    assert processor.tokenizer.decode(batch["labels"][0][batch["labels"][0] >= 0])[:4].isupper()


def accuracy(found):
    """Of shifted logits against labels, the share that is right."""
    predicted, labels = found.predictions[:, :-1].argmax(-1), found.label_ids[:, 1:]
    return {"accuracy": float((predicted == labels)[labels != -100].mean())}


def test_compute_metrics_sees_logits_and_labels_of_all_rows(tmp_path):
    model, processor = tiny_parts()
    rows = tone_rows(7, answered=True)
    args = SpeechImitationConfig(str(tmp_path), use_cpu=True, per_device_eval_batch_size=3, disable_tqdm=True)
    trainer = SpeechImitationTrainer(
        model, args, rows, rows, processor, compute_metrics=accuracy, preprocess_logits_for_metrics=lambda x, _: x
    )
    found = trainer.evaluate()
    assert found["eval_accuracy"] == pytest.approx(found["eval_token_accuracy"], abs=1e-6)


@pytest.mark.parametrize("kind", TRAINERS)
def test_predict_gives_rows_in_order_and_their_loss(kind, tmp_path):
    rows = tone_rows(5, answered=kind.startswith(("imitation", "distillation-response")))
    trainer = build(kind, tmp_path, rows, eval_rows=rows, per_device_eval_batch_size=2)
    found = trainer.predict(rows)
    assert len(found.predictions) == len(found.label_ids) == 5
    assert found.metrics["test_loss"] == pytest.approx(trainer.evaluate()["eval_loss"], rel=1e-5)
    tokenizer = trainer.processing_class.tokenizer
    for row, labels in zip(rows, found.label_ids, strict=True):
        text = tokenizer.decode([token for token in labels if token != -100], skip_special_tokens=True)
        wanted = {"alignment": row["text"], "alignment-language": row["text"], "distillation": ""}
        assert text == wanted.get(kind, f"{row['text']} {row['text']}")


@pytest.mark.slow
def test_a_loss_of_the_user_s_is_minimised_however_a_step_is_split(tmp_path):
    def loss_func(outputs, labels, num_items_in_batch):
        logits = outputs.logits[:, :-1].flatten(0, 1)
        return F.cross_entropy(logits, labels[:, 1:].flatten(), reduction="sum") / num_items_in_batch

    def run(folder, **settings):
        model, processor = tiny_parts()
        base = {"use_cpu": True, "max_steps": 2, "logging_steps": 1, "learning_rate": 1e-2, "disable_tqdm": True}
        args = SpeechImitationConfig(str(tmp_path / folder), save_strategy="no", **base | settings)
        func = None if folder == "own" else loss_func
        rows = tone_rows(8, answered=True)
        trainer = SpeechImitationTrainer(model, args, rows, rows, processor, compute_loss_func=func)
        trainer.train()
        return [*logged(trainer), trainer.evaluate()["eval_loss"]]

    own = run("own", per_device_train_batch_size=8)
    assert run("whole", per_device_train_batch_size=8) == pytest.approx(own, rel=1e-5)
    split = run("split", per_device_train_batch_size=2, gradient_accumulation_steps=4)
    assert split == pytest.approx(own, rel=1e-4)
    with pytest.raises(ValueError, match="compute_loss_func is for SpeechImitationTrainer"):
        trainer_class, config_class, _ = TRAINERS["alignment"]
        model, processor = tiny_parts()
        args = config_class(str(tmp_path), use_cpu=True)
        trainer_class(model, args, tone_rows(2), processing_class=processor, compute_loss_func=loss_func)


def test_sequential_sampling_keeps_the_order(tmp_path):
    trainer = build("alignment", tmp_path, train_sampling_strategy="sequential", per_device_train_batch_size=3)
    for epoch in (0, 1):
        loader = trainer.get_train_dataloader()
        loader.set_epoch(epoch)
        assert [row for batch in loader for row in batch["ids"]] == [f"row-{number}" for number in range(8)]
    collator, args = trainer.data_collator, trainer.args
    both = [build_loader(tone_rows(8), collator, args, rank, 2, training=True) for rank in (0, 1)]
    seen = [[batch["ids"] for batch in loader] for loader in both]
    assert seen[0][0] + seen[1][0] == [f"row-{number}" for number in range(6)]
    five = [build_loader(tone_rows(5), collator, args, rank, 2, training=False, in_order=True) for rank in (0, 1)]
    dealt = zip(*([batch["ids"] for batch in loader] for loader in five), strict=True)
    assert [row for ids in dealt for part in ids for row in part] == [f"row-{number}" for number in range(5)]
    with pytest.raises(ValueError, match="A stream is mixed"):
        trainer.train_dataset = tone_rows().to_iterable_dataset()
        trainer.get_train_dataloader()


@pytest.mark.slow
@pytest.mark.parametrize("tied", [False, True])
def test_the_llm_is_trained_in_full_beside_adapters_on_another_group(tied, tmp_path):
    from conftest import text_config

    _, processor = tiny_parts()
    text = text_config(
        vocab_size=len(processor.tokenizer), pad_token_id=processor.tokenizer.pad_token_id, tie_word_embeddings=tied
    )
    torch.manual_seed(0)
    model, processor = tiny_parts(text=text)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    settings = {"train_groups": ["llm"], "max_steps": 3, "save_strategy": "steps", "save_steps": 3}
    peft = lora_config(model, ["encoder"], rank=2)
    trainer = build("imitation", tmp_path, None, model, processor, peft, **settings)
    assert peft.modules_to_save is None  # what was given stays as it was
    trainer.train()
    assert logged(trainer)[-1] < logged(trainer)[0]
    row = trainer.data_collator.for_evaluation()([trainer.train_dataset[0] | {"draw": (0, 0)}])
    inputs = {name: row[name] for name in ("input_ids", "attention_mask", "input_features", "input_features_mask")}
    trainer.model.eval()
    expected = trainer.model(**inputs).logits
    base, _ = tiny_parts(text=text)
    again = PeftModel.from_pretrained(base, tmp_path / "checkpoint-3").eval()
    torch.testing.assert_close(again(**inputs).logits, expected, rtol=1e-5, atol=1e-5)
    merged = trainer.model.merge_and_unload()
    torch.testing.assert_close(merged(**inputs).logits, expected, rtol=1e-4, atol=1e-4)
    changed = {
        name.split(".")[1] for name, value in merged.state_dict().items() if not torch.equal(value, before[name])
    }
    assert {"language_model", "audio_tower"} <= changed and "multi_modal_projector" not in changed
    assert (merged.lm_head.weight is merged.get_input_embeddings().weight) == tied


@pytest.mark.parametrize("kind", TRAINERS)
def test_what_is_trained_of_a_half_precision_model_is_held_in_float32(kind, tmp_path):
    _, _, connector = TRAINERS[kind]
    model, processor = tiny_parts(connector)
    trainer = build(kind, tmp_path, None, model.to(torch.bfloat16), processor, learning_rate=1e-6, max_steps=2)
    before = {name: parameter.clone() for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert before and all(parameter.dtype == torch.float32 for parameter in before.values())
    assert next(model.model.language_model.parameters()).dtype == torch.bfloat16
    trainer.train()
    moved = [not torch.equal(model.get_parameter(name), value) for name, value in before.items()]
    assert np.mean(moved) > 0.9  # in bf16 a step of 1e-6 would be lost


@pytest.mark.parametrize("groups", [["encoder"], ["llm"]])
def test_any_group_of_a_half_precision_model_trains_in_float32(groups, tmp_path):
    model, processor = tiny_parts()
    model.to(torch.bfloat16)
    build("imitation", tmp_path, None, model, processor, train_groups=groups, max_steps=1).train()
    dtypes = {parameter.dtype for parameter in model.parameters() if parameter.requires_grad}
    assert dtypes == {torch.float32}


def test_bf16_simply_works_on_a_cpu(tmp_path):
    if torch.accelerator.is_available():
        assert not SpeechImitationConfig(str(tmp_path), bf16=True).use_cpu
        return
    args = SpeechImitationConfig(str(tmp_path), bf16=True, max_steps=1, disable_tqdm=True)
    assert args.use_cpu
    model, processor = tiny_parts()
    SpeechImitationTrainer(model, args, tone_rows(4), processing_class=processor).train()


def test_rows_without_an_id_go_by_their_number(tmp_path):
    rows = Dataset.from_list([{**row, "id": None} for row in tone_rows(2)])
    trainer = build("alignment", tmp_path, rows)
    assert trainer.data_collator([rows[1] | {"draw": (0, 1)}])["ids"] == ["1"]


@pytest.mark.parametrize(
    ("metric", "greater"), [("output", False), ("eval_divergence", False), ("loss", False), ("token_accuracy", True)]
)
def test_a_distance_is_the_better_the_lower_it_is(metric, greater, tmp_path):
    settings = {"use_cpu": True, "eval_strategy": "steps", "eval_steps": 1, "save_steps": 1}
    args = SpeechImitationConfig(str(tmp_path), load_best_model_at_end=True, metric_for_best_model=metric, **settings)
    assert args.greater_is_better is greater
    other = SpeechImitationConfig(str(tmp_path), metric_for_best_model=metric, greater_is_better=True, use_cpu=True)
    assert other.greater_is_better is True


@pytest.mark.parametrize("name", ["augmentation", "chat_template_kwargs"])
@pytest.mark.parametrize(
    ("given", "finding"), [("speed", "must be a mapping"), ('{"a": 1, "a": 2}', "stands twice"), ("{a}", "is no JSON")]
)
def test_a_mapping_that_is_none_is_named(name, given, finding, tmp_path):
    with pytest.raises(ValueError, match=f"^{name}.*{finding}"):
        SpeechImitationConfig(str(tmp_path), use_cpu=True, **{name: given})
