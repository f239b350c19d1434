"""Both ways to load, each from a fresh offline process: the package imported, and remote code without the package."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from conftest import text_config, tiny_speechllm
from factories_processing import make_tokenizer
from transformers import WhisperFeatureExtractor

from hub_cards import export_remote_code
from modeling_speechllm import CONNECTORS as KNOWN_CONNECTORS
from processing_speechllm import SpeechLLMProcessor

ROOT = Path(__file__).parent.parent
CHAT = SpeechLLMProcessor.instruction_chat(["clip.wav"], "What is said?")
SCRIPT = """
import json, sys
folder, trust = sys.argv[1], sys.argv[2] == "trust"
if trust:
    class Absent:  # an installed copy of the package must not be found
        def find_spec(self, name, path=None, target=None):
            if name.split(".")[0] in ("speechllm", "modeling_speechllm", "processing_speechllm", "hub_cards"):
                raise ModuleNotFoundError(name)
    sys.meta_path.insert(0, Absent())
else:
    import speechllm
from transformers import (
    AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForMultimodalLM, AutoProcessor, pipeline,
)
kwargs = {"trust_remote_code": True} if trust else {}
processor = AutoProcessor.from_pretrained(folder, **kwargs)
chat = json.loads(sys.argv[3])
inputs = processor.apply_chat_template(chat, tokenize=True, return_dict=True, add_generation_prompt=True)
found = {"token": AutoConfig.from_pretrained(folder, **kwargs).audio_token_id}
for auto in (AutoModelForMultimodalLM, AutoModelForCausalLM):
    model = auto.from_pretrained(folder, **kwargs)
    found[auto.__name__] = model(**inputs).logits[0, -1].tolist()
base = AutoModel.from_pretrained(folder, **kwargs)
found["AutoModel"] = model.lm_head(base(**inputs).last_hidden_state)[0, -1].tolist()
pipe = pipeline("speech-instruct", model=folder, **kwargs)
found["pipeline"] = pipe("clip.wav", instruction="What is said?", max_new_tokens=5, do_sample=False)
found["modules"] = [type(model).__module__, type(processor).__module__, type(pipe).__module__]
pipe.save_pretrained(folder + "-saved")
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """An exported folder, a clip beside it, and what the model in this process answers."""
    place = tmp_path_factory.mktemp("hub")
    samples = np.random.default_rng(0).normal(0, 0.1, 8000)
    soundfile.write(place / "clip.wav", samples, 16000)
    tokenizer = make_tokenizer()
    model = tiny_speechllm(text=text_config(vocab_size=len(tokenizer)), audio_token_id=len(tokenizer))
    extractor = WhisperFeatureExtractor(feature_size=8)
    processor = SpeechLLMProcessor.from_parts(extractor, tokenizer, model.config)
    export_remote_code(model, processor, place / "exported")
    chat = json.loads(json.dumps(CHAT).replace("clip.wav", str(place / "clip.wav")))
    inputs = processor.apply_chat_template(chat, tokenize=True, return_dict=True, add_generation_prompt=True)
    tokens = model.generate(**inputs, max_new_tokens=5, do_sample=False)[:, inputs["input_ids"].shape[1] :]
    text = processor.batch_decode(tokens, skip_special_tokens=True)[0]
    return place, model(**inputs).logits[0, -1], text, model.config.audio_token_id


