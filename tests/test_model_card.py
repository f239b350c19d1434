"""The model card: rendered from facts alone, nothing made up, valid for the Hub; the example is the embedded one."""

import json
import re
from pathlib import Path

import pytest
import yaml
from conftest import tiny_speechllm
from huggingface_hub import ModelCard, parse_eval_result_entries

import speechllm
from hub_cards.evaluations import results_facts
from hub_cards.facts import read_facts
from hub_cards.licenses import conflicts, read_license
from hub_cards.measure import why_not_vllm
from hub_cards.metadata import eval_result_files
from hub_cards.model_card import render_model_card, write_card
from hub_cards.tables import MISSING

NANO = Path(speechllm.NANO)
FULL = {
    "model": {"name": "Ears", "license": "llama3.1", "parameters": {"total": 9_000_000_000, "connector": 50_000}},
    "parents": [
        {
            "role": "speech encoder",
            "id": "openai/whisper-large-v3",
            "revision": "06f233fe06e7",
            "license": "apache-2.0",
        },
        {"role": "LLM", "id": "meta-llama/Llama-3.1-8B-Instruct", "revision": "0e9e39f249a1", "license": "llama3.1"},
    ],
    "training": [
        {
            "objective": "imitation",
            "method": ["mtbi"],
            "train_groups": ["connector"],
            "trained_parameters": 50_000,
            "recipe": {"learning_rate": 1e-4},
            "hours": 12.5,
        }
    ],
    "data": [
        {"name": "owner/speech", "id": "owner/speech", "rows": 10, "hours": 3.0, "languages": {"de": 1.0, "en": 2.0}}
    ],
    "evaluation": [
        {
            "dataset": {"name": "FLEURS", "id": "google/fleurs", "split": "test", "revision": "abc"},
            "task": "asr",
            "language": language,
            "metric": "wer",
            "unit": "%",
            "higher_is_better": False,
            "n": 100,
            "systems": {"speech": {"value": value, "low": value - 1, "high": value + 1}, "text_bound": {"value": 0.0}},
        }
        for language, value in (("de", 7.25), ("en", 12.0))
    ],
    "failures": [{"language": "de", "text": "a|b\nc", "instruction": "?", "expected": "", "answer": "x"}],
}


def test_the_embedded_model_s_card_is_what_its_facts_give():
    assert (NANO / "README.md").read_text(encoding="utf-8") == render_model_card(read_facts(NANO))


def test_the_embedded_model_s_facts_are_those_of_its_files():
    facts = read_facts(NANO)
    assert facts["model"]["weight_bytes"] == (NANO / "model.safetensors").stat().st_size
    assert facts["prompt"]["template"] == (NANO / "chat_template.jinja").read_text(encoding="utf-8")
    assert json.loads((NANO / "config.json").read_text())["connector"]["type"] == facts["model"]["connector"]["type"]
    assert facts["model"]["parameters"]["total"] == sum(
        facts["model"]["parameters"][group] for group in ("encoder", "connector", "llm")
    )
    assert all(facts["behaviour"][kind] for kind in ("silence", "foreign_speech")) and facts["failures"]


def test_the_card_of_a_packaged_model_says_how_the_package_calls_it():
    facts = read_facts(NANO)
    assert speechllm.MODELS[facts["model"]["package_name"]] == speechllm.NANO and speechllm.DEFAULT != "nano"
    assert "`speechllm.NANO`, `--model nano`" in render_model_card(facts)
    for name, folder in speechllm.MODELS.items():
        card = (Path(folder) / "README.md").read_text(encoding="utf-8")
        assert bool(re.search(r'pipeline\("speech-instruct"\)', card)) is (name == speechllm.DEFAULT)


