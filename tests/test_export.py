"""From a checkpoint to a Hub repository: what is in it, what is refused, and that it is there whole or not at all."""

import json

import pytest
import torch
from conftest import random_audio
from factories_processing import BLOCKS, CHATML, CHATML_MARKED, FORGETFUL, make_tokenizer, refused_before_5_23
from factories_publishing import FACTS, INSTRUCTION, recording, tiny_checkpoint, tiny_export
from factories_training import tiny_parts
from peft import get_peft_model
from safetensors.torch import load_file
from transformers import AutoTokenizer

from hub_cards.export import ExportSettings, export_checkpoint
from hub_cards.facts import read_facts
from hub_cards.remote_code import HUB_CONFIGURATION_FILE, MODEL_AUTO_MAP, code_files, template_with_blocks
from modeling_speechllm import SpeechLLMForConditionalGeneration
from processing_speechllm import SpeechLLMProcessor
from speechllm_cli.main import main
from trainers.checkpoints.lora import lora_config

# Reads lists of text blocks only.
TEXT_BLOCKS = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{% for block in message['content'] %}"
    "{{ block['text'] }}{% endfor %}<|im_end|>\n{% endfor %}"
)
CHAT = [
    {"role": "system", "content": [{"type": "text", "text": "be brief"}]},
    {"role": "user", "content": [{"type": "audio"}, {"type": "text", "text": "\nwhat is said <|im_end|>"}]},
    {"role": "assistant", "content": [{"type": "text", "text": "hello"}]},
    {"role": "user", "content": [{"type": "text", "text": "and here: "}, {"type": "audio"}]},
]


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    return tiny_export(tmp_path_factory.mktemp("export"), repository="owner/tiny")


def logits(model) -> torch.Tensor:
    features, mask = random_audio(model, [16])
    ids = torch.tensor([[5, model.config.audio_token_id, model.config.audio_token_id, 6]])
    return model(input_ids=ids, input_features=features, input_features_mask=mask).logits


def test_a_repository_is_complete_and_has_one_weight_file_at_its_top(exported):
    names = {path.name for path in exported.iterdir()}
    assert names >= {"config.json", "generation_config.json", "processor_config.json", "tokenizer.json", "README.md"}
    assert names >= {"facts.json", "LICENSE", "chat_template.jinja", HUB_CONFIGURATION_FILE, *code_files()}
    assert {path.name for path in exported.glob("*.safetensors")} == {"model.safetensors"}
    assert (exported / "helpers" / "ctc_head.safetensors").is_file()
    config = json.loads((exported / "config.json").read_text())
    assert config["auto_map"] == MODEL_AUTO_MAP and "custom_pipelines" not in config
    assert config["parents"] is None
    assert not [path for path in exported.parent.iterdir() if "partial" in path.name]


def test_the_weights_are_the_checkpoint_s(exported):
    before = load_file(exported.parent / "checkpoint" / "model.safetensors")
    after = load_file(exported / "model.safetensors")
    assert before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before)


def test_facts_are_carried_on_and_what_the_export_knows_is_added(exported):
    facts = read_facts(exported)
    assert facts["model"]["languages"] == FACTS["model"]["languages"]
    assert facts["model"]["weight_bytes"] == (exported / "model.safetensors").stat().st_size
    assert facts["model"]["repository"] == "owner/tiny"
    assert 'model="owner/tiny"' in (exported / "README.md").read_text()
    assert str(exported.parent) not in (exported / "facts.json").read_text()


def test_the_example_is_what_the_model_answers(exported):
    (row,) = json.loads((exported / "examples" / "examples.json").read_text())
    (question,) = row["questions"]
    assert question["instruction"] == INSTRUCTION and question["expected"]
    assert (exported / "examples" / row["file"]).is_file()


def test_number_format_and_size_of_shards_are_chosen(tmp_path):
    checkpoint = tiny_checkpoint(tmp_path / "checkpoint")
    settings = ExportSettings(dtype="bfloat16", max_shard_size="30KB")
    out = export_checkpoint(checkpoint, tmp_path / "out", settings)
    shards = sorted(out.glob("*.safetensors"))
    assert len(shards) > 1 and (out / "model.safetensors.index.json").is_file()
    assert {value.dtype for shard in shards for value in load_file(shard).values()} == {torch.bfloat16}


@pytest.mark.parametrize("template", [CHATML, CHATML_MARKED, BLOCKS, FORGETFUL, TEXT_BLOCKS])
def test_an_engine_s_rendering_keeps_audio_blocks_and_ours_stays_as_it_was(template):
    tokenizer = make_tokenizer(template)
    _, processor = tiny_parts(chat_template=template)
    expected = processor.apply_chat_template(CHAT[:2], audio=[{"tokens": 1}])
    exported = template_with_blocks(template, processor.audio_token)
    tokenizer.chat_template = exported
    chat = json.loads(json.dumps(CHAT[:2]).replace(" <|im_end|>", ""))
    assert tokenizer.apply_chat_template(chat, tokenize=False).count(processor.audio_token) == 1
    assert "what is said" in tokenizer.apply_chat_template(chat, tokenize=False)
    assert processor.apply_chat_template(CHAT[:2], chat_template=exported, audio=[{"tokens": 1}]) == expected
    assert template_with_blocks(exported, processor.audio_token) == exported