@pytest.mark.slow
@pytest.mark.parametrize("way", ["trust", "package"])
def test_a_fresh_process_gives_the_same_logits(exported, way):
    place, logits, text, token = exported
    for folder in place.glob("exported-saved*"):
        shutil.rmtree(folder)
    environment = os.environ | {
        "HF_HUB_OFFLINE": "1",
        "HF_MODULES_CACHE": str(place / f"modules-{way}"),
        "PYTHONPATH": str(ROOT) if way == "package" else "",
    }
    for folder in ("exported", "exported-saved"):  # and what a pipeline of it has saved
        command = [sys.executable, "-c", SCRIPT, folder, way, json.dumps(CHAT)]
        run = subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True)
        assert run.returncode == 0, run.stderr
        found = json.loads(run.stdout.strip().splitlines()[-1])
        assert found["token"] == token
        for auto in ("AutoModelForMultimodalLM", "AutoModelForCausalLM", "AutoModel"):
            torch.testing.assert_close(torch.tensor(found[auto]), logits, rtol=0, atol=1e-5)
        assert found["pipeline"] == [{"generated_text": text}]
        remote = [module.startswith("transformers_modules.") for module in found["modules"]]
        assert remote == [way == "trust"] * 3
        saved = place / f"{folder}-saved"
        assert (saved / "hub_configuration.py").exists() == (way == "trust")
        assert ("auto_map" in json.loads((saved / "config.json").read_text())) == (way == "trust")
        assert not list(saved.glob("*.py")) or way == "trust"


CONNECTORS = {
    "ctc_compress": {"type": "ctc_compress", "vocabulary": 5, "hidden_size": 8, "heads": 2, "blocks": 1},
    "whisper_reader": {
        **{"type": "whisper_reader", "decoder_layers": 1, "heads": 2, "positions": 12, "frames_per_token": 5},
        **{"tokens": 40, "vocabulary": 7, "end": 9, "times": 14, "prompt": [10, 11, 14]},
    },
    "stack_mlp": {"type": "stack_mlp", "layers": [0, 2]},
    "conv": {"type": "conv", "bottleneck_size": 8},
    "window_qformer": {
        "type": "window_qformer",
        "width": 4,
        "queries": 2,
        "hidden_size": 16,
        "heads": 2,
        "ffn_size": 16,
    },
    "conformer_ctc": {
        "type": "conformer_ctc",
        "reduced_size": 8,
        "channels": 2,
        "hidden_size": 16,
        "blocks": 3,
        "heads": 2,
        "ffn_size": 16,
        "gating_size": 16,
        "kernel": 3,
        "languages": 3,
        "language_block": 1,
    },
    "whisper_qformer": {
        "type": "whisper_qformer",
        "queries": 4,
        "decoder_layers": 1,
        "languages": ["en", "zh"],
        "gate": "conv",
        "gate_size": 8,
    },
}
FEATURES_SCRIPT = """
import json, sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("speechllm", "modeling_speechllm", "processing_speechllm", "hub_cards"):
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Absent())
import torch
from transformers import AutoModel
features = torch.linspace(-1, 1, 8 * 60).view(1, 8, 60)
found = {}
for name in sys.argv[1:]:
    model = AutoModel.from_pretrained(name, trust_remote_code=True)
    found[name] = model.get_audio_features(features).pooler_output.tolist()
print(json.dumps(found))
"""


@pytest.mark.slow
def test_every_connector_loads_as_remote_code(tmp_path):
    tokenizer, expected = make_tokenizer(), {}
    features = torch.linspace(-1, 1, 8 * 60).view(1, 8, 60)
    assert set(CONNECTORS) == set(KNOWN_CONNECTORS)
    for name, settings in CONNECTORS.items():
        model = tiny_speechllm(
            text=text_config(vocab_size=len(tokenizer)), audio_token_id=len(tokenizer), connector=settings
        )
        processor = SpeechLLMProcessor.from_parts(WhisperFeatureExtractor(feature_size=8), tokenizer, model.config)
        export_remote_code(model, processor, tmp_path / name)
        expected[name] = model.get_audio_features(features).pooler_output
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(tmp_path / "modules"), "PYTHONPATH": ""}
    command = [sys.executable, "-c", FEATURES_SCRIPT, *CONNECTORS]
    run = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout.strip().splitlines()[-1])
    for name, values in expected.items():
        torch.testing.assert_close(torch.tensor(found[name]), values, rtol=0, atol=1e-5, msg=name)