def test_cards_send_nobody_to_a_name_that_is_not_registered():
    assert "pip install speechllm" not in render_model_card({}) and '"speechllm[' not in render_model_card({})


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        ({"contents": "trained parts"}, "holds trained parts alone"),
        ({"vllm": "The connector ctc_compress leaves audio tokens out."}, "ctc_compress leaves audio tokens out"),
    ],
)
def test_what_vllm_refuses_is_not_printed_as_a_command(model, reason):
    assert "vllm serve owner/name" in render_model_card({"model": {"vllm": ""}})
    card = render_model_card({"model": model})
    assert "vllm serve" not in card
    assert re.search(rf"speechllm serve owner/name\n```\n\nNot under vLLM: .*{reason}", card)


def test_the_facts_of_a_model_tell_why_vllm_refuses_it():
    assert why_not_vllm(tiny_speechllm().config) == ""
    assert "leaves audio tokens out" in why_not_vllm(tiny_speechllm(connector={"type": "ctc_compress"}).config)


def test_parameters_trained_in_every_stage_are_told_once():
    stage = {"trained_parameters": 1_220_000}
    assert "trained 1.22 M in each stage" in render_model_card({"training": [stage, stage]})
    assert "trained 1.22 M and 50 (by stage)" in render_model_card({"training": [stage, {"trained_parameters": 50}]})


def test_without_facts_everything_is_said_to_be_not_measured():
    text = render_model_card({})
    sections = re.split("^## ", text, flags=re.MULTILINE)
    bare = {section.splitlines()[0] for section in sections if MISSING.lower() in section.lower()}
    assert bare >= {"Results", "Text ability", "Known failures", "Training", "Training data", "Memory to run"}
    assert not re.search(r"\bNone\b|\{|\}\}", text.replace('inputs["input_ids"].shape', ""))


def test_metadata_tells_parents_data_languages_and_scores():
    data = ModelCard(render_model_card(FULL)).data
    assert data.base_model == ["openai/whisper-large-v3", "meta-llama/Llama-3.1-8B-Instruct"]
    assert data.base_model_relation == "merge"
    assert (data.library_name, data.pipeline_tag, data.license) == ("transformers", "audio-text-to-text", "llama3.1")
    assert data.datasets == ["owner/speech"] and data.language == ["en", "de"]  # by hours
    assert data.metrics == ["wer"]
    assert {(result.metric_value, result.dataset_type) for result in data.eval_results} == {
        (7.25, "google/fleurs"),
        (12.0, "google/fleurs"),
    }


@pytest.mark.parametrize(
    ("change", "relation"),
    [
        ({"model": {"contents": "trained parts"}}, "adapter"),
        ({"training": [{"train_groups": ["connector", "llm"]}]}, "finetune"),
        ({"training": [{"train_groups": ["connector"], "lora": {"groups": ["llm"]}}]}, "finetune"),
        ({"parents": FULL["parents"][:1]}, "finetune"),
    ],
)
def test_the_relation_to_the_parents_follows_from_what_was_trained(change, relation):
    assert ModelCard(render_model_card(FULL | change)).data.base_model_relation == relation


def test_results_stand_beside_bound_and_cascade_with_intervals():
    text = render_model_card(FULL)
    assert "| asr | de | wer (%) ↓ | 100 | 0.0 | *not measured* | 7.25 [6.25, 8.25] |  |" in text
    assert "a\\|b ⏎ c" in text and "(nothing)" in text  # cells stay cells
    assert "12.50 h" in text and "arXiv:2505.18644" in text


def test_results_on_the_hub_s_data_sets_are_written_in_the_hub_s_newer_form(tmp_path):
    local = {"dataset": {"name": "my own"}, "metric": "wer", "systems": {"speech": {"value": 1.0}}}
    facts = FULL | {"evaluation": [*FULL["evaluation"], local]}
    write_card(tmp_path, facts)
    (path,) = (tmp_path / ".eval_results").iterdir()
    entries = parse_eval_result_entries(yaml.safe_load(path.read_text(encoding="utf-8")))
    assert [(entry.dataset_id, entry.task_id, entry.value) for entry in entries] == [
        ("google/fleurs", "asr_de", 7.25),
        ("google/fleurs", "asr_en", 12.0),
    ]
    write_card(tmp_path, {})
    assert not list((tmp_path / ".eval_results").iterdir()) and eval_result_files({}) == {}