@refused_before_5_23
def test_a_chat_of_several_turns_is_rendered_and_marked_as_before(exported):
    processor = SpeechLLMProcessor.from_pretrained(exported)
    before = SpeechLLMProcessor.from_pretrained(exported.parent / "checkpoint")
    assert processor.chat_template != before.chat_template
    options = {"tokenize": True, "return_dict": True, "return_assistant_tokens_mask": True}
    audio = [{"tokens": 2}, {"tokens": 3}]
    old, new = (p.apply_chat_template(CHAT, audio=audio, **options) for p in (before, processor))
    for name in ("input_ids", "assistant_masks"):
        assert torch.equal(torch.as_tensor(old[name]), torch.as_tensor(new[name]))
    assert torch.as_tensor(new["assistant_masks"]).sum() > 0


def test_the_tokenizer_alone_renders_audio_blocks(exported):
    tokenizer = AutoTokenizer.from_pretrained(exported)
    url = {"type": "input_audio", "input_audio": {"data": "", "format": "wav"}}
    chat = [{"role": "user", "content": [url, {"type": "text", "text": "\nhello"}]}]
    assert "<|audio|>\nhello" in tokenizer.apply_chat_template(chat, tokenize=False)


def test_adapters_are_merged_when_told(tmp_path):
    base = tiny_checkpoint(tmp_path / "base")
    model = SpeechLLMForConditionalGeneration.from_pretrained(base)
    before = logits(model)
    adapted = get_peft_model(model, lora_config(model, ["llm"], rank=2)).eval()
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:  # zero at first
                parameter.fill_(0.1)
    adapted.save_pretrained(tmp_path / "adapters")
    SpeechLLMProcessor.from_pretrained(base).save_pretrained(tmp_path / "adapters")
    with pytest.raises(ValueError, match="holds LoRA adapters. Give --merge"):
        export_checkpoint(tmp_path / "adapters", tmp_path / "out")
    out = export_checkpoint(tmp_path / "adapters", tmp_path / "out", ExportSettings(merge=True))
    merged = SpeechLLMForConditionalGeneration.from_pretrained(out)
    expected = logits(adapted.get_base_model())
    torch.testing.assert_close(logits(merged), expected, rtol=0, atol=1e-4)  # W + BA in another order of sums
    assert not torch.allclose(expected, before, atol=1e-2)


def test_parts_whose_parents_nobody_else_has_are_exported_whole_alone(tmp_path):
    model, processor = tiny_parts()
    (tmp_path / "parent").mkdir()
    place = {"id": str(tmp_path / "parent"), "revision": None}
    model.config.parents = {"audio": place, "text": place}
    model.save_pretrained(tmp_path / "checkpoint")
    processor.save_pretrained(tmp_path / "checkpoint")
    with pytest.raises(ValueError, match="parents of .* are folders of this machine .*Export it whole"):
        export_checkpoint(tmp_path / "checkpoint", tmp_path / "out", ExportSettings(connector_only=True))
    out = export_checkpoint(tmp_path / "checkpoint", tmp_path / "out")
    assert str(tmp_path) not in "".join(path.read_text() for path in out.glob("*.json"))
    assert [parent["id"] for parent in read_facts(out)["parents"]] == ["parent", "parent"]


def test_what_cannot_be_exported_says_why_and_leaves_nothing(tmp_path, capsys):
    checkpoint = tiny_checkpoint(tmp_path / "checkpoint")
    (checkpoint / "README.md").write_text("words", encoding="utf-8")
    (tmp_path / "there").mkdir()
    cases = [
        ([str(checkpoint), str(tmp_path / "there")], "exists. Give a folder that does not"),
        ([str(tmp_path / "nothing"), str(tmp_path / "out")], "is no folder"),
        ([str(tmp_path / "there"), str(tmp_path / "out")], "has no config.json"),
        ([str(checkpoint), str(tmp_path / "out"), "--connector_only"], "does not know its parents"),
        ([str(checkpoint), str(tmp_path / "out"), "--example", "no.wav", "hello"], "no.wav: no such recording"),
        ([str(checkpoint), str(tmp_path / "out"), "--results", str(checkpoint / "config.json")], "no list of entries"),
        ([str(checkpoint), str(tmp_path / "out"), "--results", str(checkpoint / "README.md")], "README.md is no JSON"),
        ([str(checkpoint), str(tmp_path / "out"), "--base", "x"], "holds no adapters, so --base x changes nothing"),
    ]
    for arguments, message in cases:
        assert main(["export", *arguments]) == 2
        assert message in capsys.readouterr().err, message
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint", "there"]


def test_results_of_an_evaluation_reach_the_card(tmp_path):
    checkpoint = tiny_checkpoint(tmp_path / "checkpoint")
    entry = {"dataset": "a set", "metric": "wer", "n": 3, "systems": {"speech": {"value": 12.5, "interval": [10, 15]}}}
    (tmp_path / "results.json").write_text(json.dumps({"results": [entry]}))
    recording(tmp_path)
    arguments = ["--results", str(tmp_path / "results.json"), "--license", "mit", "--name", "Other"]
    assert main(["export", str(checkpoint), str(tmp_path / "out"), *arguments]) == 0
    card = (tmp_path / "out" / "README.md").read_text()
    assert "12.5 [10.0, 15.0]" in card and "license: mit" in card and "# Other" in card
