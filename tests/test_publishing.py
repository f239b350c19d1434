"""Publishing over real HTTP, to the small Hub of `hub_server.py`: push, load, revisions; what was killed goes on."""

import hashlib
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from conftest import text_config, whisper_config
from datasets import Audio, Dataset
from factories_processing import CHATML_MARKED, make_tokenizer
from factories_publishing import INSTRUCTION, edit_json, recording, tiny_export
from factories_targets import Echo, config
from factories_training import tone_rows
from hub_server import Repository, run_hub
from huggingface_hub import constants
from transformers import LlamaForCausalLM, WhisperFeatureExtractor, WhisperForConditionalGeneration

from hub_cards.dataset_card import export_dataset, write_dataset_card
from speechllm_cli.main import main
from trainers.targets.generate import generate_targets

ROOT = Path(__file__).parent.parent
PUSH = """
import sys
from hub_cards.push import PushError, PushSettings, plan_push, push_folder
folder, settings = sys.argv[1], eval(sys.argv[2])
try:
    print(*plan_push(folder, settings), sep="\\n")
    print(push_folder(folder, settings))
except PushError as error:
    sys.exit(str(error))
"""
ABSENT = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("speechllm", "modeling_speechllm", "processing_speechllm", "hub_cards"):
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Absent())
"""


@pytest.fixture
def hub():
    with run_hub() as hub:
        yield hub


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    return tiny_export(tmp_path_factory.mktemp("publishing"))


def client(hub, home, code, *arguments, token="hf_right", **changes):
    """A fresh process of a user of this Hub, with a cache of its own."""
    environment = os.environ | {
        "HF_ENDPOINT": hub.address,
        "HF_HUB_OFFLINE": "0",
        "HF_HOME": str(home),
        "HF_HUB_DISABLE_XET": "1",  # the older protocol, plain HTTP
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "PYTHONPATH": str(ROOT),
    }
    environment |= {"HF_TOKEN": token} if token else {}
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(
        command, env=environment | changes, cwd=home, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def finish(process) -> str:
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    return output


def refusal(process) -> str:
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 1, errors
    return errors.strip().splitlines()[-1]


def settings(name="ada/tiny", **changes) -> str:
    return f"PushSettings({name!r}, **{changes!r})"


def wait_until(what, seconds=60.0):
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.02)


@pytest.mark.slow
def test_what_was_pushed_loads_by_its_name_in_each_of_its_revisions(hub, exported, tmp_path):
    output = finish(client(hub, tmp_path, PUSH, exported, settings(private=True)))
    assert "To model ada/tiny, branch main (new, private):" in output and "model.safetensors" in output
    repository = hub.repositories["model", "ada/tiny"]
    assert repository.private and len(repository.commits) == 2  # the empty one, and all files at once
    sent = {str(path.relative_to(exported)) for path in exported.rglob("*") if path.is_file()}
    assert set(hub.files("ada/tiny")) == sent
    first = repository.branches["main"]

    changed = tmp_path / "changed"
    finish(client(hub, tmp_path, "import shutil, sys; shutil.copytree(*sys.argv[1:])", exported, changed))
    edit_json(changed / "generation_config.json", max_new_tokens=1)
    (changed / "helpers" / "ctc_head.safetensors").unlink()
    assert "The name ada/tiny is taken: it holds" in refusal(client(hub, tmp_path, PUSH, changed, settings()))
    output = finish(client(hub, tmp_path, PUSH, changed, settings(update=True, message="Shorter")))
    assert "Removed there: helpers/ctc_head.safetensors" in output
    assert "helpers/ctc_head.safetensors" not in hub.files("ada/tiny")
    assert repository.messages[-1] == "Shorter" and len(repository.commits) == 3

    code = f"""{ABSENT}