def scored(metric, value, **more):
    dataset = {"name": "google/fleurs", "id": "google/fleurs"}
    return {"dataset": dataset, "task": "asr", "metric": metric, "systems": {"speech": {"value": value}}} | more


def test_the_hub_s_newer_form_has_one_score_of_a_task():
    headline, other = scored("word error rate", 9.0, headline=True), scored("empty answers", 1.0, headline=False)
    (text,) = eval_result_files({"evaluation": [other, headline]}).values()
    assert [entry["value"] for entry in yaml.safe_load(text)] == [9.0]
    assert eval_result_files({"evaluation": [other, scored("cut answers", 2.0, headline=False)]}) == {}


def test_metrics_have_the_hub_s_names():
    data = ModelCard(render_model_card({"evaluation": [scored("word error rate", 9.0)]})).data
    assert data.metrics == ["wer"] and data.eval_results[0].metric_type == "wer"


def test_a_run_without_a_main_metric_has_no_rows_by_group():
    metrics = {"empty": {"title": "empty answers", "unit": "%", "higher_is_better": False}}
    scores = {"speech": {"empty": {"value": 1.0, "rows": 4}}}
    groups = {"language": {"de": {"speech": {}}, "en": {"speech": {}}}}
    results = {"metrics": metrics, "overall": scores, "groups": groups, "headline": None}
    assert [entry["metric"] for entry in results_facts(results)["evaluation"]] == ["empty answers"]


def parent(license, **more):
    return [{"role": "LLM", "id": "owner/llm", "license": license, **more}]


@pytest.mark.parametrize(
    ("stated", "parents", "finding"),
    [
        ("apache-2.0", parent("llama3.1"), "under llama3.1, the card says apache-2.0"),
        ("mit", parent("gemma"), "under gemma, the card says mit"),
        ("apache-2.0", parent("cc-by-nc-4.0"), "non-commercial"),
        ("mit", parent("cc-by-sa-4.0"), "share-alike"),
        ("cc-by-nc-4.0", parent("cc-by-nc-sa-4.0"), "cc-by-nc-sa-4.0"),
        ("llama3.1", parent("llama3.1") + parent("cc-by-nc-4.0"), "non-commercial"),
    ],
)
def test_a_licence_that_does_not_fit_its_parent_s_is_a_conflict(stated, parents, finding):
    (conflict,) = conflicts(stated, None, parents)
    assert conflict.sure and finding in conflict.finding and "--license" in conflict.remedy


@pytest.mark.parametrize(
    ("stated", "name", "parents"),
    [
        ("apache-2.0", None, parent("mit")),
        ("llama3.1", None, parent("llama3.1") + parent("apache-2.0")),
        ("cc-by-nc-sa-4.0", None, parent("cc-by-nc-4.0")),
        ("cc-by-nc-sa-4.0", None, parent("cc-by-nc-sa-4.0")),
        ("other", "Llama 3.1 and CC BY-NC 4.0", parent("llama3.1") + parent("cc-by-nc-4.0")),
    ],
)
def test_a_licence_that_fits_is_none(stated, name, parents):
    assert conflicts(stated, name, parents) == []


def test_an_unknown_licence_of_a_parent_is_for_a_person_to_look_at():
    (conflict,) = conflicts("mit", None, parent(None))
    assert not conflict.sure and "unknown" in conflict.finding and "update_facts" in conflict.remedy


def test_a_parent_s_licence_is_read_from_its_card(tmp_path):
    (tmp_path / "README.md").write_text("---\nlicense: other\nlicense_name: qwen-research\n---\n# A model\n")
    assert read_license(str(tmp_path)) == {"license": "other", "license_name": "qwen-research"}
    assert read_license(str(tmp_path / "nothing"), model_type="gemma2") == {"license": "gemma"}
    assert read_license("owner/not-in-the-cache", local_only=True) == {}
