"""Text and audio compile in one graph, and text can be exported: nothing in Python depends on the data."""

import pytest
import torch
from conftest import VOCABULARY, positions, random_audio, tiny_speechllm
from test_composite import CONNECTORS
from test_modeling import prompt

ENCODERS = ("wav2vec2-layer-norm", "w2v-bert", "parakeet", "qwen2-audio")
CLOSE = {"rtol": 0, "atol": 2e-5}


@pytest.fixture(autouse=True)
def fresh_graphs():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def inputs_of(model, name, *half_frames):
    lengths = positions(name, *half_frames)
    features, mask = random_audio(model, lengths)
    return {
        "input_ids": torch.tensor([prompt(model, lengths)]),
        "input_features": features,
        "input_features_mask": mask,
    }


def compiled(model):
    return torch.compile(model, fullgraph=True, backend="eager")


@pytest.mark.slow
def test_text_of_several_tokens_is_one_graph():
    model = tiny_speechllm()
    ids, mask = torch.tensor([[0, 5, 6, 7], [8, 9, 10, 11]]), torch.tensor([[0, 1, 1, 1], [1, 1, 1, 1]])
    found = compiled(model)(input_ids=ids, attention_mask=mask).logits
    torch.testing.assert_close(found, model(input_ids=ids, attention_mask=mask).logits, **CLOSE)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["whisper", *ENCODERS])
def test_audio_is_one_graph(name):
    model = tiny_speechllm(name)
    inputs = inputs_of(model, name, 9, 14)
    torch.testing.assert_close(compiled(model)(**inputs).logits, model(**inputs).logits, **CLOSE)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in CONNECTORS if name != "stack_mlp"])
def test_connectors_are_in_the_graph(name):
    model = tiny_speechllm(connector=CONNECTORS[name])
    inputs = inputs_of(model, "whisper", 9, 14)
    torch.testing.assert_close(compiled(model)(**inputs).logits, model(**inputs).logits, **CLOSE)


@pytest.mark.slow
def test_audio_of_several_windows_is_one_graph():
    model = tiny_speechllm()
    inputs = inputs_of(model, "whisper", 90, 30)
    torch.testing.assert_close(compiled(model)(**inputs).logits, model(**inputs).logits, **CLOSE)


@pytest.mark.slow
def test_training_is_one_graph():
    model = tiny_speechllm()
    model.freeze("encoder", "llm")
    inputs = inputs_of(model, "whisper", 9, 14)
    labels = inputs["input_ids"].masked_fill(inputs["input_ids"] == VOCABULARY, -100)
    gradients = []
    for run in (model, compiled(model)):
        model.zero_grad()
        run(**inputs, labels=labels).loss.backward()
        gradients.append([p.grad.clone() for p in model.parameters() if p.requires_grad])
    for eager, traced in zip(*gradients, strict=True):
        torch.testing.assert_close(traced, eager, **CLOSE)


def test_a_wrong_prompt_is_an_error_in_the_graph_too():
    model = tiny_speechllm()
    with pytest.raises(Exception):  # noqa: B017 - which, the compiler chooses
        compiled(model)(input_ids=torch.tensor([[5, VOCABULARY, 6]]))


class Logits(torch.nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, input_ids, attention_mask):
        return self.model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).logits


@pytest.mark.slow
def test_text_is_exported():
    model = tiny_speechllm()
    ids = torch.tensor([[5, 6, 7, 8], [9, 10, 11, 12]])
    arguments = (ids, torch.ones_like(ids))
    length = torch.export.Dim("length", min=2, max=64)
    program = torch.export.export(Logits(model), arguments, dynamic_shapes=({1: length}, {1: length}))
    longer = torch.cat([ids, ids], dim=1)
    found = program.module()(longer, torch.ones_like(longer))
    torch.testing.assert_close(found, model(input_ids=longer).logits, **CLOSE)