import json
from transformers import AutoModelForMultimodalLM, AutoProcessor, pipeline
found = {{}}
for revision in sys.argv[1:3]:
    options = {{"revision": revision, "trust_remote_code": True}}
    pipe = pipeline("speech-instruct", model="ada/tiny", **options)
    found[revision] = pipe(sys.argv[3], instruction=sys.argv[4])[0]["generated_text"]
model = AutoModelForMultimodalLM.from_pretrained("ada/tiny", trust_remote_code=True)
processor = AutoProcessor.from_pretrained("ada/tiny", trust_remote_code=True)
found["limits"] = [model.generation_config.max_new_tokens, type(processor).__module__.split(".")[0]]
print(json.dumps(found))
"""
    tone = exported.parent / "tone.wav"
    found = json.loads(finish(client(hub, tmp_path, code, first, "main", tone, INSTRUCTION)).splitlines()[-1])
    (row,) = json.loads((exported / "examples" / "examples.json").read_text())
    assert found[first] == row["questions"][0]["expected"]
    assert found["main"] != found[first]
    assert found["limits"] == [1, "transformers_modules"]


@pytest.mark.slow
def test_targets_are_loaded_from_their_branch_with_their_recordings(hub, tmp_path):
    rows = tone_rows(5)
    (tmp_path / "targets").mkdir()
    generate_targets(config(tmp_path / "targets", target_set="BI", rows_per_shard=2), rows, Echo())
    out = export_dataset(tmp_path / "targets", tmp_path / "out", license="cc0-1.0")
    finish(client(hub, tmp_path, PUSH, out, settings("ada/targets", kind="dataset", branch="first")))
    assert hub.files("ada/targets", "dataset", "main") == {}
    code = """
