"""What the papers and their authors' code say, as docs/papers.md has it: values of recipes and presets, and the places
where a wrong token or position would not show in a loss."""

import pytest
import torch
from conftest import WAVEFORM, text_config, tiny_speechllm, whisper_config
from factories_processing import make_tokenizer
from factories_training import tiny_parts
from test_trainers import BANK, build
from torch.nn import functional as F
from transformers import LlamaForCausalLM, Wav2Vec2Config, Wav2Vec2ForCTC, WhisperFeatureExtractor, WhisperModel

from modeling_speechllm import SpeechLLMForConditionalGeneration
from modeling_speechllm.audio_encoders import load_encoder
from modeling_speechllm.configuration_connectors import connector_config
from modeling_speechllm.query_bank import QueryBank
from processing_speechllm import SpeechLLMProcessor
from trainers.commands.parsing import parse
from trainers.commands.run import CLASSES
from trainers.data.chats import IGNORED
from trainers.targets.config import TargetsConfig

REPEAT = "Repeat the sentence: {audio}. "
CONTINUE = "Continue the following text in a coherent and engaging style with less than 40 words. {audio}"
WHISPER = "openai/whisper-large-v3"
DISTILLED = {"train_groups": ["connector"], "input_weight": 1.0, "output_weight": 1.0, "response_weight": 0.0}
PAPERS = {  # recipe: its command, and what the paper (or the authors' code) says
    "bloomzmms-1": ("align", {
        "audio": "facebook/mms-1b-all", "text": "bigscience/bloomz-7b1", "train_groups": ["connector"],
        "ctc_weight": 0.8, "language_weight": 0.2, "learning_rate": 1e-4, "weight_decay": 1e-6, "warmup_steps": 25000,
        "lr_scheduler_type": "inverse_sqrt", "max_grad_norm": 5.0, "early_stopping_patience": 3,
        "num_train_epochs": 70, "max_seconds": 30, "max_hours_per_language": 25,
        "augmentation": {"speed_factors": [0.9, 1.0, 1.1]},
    }),
    "bloomzmms-targets": ("targets", {
        "target_set": "TMI", "prompts_per_row": 2, "fixed_prompt": REPEAT, "max_new_tokens": 128, "temperature": 0.0,
        "model": "bigscience/bloomz-7b1", "quantization": "8bit", "task_weights": {"template_translate": 95},
    }),
    "bloomzmms-2": ("imitate", {
        "train_groups": ["connector"], "quantization": "8bit", "target_weights": {"T": 1, "MI": 2},
        "transcription_instruction": REPEAT, "cross_entropy_weight": 1.0, "divergence_weight": 0.0,
        "learning_rate": 1e-4, "weight_decay": 1e-6, "warmup_steps": 10000, "lr_scheduler_type": "inverse_sqrt",
        "max_grad_norm": 5.0, "early_stopping_patience": 3, "average_best": 3, "num_train_epochs": 70,
        "batch_seconds": 37.5, "gradient_accumulation_steps": 2, "max_seconds": 30,
        "augmentation": {"speed_factors": [0.9, 1.0, 1.1]},
    }),
    "lad": ("distill", DISTILLED | {
        "audio": WHISPER, "text": "aisingapore/Llama-SEA-LION-v3-8B-IT", "pad_to_window": True, "max_wer": 0.1,
        "input_mean": "utterances", "teacher_forcing": True, "instruction": None, "learning_rate": 5.6e-5,
        "adam_beta1": 0.9, "adam_beta2": 0.999, "warmup_steps": 400, "lr_scheduler_type": "cosine",
        "early_stopping_patience": 6, "eval_steps": 2000, "accelerate_config": "zero2",
        "per_device_train_batch_size": 24, "gradient_accumulation_steps": 3,
    }),
    "diva": ("distill", DISTILLED | {
        "audio": WHISPER, "text": "meta-llama/Meta-Llama-3-8B-Instruct", "pad_to_window": True, "input_mean": "tokens",
        "instruction": None, "learning_rate": 5e-5, "weight_decay": 0.1, "warmup_steps": 0.01, "max_steps": 4300,
        "per_device_train_batch_size": 32, "gradient_accumulation_steps": 4,
    }),
    "blsp": ("imitate", {
        "audio": "openai/whisper-small", "text": "meta-llama/Llama-2-7b-hf", "connector": "blsp",
        "train_groups": ["connector"], "cross_entropy_weight": 1.0, "divergence_weight": 0.0, "learning_rate": 5e-5,
        "weight_decay": 0.05, "warmup_steps": 1000, "lr_scheduler_type": "linear", "num_train_epochs": 1,
        "per_device_train_batch_size": 8, "gradient_accumulation_steps": 24, "max_grad_norm": 1.0,
    }),
    "blsp-targets": ("targets", {
        "target_set": "continuation", "fixed_prompt": CONTINUE, "max_new_tokens": 64, "temperature": 0.0,
        "prompts_per_row": 1,
    }),
    "ultravox": ("imitate", {
        "audio": "openai/whisper-large-v3-turbo", "text": "meta-llama/Llama-3.1-8B-Instruct", "connector": "ultravox",
        "cross_entropy_weight": 0.0, "divergence_weight": 0.25, "end_token_weight": 0.25, "divergence": "forward",
        "temperature": 2.0, "lora_groups": ["encoder"], "lora_modules": ["k_proj", "q_proj"], "lora_rank": 8,
        "lora_alpha": 8, "learning_rate": 1e-3, "weight_decay": 0.0, "warmup_steps": 1000, "num_train_epochs": 2,
        "lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": {"min_lr_rate": 0.1},
        "per_device_train_batch_size": 12, "gradient_accumulation_steps": 2,
    }),
    "mtbi": ("imitate", {
        "train_groups": ["connector"], "cross_entropy_weight": 1.0, "divergence_weight": 0.0, "span_probability": 0.3,
    }),
}  # fmt: skip
CONNECTORS = {
    "bloomzmms": {
        **{"layers": "all", "reduced_size": 128, "channels": 1024, "hidden_size": 1024, "blocks": 17, "heads": 8},
        **{"ffn_size": 2048, "gating_size": 8192, "kernel": 31, "dropout": 0.1, "languages": 139, "language_block": 3},
        "ctc_blank": 0,
    },
    "lad-hard": {"queries": 256, "selection": "hard", "languages": ["en", "vi", "id", "zh", "es", "de"]},
    "lad-soft": {"queries": 256, "selection": "soft", "languages": ["en", "vi", "id", "zh", "es", "de"]},
    "diva": {"queries": 448, "languages": None, "gate": None},
    "blsp": {"convolutions": 3, "kernel": 5, "stride": 2, "bottleneck_size": 512},
    "ultravox": {"stride": 8, "activation": "swiglu", "hidden_size": 2048, "inner_norm": True},
    "salmonn": {"width": 17, "queries": 1},
    "granite": {"width": 15, "queries": 3},
}
LLAMA3 = (
    "{{ bos_token }}{% for message in messages %}<|start_header_id|>{{ message['role'] }}<|end_header_id|>\n\n"
    "{{ message['content'] | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)


@pytest.mark.parametrize("recipe", PAPERS)
def test_recipes_have_the_papers_values(recipe):
    command, expected = PAPERS[recipe]
    found = {}
    for group in parse(CLASSES[command], ["--config", recipe], "test"):
        found |= vars(group)
    assert {name: found[name] for name in expected} == expected


@pytest.mark.parametrize("preset", CONNECTORS)
def test_presets_have_the_papers_values(preset):
    settings = vars(connector_config(preset))
    assert {name: settings[name] for name in CONNECTORS[preset]} == CONNECTORS[preset]


@pytest.mark.parametrize("recipe", ["bloomzmms-1", "lad", "diva"])
def test_connectors_of_recipes_are_the_presets(recipe):
    _, script, _ = parse(CLASSES[PAPERS[recipe][0]], ["--config", recipe], "test")
    preset = {"bloomzmms-1": "bloomzmms", "lad": "lad-hard"}.get(recipe, recipe)
    settings = {name: value for name, value in script.connector.items() if name != "decoder"}
    assert connector_config(settings) == connector_config(preset)


def test_two_templates_are_asked_of_every_utterance():
    for target_set, count in (("MI", 2), ("TMI", 2), ("BI", 1), ("T", 1)):
        assert TargetsConfig("out", target_set=target_set, model="llm").prompts_per_row == count


def test_queries_start_at_the_papers_deviation():
    encoder, llm = WhisperModel(whisper_config()), LlamaForCausalLM(text_config(initializer_range=0.5))
    connector = BANK | {"queries": 64, "hidden_size": 64}
    model = SpeechLLMForConditionalGeneration.from_parts(encoder.encoder, llm, connector, audio_token_id=64)
    queries = next(module for module in model.modules() if isinstance(module, QueryBank)).queries
    assert queries.shape == (2, 64, 64)
    assert queries.std().item() == pytest.approx(0.02, rel=0.04)  # 8,192 draws: four deviations
    assert queries.mean().item() == pytest.approx(0.0, abs=1e-3)


def llama3_parts(connector=None):
    """Model and processor whose tokenizer puts a beginning-of-sequence token before every text, as Llama 3's does."""
    tokenizer = make_tokenizer(LLAMA3, adds_bos=True)
    tokenizer.add_tokens(["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"], special_tokens=True)
    tokenizer.pad_token = "<|im_start|>"
    text = text_config(vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id)
    audio = whisper_config(num_mel_bins=80, max_source_positions=100)
    model = tiny_speechllm(audio, text, connector or {"type": "stack_mlp", "stride": 4}, len(tokenizer))
    model.freeze("encoder", "llm")
    return model, SpeechLLMProcessor.from_parts(WhisperFeatureExtractor(feature_size=80), tokenizer, model.config)


def collate(trainer, count):
    return trainer.data_collator([row | {"draw": (0, n)} for n, row in enumerate(trainer.train_dataset)][:count])


@pytest.mark.parametrize("kind", ["alignment", "distillation"])
def test_transcripts_are_tokenized_without_special_tokens(kind, tmp_path):
    model, processor = llama3_parts(BANK if kind == "distillation" else None)
    trainer = build(kind, tmp_path, None, model, processor)
    batch = collate(trainer, 4)
    for ids, size, row in zip(
        batch["transcript_ids"], batch["transcript_lengths"], trainer.train_dataset, strict=False
    ):
        assert processor.tokenizer.decode(ids[:size]) == row["text"]
        assert not set(ids[:size].tolist()) & set(processor.tokenizer.all_special_ids)


def test_the_speech_stands_where_the_transcript_would_in_llama_3_s_chat(tmp_path):
    model, processor = llama3_parts(BANK)
    trainer = build("distillation", tmp_path, None, model, processor)
    batch, tokenizer = collate(trainer, 4), processor.tokenizer
    before = "<s><|start_header_id|>user<|end_header_id|>\n\n"
    after = "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
    for number, row in enumerate(trainer.train_dataset.select(range(4))):
        for prefix, said in (("", "<|audio|>" * 12), ("teacher_", row["text"])):
            end = batch[f"{prefix}prompt_end"][number]
            assert tokenizer.decode(batch[f"{prefix}input_ids"][number][: end + 1]) == before + said + after
            assert batch[f"{prefix}attention_mask"][number].sum() == end + 1


def test_l_out_is_taken_at_the_last_prompt_position_after_the_final_norm(tmp_path):
    """Against each row alone, unpadded: the very last position of the whole prompt."""
    model, processor = llama3_parts(BANK)
    trainer = build("distillation", tmp_path, None, model, processor)
    model.eval()
    total = 0.0
    with torch.no_grad():
        terms = trainer.objective(model, collate(trainer, 4))
        for row in trainer.train_dataset.select(range(4)):
            chats = [
                [{"role": "user", "content": [block]}]
                for block in ({"type": "audio"}, {"type": "text", "text": row["text"]})
            ]
            options = {"tokenize": True, "return_dict": True, "add_generation_prompt": True, "return_tensors": "pt"}
            chats[0][0]["content"][0]["audio"] = row["audio"]["bytes"]
            heard = processor.apply_chat_template(chats[0], **options)
            read = processor.apply_chat_template(chats[1], **options)
            hidden = model.model(**heard).last_hidden_state[0, -1]
            states = model.model.language_model(input_ids=read["input_ids"], output_hidden_states=True)
            assert torch.equal(states.last_hidden_state, states.hidden_states[-1])  # which is after the norm
            total += torch.linalg.vector_norm(hidden - states.last_hidden_state[0, -1])
    torch.testing.assert_close(terms["output"].total, total, rtol=1e-4, atol=1e-4)


def test_terms_have_the_weights_of_the_settings(tmp_path):
    weights = {"input_weight": 0.3, "output_weight": 0.7, "language_weight": 1.9}
    trainer = build("distillation", tmp_path, **weights)
    terms = trainer.objective(trainer.model, collate(trainer, 4))
    assert {f"{name}_weight": terms[name].weight for name in ("input", "output", "language")} == weights
    trainer = build("alignment-language", tmp_path)
    terms = trainer.objective(trainer.model, collate(trainer, 4))
    assert (terms["ctc"].weight, terms["language_ctc"].weight) == (0.8, 0.2)
    trainer = build("imitation-divergence", tmp_path, cross_entropy_weight=0.4, end_token_weight=0.6)
    terms = trainer.objective(trainer.model, collate(trainer, 4))
    names = ("cross_entropy", "divergence", "end_token")
    assert [terms[name].weight for name in names] == [0.4, 0.5, 0.6]


@pytest.mark.parametrize("blank", [0, None])
def test_the_blank_of_ctc_is_the_connector_s(blank, tmp_path):
    """With another token as the blank the loss is another."""
    torch.manual_seed(0)
    model, processor = tiny_parts({"type": "stack_mlp", "stride": 2, "ctc_blank": blank})
    pad = processor.tokenizer.pad_token_id
    trainer = build("alignment", tmp_path, None, model, processor)
    batch = collate(trainer, 4)
    with torch.no_grad():
        total = trainer.objective(model, batch)["ctc"].total
        audio = model.get_audio_features(batch["input_features"], batch["input_features_mask"]).connector
        logits = audio.embeddings @ model.get_input_embeddings().weight.T
        arguments = logits.log_softmax(-1).transpose(0, 1), batch["transcript_ids"], audio.lengths
        losses = {
            token: F.ctc_loss(*arguments, batch["transcript_lengths"], blank=token, reduction="sum")
            for token in (0, pad)
        }
    right, wrong = (0, pad) if blank == 0 else (pad, 0)
    torch.testing.assert_close(total, losses[right], rtol=1e-4, atol=1e-3)
    assert abs(total - losses[wrong]) > 0.01 * total


def test_diva_s_l_in_is_a_mean_over_tokens_and_lad_s_over_utterances(tmp_path):
    means = {}
    for mean in ("utterances", "tokens"):
        torch.manual_seed(0)
        model, processor = tiny_parts(BANK)
        trainer = build("distillation", tmp_path, None, model, processor, input_mean=mean)
        model.eval()
        batch = collate(trainer, 4)
        with torch.no_grad():
            term = trainer.objective(model, batch)["input"]
            audio = model.get_audio_features(batch["input_features"], batch["input_features_mask"]).connector
            rows = []
            for heard, ids, size in zip(
                audio.embeddings, batch["transcript_ids"], batch["transcript_lengths"], strict=True
            ):
                size = min(int(size), 12)
                text = model.get_input_embeddings()(ids[:size])
                rows.append(torch.linalg.vector_norm(heard[12 - size :] - text, dim=-1))
        means[mean] = term.total / batch["counts"][term.items]
        expected = torch.cat(rows).mean() if mean == "tokens" else torch.stack([row.mean() for row in rows]).mean()
        torch.testing.assert_close(means[mean], expected, rtol=1e-4, atol=1e-4)
    assert abs(means["tokens"] - means["utterances"]) > 1e-3


def test_the_end_token_has_a_divergence_of_its_own(tmp_path):
    """Ultravox: the same divergence at each answer's last label, as a mean over answers."""
    trainer = build("imitation-divergence", tmp_path, end_token_weight=0.5)
    model = trainer.model.eval()
    batch = collate(trainer, 4)
    with torch.no_grad():
        term = trainer.objective(model, batch)["end_token"]
        inputs = {
            name: batch[name] for name in ("input_ids", "attention_mask", "input_features", "input_features_mask")
        }
        heard, teacher = model(**inputs).logits, trainer.teacher_hidden(model, batch)
        read, total = model.compute_logits(teacher), 0.0
        for row in range(4):
            ends = [int((batch[name][row] != IGNORED).nonzero().max()) - 1 for name in ("labels", "teacher_labels")]
            student, target = (logits[row, end] / 2.0 for logits, end in zip((heard, read), ends, strict=True))
            total += 4.0 * F.kl_div(student.log_softmax(-1), target.softmax(-1), reduction="sum")
    assert batch["counts"][term.items] == 4
    torch.testing.assert_close(term.total, total, rtol=1e-4, atol=1e-5)


def test_the_attention_adapters_of_mms_come_with_its_encoder(tmp_path):
    """As facebook/mms-1b-all has them: a model for CTC whose encoder layers end in adapters."""
    config = Wav2Vec2Config(**WAVEFORM, do_stable_layer_norm=True, feat_extract_norm="layer", adapter_attn_dim=4)
    whole = Wav2Vec2ForCTC(config)
    whole.save_pretrained(tmp_path)
    encoder = load_encoder(str(tmp_path))
    for layer, expected in zip(encoder.encoder.layers, whole.wav2vec2.encoder.layers, strict=True):
        for name, value in expected.adapter_layer.named_parameters():
            assert torch.equal(dict(layer.adapter_layer.named_parameters())[name], value), name