import sys
from datasets import Audio, load_dataset
rows = load_dataset("ada/targets", split="train", revision=sys.argv[1]).cast_column("audio", Audio(decode=False))
print(len(rows), rows.column_names, [len(audio["bytes"]) for audio in rows["audio"]])
load_dataset("ada/other", split="train")
from hub_cards.rows import cached_commit
print(cached_commit("ada/other"), cached_commit("ada/none"))
"""
    fill(hub, out, "ada/other", "dataset")
    output = finish(client(hub, tmp_path, code, "first", HF_DATASETS_CACHE=str(tmp_path / "cache")))
    sizes = [len(content["bytes"]) for content in rows.cast_column("audio", Audio(decode=False))["audio"]]
    assert output.startswith("5 ['id', 'audio',") and "messages" in output and str(sizes) in output
    commit = hub.repositories["dataset", "ada/other"].branches["main"]
    assert output.endswith(f"{commit} None\n")  # what a training on it notes


@pytest.mark.slow
def test_an_upload_that_was_killed_goes_on_where_it_was(hub, exported, tmp_path):
    files = {path.name: path.read_bytes() for path in exported.rglob("*.safetensors")}
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    held = hub.held[digests["model.safetensors"]] = threading.Event()
    process = client(hub, tmp_path, PUSH, exported, settings())
    wait_until(lambda: hub.reached.is_set() and digests["ctc_head.safetensors"] in hub.objects)
    process.kill()
    process.communicate()
    assert hub.files("ada/tiny") == {}  # nothing half is ever seen
    hub.held.clear()
    held.set()
    finish(client(hub, tmp_path, PUSH, exported, settings()))  # the repository is empty: no --update is needed
    assert hub.asked("PUT", digests["ctc_head.safetensors"]) == 1
    assert hub.asked("PUT", digests["model.safetensors"]) == 2
    assert hub.files("ada/tiny")["model.safetensors"] == files["model.safetensors"]


DOWNLOAD = """
from huggingface_hub import snapshot_download
print(snapshot_download("ada/tiny", max_workers=1))
"""


def fill(hub, folder, name="ada/tiny", kind="model") -> None:
    files = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    repository = hub.repositories[kind, name] = Repository(private=False)
    repository.branches["main"] = repository.add_commit(files, "all")


@pytest.mark.slow
def test_a_download_that_was_killed_goes_on_with_the_files_it_lacks(hub, exported, tmp_path):
    fill(hub, exported)
    held = hub.held["resolve/" + hub.repositories["model", "ada/tiny"].branches["main"] + "/model"] = threading.Event()
    process = client(hub, tmp_path, DOWNLOAD)
    assert hub.reached.wait(60)
    process.kill()
    process.communicate()
    held.set()
    hub.held.clear()
    before = hub.asked("GET", "/config.json")
    place = Path(finish(client(hub, tmp_path, DOWNLOAD)).strip())
    assert before == hub.asked("GET", "/config.json") == 1
    assert (place / "model.safetensors").read_bytes() == (exported / "model.safetensors").read_bytes()


@pytest.mark.slow
def test_a_connection_that_breaks_goes_on_in_the_middle_of_the_file(hub, tmp_path):
    piece = constants.DOWNLOAD_CHUNK_SIZE  # huggingface_hub writes by such pieces
    (tmp_path / "large").mkdir()
    content = bytes(range(256)) * (piece // 256) + b"the rest" * 100
    (tmp_path / "large" / "model.safetensors").write_bytes(content)
    fill(hub, tmp_path / "large")
    hub.cut["model.safetensors"] = piece + 10
    place = Path(finish(client(hub, tmp_path, DOWNLOAD)).strip())
    assert hub.ranges == [("model.safetensors", f"bytes={piece}-")]
    assert (place / "model.safetensors").read_bytes() == content


@pytest.mark.parametrize(
    ("token", "name", "changes", "message"),
    [
        (None, "ada/tiny", {}, "There is no token of yours here. Make one with write access at"),
        ("hf_wrong", "ada/tiny", {}, "(401)"),
        ("hf_other", "ada/tiny", {}, "Your token may not write to ada's repositories"),
        ("hf_right", "tiny", {}, "does not say whose it is. Give OWNER/NAME"),
        ("hf_right", "ada/ti ny", {}, "is no name of a repository"),
        ("hf_right", "ada/tiny", {"HF_ENDPOINT": "http://127.0.0.1:9"}, "cannot be reached"),
        ("hf_right", "ada/tiny", {"HF_HUB_OFFLINE": "1"}, "HF_HUB_OFFLINE is set"),
    ],
)
def test_what_the_hub_or_the_network_refuses_is_said_with_a_remedy(
    hub, exported, tmp_path, token, name, changes, message
):
    assert message in refusal(client(hub, tmp_path, PUSH, exported, settings(name), token=token, **changes))
    assert not hub.repositories


@pytest.mark.slow
def test_a_dry_run_and_a_folder_that_fails_the_check_send_nothing(hub, exported, tmp_path, monkeypatch):
    code = """
import sys
from hub_cards import check
from speechllm_cli.main import main
check.check_loading = lambda folder: iter(())  # tried by tests of the check
sys.exit(main(sys.argv[1:]))
"""
    output = finish(client(hub, tmp_path, code, "push", exported, "ada/tiny", "--private", "--dry_run"))
    assert "Ready to be published." in output and "(new, private)" in output
    assert output.endswith("Nothing was sent (--dry_run).\n") and not hub.repositories
    output = finish(client(hub, tmp_path, code, "push", exported, "ada/tiny", "--dry_run", token=None))
    assert "The Hub was not asked whether ada/tiny is there. There is no token of yours here" in output
    assert "(not known whether it is there)" in output and "(new" not in output
    assert "model.safetensors" in output and output.endswith("Nothing was sent (--dry_run).\n")
    broken = tmp_path / "broken"
    finish(client(hub, tmp_path, "import shutil, sys; shutil.copytree(*sys.argv[1:])", exported, broken))
    (broken / "LICENSE").unlink()
    (broken / "processor_config.json").unlink()
    before = len(hub.requests)
    monkeypatch.setenv("HF_TOKEN", "hf_right")
    assert main(["push", str(broken), "ada/tiny"]) == 1
    assert len(hub.requests) == before and not hub.repositories


@pytest.mark.slow
def test_trained_parts_alone_find_their_parents_on_the_hub(hub, tmp_path):
    tokenizer = make_tokenizer(CHATML_MARKED)
    tokenizer.pad_token = "<|im_start|>"
    parents = {"ada/whisper": tmp_path / "whisper", "ada/llm": tmp_path / "llm"}
    torch.manual_seed(0)
    encoder = whisper_config(num_mel_bins=80, max_source_positions=100)
    WhisperForConditionalGeneration(encoder).save_pretrained(parents["ada/whisper"])
    WhisperFeatureExtractor(feature_size=80).save_pretrained(parents["ada/whisper"])
    LlamaForCausalLM(text_config(vocab_size=len(tokenizer))).save_pretrained(parents["ada/llm"])
    tokenizer.save_pretrained(parents["ada/llm"])
    for name, folder in parents.items():
        (folder / "README.md").write_text(f"---\nlicense: {'mit' if 'llm' in name else 'apache-2.0'}\n---\n")
        fill(hub, folder, name)
    code = f"""
import sys, torch
from hub_cards.export import ExportSettings, export_checkpoint
from modeling_speechllm import SpeechLLMForConditionalGeneration
from processing_speechllm import SpeechLLMProcessor
torch.manual_seed(1)
model = SpeechLLMForConditionalGeneration.from_parts("ada/whisper", "ada/llm", {{"type": "stack_mlp", "stride": 4}})
model.save_pretrained("trained", trained_only=True)
SpeechLLMProcessor.from_parts("ada/whisper", "ada/llm", model.config).save_pretrained("trained")
export_checkpoint("trained", "out", ExportSettings(connector_only=True, license="apache-2.0"))
print(model.model.multi_modal_projector.state_dict()["norm.weight"].sum().item())
{PUSH.replace("sys.argv[1], eval(sys.argv[2])", '"out", ' + settings("ada/ears"))}
from transformers import AutoModelForMultimodalLM
again = AutoModelForMultimodalLM.from_pretrained("ada/ears")
assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values(), strict=True))
"""
    finish(client(hub, tmp_path, code))
    files = hub.files("ada/ears")
    assert "trained.safetensors" in files and "model.safetensors" not in files
    facts = json.loads(files["facts.json"])
    assert [(p["id"], p["license"]) for p in facts["parents"]] == [("ada/whisper", "apache-2.0"), ("ada/llm", "mit")]
    assert facts["parents"][0]["revision"] == hub.repositories["model", "ada/whisper"].branches["main"]
    assert b"base_model_relation: adapter" in files["README.md"]


@pytest.mark.parametrize("name", ["noowner", "a/b/c", "ü/b", "me/x y"])
def test_a_name_that_cannot_be_is_refused_before_the_check(tmp_path, capsys, name):
    assert main(["push", str(tmp_path / "nothing"), name]) == 2
    output, errors = capsys.readouterr()
    assert output == "" and errors.startswith(f"speechllm: {name!r} ")


def test_a_token_is_looked_for_before_the_check(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    assert main(["push", str(tmp_path / "nothing"), "ada/tiny"]) == 2
    output, errors = capsys.readouterr()
    assert output == "" and "There is no token of yours here" in errors


def test_a_plan_of_a_data_set_names_its_kind(hub, tmp_path):
    rows = Dataset.from_list([{"text": "x", "audio": {"bytes": recording(tmp_path).read_bytes(), "path": None}}])
    (tmp_path / "set" / "data").mkdir(parents=True)
    rows.to_parquet(tmp_path / "set" / "data" / "train-00000-of-00001.parquet")
    write_dataset_card(tmp_path / "set")
    output = finish(client(hub, tmp_path, PUSH, tmp_path / "set", settings("ada/set", kind="dataset")))
    assert output.startswith("To dataset ada/set, branch main (new):")
