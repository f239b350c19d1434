"""What all rows begin with is read once, and neither a loss nor a gradient tells."""

import copy

import pytest
import torch
from conftest import VOCABULARY, random_audio, scatter_weights
from datasets import Dataset
from factories_training import tiny_parts, tone_rows
from test_ctc_compress import prompt, reader
from test_text_only import FAMILIES, LLAMA_LIKE
from test_trainers import build
from transformers import AutoModel, CTRLConfig, Gemma3TextConfig, GptOssConfig, LlamaConfig, OlmoeConfig
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from trainers.checkpoints.lora import lora_config
from trainers.objectives.speech_inputs import connect, embed_prompts, read_prompts
from trainers.speed import attention, prefix
from trainers.speed.attention import attention_with_products
from trainers.speed.prefix import SharedPrefix, common_places, read_on

CLOSE = {"rtol": 1e-5, "atol": 1e-5}
COMMON = 11  # places that rows begin with


def rows_of_ids(rows=3, places=24, seed=0):
    """(rows, places) ids, of which the first are the same in all rows, and their mask: the second row is shorter."""
    ids = torch.randint(3, VOCABULARY, (rows, places), generator=torch.Generator().manual_seed(seed))
    ids[:, :COMMON] = ids[0, :COMMON].clone()
    ids[:, COMMON] = torch.arange(rows) + 3
    mask = torch.ones_like(ids)
    if rows > 1:
        ids[1, -5:] = mask[1, -5:] = 0
    return ids, mask


def frozen(config, **kwargs):
    torch.manual_seed(0)
    llm = AutoModel.from_config(copy.deepcopy(config), **kwargs)
    return scatter_weights(llm).eval().requires_grad_(False)


def embed(llm, ids):
    return llm.get_input_embeddings()(ids).detach()


def both_ways(llm, ids, mask, found):
    """States, and gradients of the embeddings behind the prefix, of whole rows and of rows read on from `found`."""
    results = []
    sizes = embed(llm, ids).shape  # OPT's states are as wide as its embeddings
    weights = torch.randn(sizes, generator=torch.Generator().manual_seed(1))
    for given in (None, found):
        embeddings = embed(llm, ids).requires_grad_()
        states = read_on(llm, given, embeddings) * mask[..., None]
        (states * weights).sum().backward()
        results.append((states.detach(), embeddings.grad[:, len(found) :]))
    return results


# LLMs

MORE = {
    "sliding window": Gemma3TextConfig(**LLAMA_LIKE | {"num_hidden_layers": 6}, head_dim=8, sliding_window=13),
    "experts": OlmoeConfig(**LLAMA_LIKE, num_experts=4, num_experts_per_tok=2),
    "attention sinks": GptOssConfig(**LLAMA_LIKE, head_dim=8, num_local_experts=4, sliding_window=13),
}
SHARING = {name: config for name, config in FAMILIES.items() if name != "mamba"} | MORE


@pytest.mark.parametrize("family", SHARING)
def test_states_and_gradients_are_those_of_whole_rows_for_every_family(family):
    llm, (ids, mask) = frozen(SHARING[family]), rows_of_ids()
    found = SharedPrefix().of(llm, ids, mask, embed(llm, ids))
    assert len(found) == COMMON
    whole, parts = both_ways(llm, ids, mask, found)
    assert whole[1].abs().max() > 0.1
    torch.testing.assert_close(parts, whole, rtol=1e-5, atol=1e-5 * float(whole[1].abs().max()))


def test_eager_attention_shares_too():
    llm, (ids, mask) = frozen(SHARING["llama"], attn_implementation="eager"), rows_of_ids()
    whole, parts = both_ways(llm, ids, mask, SharedPrefix().of(llm, ids, mask, embed(llm, ids)))
    torch.testing.assert_close(parts, whole, rtol=1e-5, atol=1e-5 * float(whole[1].abs().max()))


REFUSED = {
    "a state in place of keys": FAMILIES["mamba"],
    "rotations that follow the length": LlamaConfig(
        **LLAMA_LIKE, rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}
    ),
    "a window that is too short": Gemma3TextConfig(**LLAMA_LIKE, head_dim=8, sliding_window=6),
    "looks ahead": Gemma3TextConfig(**LLAMA_LIKE, head_dim=8, use_bidirectional_attention=True),
    "cannot read on": CTRLConfig(vocab_size=VOCABULARY, n_embd=32, dff=64, n_layer=2, n_head=4, n_positions=64),
}


@pytest.mark.parametrize("case", REFUSED)
def test_where_the_first_places_cannot_be_shared_rows_are_read_whole(case):
    llm, (ids, mask) = frozen(REFUSED[case]), rows_of_ids()
    shared = SharedPrefix()
    assert shared.of(llm, ids, mask, embed(llm, ids)) is None
    assert shared.of(llm, ids, mask, embed(llm, ids)) is None


@pytest.mark.parametrize("change", ["trained", "one weight trained", "training mode", "switched off"])
def test_an_llm_that_changes_or_drops_out_does_not_share(change):
    llm, (ids, mask) = frozen(SHARING["llama"]), rows_of_ids()
    shared = SharedPrefix(wanted=change != "switched off")
    if change == "one weight trained":
        llm.layers[0].mlp.up_proj.weight.requires_grad_()
    llm.requires_grad_(True) if change == "trained" else None
    llm.train(change == "training mode")
    assert shared.of(llm, ids, mask, embed(llm, ids)) is None


# Batches


def test_the_prefix_ends_where_rows_differ_where_audio_begins_and_where_the_shortest_row_ends():
    llm, (ids, mask) = frozen(SHARING["llama"]), rows_of_ids()
    assert common_places(ids) == COMMON
    audio = torch.zeros_like(ids, dtype=torch.bool)
    audio[1, 9] = True
    assert len(SharedPrefix().of(llm, ids, mask, embed(llm, ids), audio)) == 9
    same = ids[:1].expand(3, -1)
    short = torch.ones_like(same)
    short[2, 10:] = 0
    assert len(SharedPrefix().of(llm, same, short, embed(llm, same))) == 10
    assert len(SharedPrefix().of(llm, same, mask * 0 + 1, embed(llm, same))) == ids.shape[1] - 1  # something is left
    other = ids.clone()
    other[2, prefix.SHORTEST - 1] = 3
    other[1, prefix.SHORTEST - 1] = 4
    assert SharedPrefix().of(llm, other, mask, embed(llm, other)) is None
    none = ids[:0], mask[:0], embed(llm, ids[:0])
    assert SharedPrefix().of(llm, *none) is None


def watched(llm):
    """A list that grows by (rows, places) of what the LLM reads, pass by pass."""
    shapes = []

    def note(module, args, kwargs):
        shapes.append(tuple(kwargs["inputs_embeds"].shape[:2]))

    llm.register_forward_pre_hook(note, with_kwargs=True)
    return shapes


def test_a_prefix_is_read_once_for_all_steps_and_nothing_is_added_to_it():
    llm, (ids, mask) = frozen(SHARING["llama"]), rows_of_ids()
    shared = SharedPrefix()
    first = shared.of(llm, ids, mask, embed(llm, ids))
    shapes = watched(llm)
    expected = read_on(llm, first, embed(llm, ids))
    for _ in range(2):
        found = shared.of(llm, ids, mask, embed(llm, ids))
        assert torch.equal(read_on(llm, found, embed(llm, ids)), expected)
        assert all(part.shape[:3] == (1, 2, COMMON) for layer in found.states for part in layer)
    assert shapes == [(3, ids.shape[1] - COMMON)] * 3


def test_as_much_of_it_is_taken_as_a_batch_has_in_common_with_it():
    llm, (ids, mask) = frozen(SHARING["llama"]), rows_of_ids()
    shared = SharedPrefix()
    shared.of(llm, ids, mask, embed(llm, ids))
    shapes = watched(llm)
    other = ids.clone()
    other[:, 9] = torch.tensor([3, 4, 5])
    found = shared.of(llm, other, mask, embed(llm, other))
    assert len(found) == 9 and shapes == []
    whole, parts = both_ways(llm, other, mask, found)
    torch.testing.assert_close(parts, whole, rtol=1e-5, atol=1e-5 * float(whole[1].abs().max()))
    shapes.clear()
    longer = ids.clone()
    longer[:, COMMON] = 3  # it has one place more in common
    assert len(shared.of(llm, longer, mask, embed(llm, longer))) > COMMON and shapes == [(1, common_places(longer))]
    alone = ids[:1]  # a row alone is the same all through, which says nothing of others
    assert len(shared.of(llm, alone, mask[:1], embed(llm, alone))) >= COMMON and len(shapes) == 1


def test_a_prefix_of_other_weights_is_forgotten():
    llm, (ids, mask) = frozen(SHARING["llama"]), rows_of_ids()
    shared = SharedPrefix()
    before = shared.of(llm, ids, mask, embed(llm, ids))
    with torch.no_grad():
        llm.layers[1].self_attn.k_proj.weight.mul_(2.0)
    changed = shared.of(llm, ids, mask, embed(llm, ids))
    assert not torch.equal(before.states[1][0], changed.states[1][0])
    llm.to(torch.bfloat16)
    assert shared.of(llm, ids, mask, embed(llm, ids)).states[0][0].dtype == torch.bfloat16
    other = frozen(SHARING["qwen2"])
    whole, parts = both_ways(other, ids, mask, shared.of(other, ids, mask, embed(other, ids)))
    torch.testing.assert_close(parts, whole, rtol=1e-5, atol=1e-5 * float(whole[1].abs().max()))


# Connectors that leave audio tokens out


def test_left_out_places_are_closed_up_behind_the_prefix():
    model = reader()
    model.freeze("encoder", "llm")
    features, features_mask = random_audio(model, [34, 20])
    lengths = model.get_audio_features(features, features_mask).connector.lengths.tolist()
    ids, mask = prompt(model, lengths)
    system = torch.arange(3, 13).expand(2, -1)  # rows of `prompt` are padded in front: bring them behind
    rows = [torch.cat([system[0], row[kept.bool()]]) for row, kept in zip(ids, mask, strict=True)]
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
    batch = {"input_ids": ids, "attention_mask": mask, "dummy_audio": False, "language": None}
    batch |= {"input_features": features, "input_features_mask": features_mask}
    table, results = model.model.multi_modal_projector.table.weight, []
    for wanted in (False, True):
        inputs = embed_prompts(model, batch, connect(model, batch))
        assert not inputs["attention_mask"].equal(mask)  # something is left out
        audio = model.model.get_placeholder_mask(ids)
        shared = SharedPrefix(wanted)
        found = shared.of(model.model.language_model, ids, mask, inputs["inputs_embeds"], audio)
        assert len(found) >= 10 if wanted else found is None
        hidden = read_prompts(model, inputs, found)
        (hidden.sin() * inputs["attention_mask"][..., None]).sum().backward()
        results.append((hidden.detach() * inputs["attention_mask"][..., None], table.grad.clone()))
        table.grad = None
    assert results[0][1].abs().sum() > 0
    torch.testing.assert_close(*results, rtol=1e-4, atol=2e-5)


# Trainers


def chats(count=4, text_alone=False):
    """Rows of tones whose chats begin with the same system prompt, and which differ in length."""
    system = {"role": "system", "content": [{"type": "text", "text": "transcribe the audio hello world"}]}
    rows = [dict(row) for row in tone_rows(count, answered=True)]
    for number, row in enumerate(rows):
        question, answer = row["messages"]
        answer["content"][0]["text"] += " world" * number
        row["words"] = [
            {"start": 0.1 * place, "end": 0.1 * place + 0.1, "word": word}
            for place, word in enumerate(row["text"].split())
        ]
        if text_alone and number % 2:
            row["audio"] = row["language"] = None
            question["content"] = [{"type": "text", "text": "hello what is the"}]
        row["messages"] = [system, question, answer]
    return Dataset.from_list(rows)


def losses_and_gradients(trainer, batch):
    trainer.model.zero_grad()
    trainer.model.train()
    terms = trainer.terms(trainer.model, batch)
    trainer.compute_loss(trainer.model, batch).backward()
    gradients = {name: p.grad.clone() for name, p in trainer.model.named_parameters() if p.grad is not None}
    return {name: term.total.detach() for name, term in terms.items()}, gradients


CASES = {
    "cross-entropy": ("imitation", {}),
    "divergence": ("imitation-divergence", {"end_token_weight": 1.0}),
    "divergence alone": ("imitation-divergence", {"cross_entropy_weight": 0.0, "divergence": "jsd"}),
    "states and embeddings": ("distillation", {}),
    "answers distilled": ("distillation-response", {}),
    "a row alone": ("imitation-divergence", {"per_device_train_batch_size": 1}),
    "words as text": ("imitation", {"span_probability": 1.0, "span_words": [1, 1]}),
    "rows of text alone": ("imitation-divergence", {}),
}


@pytest.mark.parametrize("case", CASES)
def test_losses_and_gradients_of_a_training_are_the_same(case, tmp_path):
    kind, settings = CASES[case]
    rows = chats(text_alone=case == "rows of text alone")
    trainer = build(kind, tmp_path, rows, train_sampling_strategy="random", **settings)
    batch = next(iter(trainer.get_train_dataloader()))
    assert ("audio_keep" in batch) == (case == "words as text")
    shapes = watched(trainer.model.model.language_model)
    shared, gradients = losses_and_gradients(trainer, batch)
    assert shapes[-1][1] < batch["input_ids"].shape[1] - prefix.SHORTEST
    trainer.shared_prefix.wanted = False
    expected, expected_gradients = losses_and_gradients(trainer, batch)
    torch.testing.assert_close(shared, expected, **CLOSE)
    assert gradients.keys() == expected_gradients.keys() and len(gradients) > 1
    torch.testing.assert_close(gradients, expected_gradients, **CLOSE)


def test_the_teacher_s_top_k_from_a_cache_gives_the_same(tmp_path):
    from trainers.cache.config import EncodeConfig
    from trainers.cache.encode import encode_dataset
    from trainers.commands.teacher_prompts import make_teacher_inputs

    model, processor = tiny_parts()
    rows, cache = chats(), str(tmp_path / "cache")
    instruction = build("imitation", tmp_path).args.transcription_instruction
    config = EncodeConfig(output_dir=cache, teacher="top_k", top_k=8, temperature=2.0, instruction=instruction)
    encode_dataset(model, processor, rows, config, make_teacher_inputs(processor, config))
    settings = {"frames_cache": cache, "cached_teacher": True, "top_k": 8}
    trainer = build("imitation-divergence", tmp_path, rows, model, processor, **settings)
    batch = next(iter(trainer.get_train_dataloader()))
    shapes = watched(model.model.language_model)
    shared = losses_and_gradients(trainer, batch)
    assert shapes[-1][1] < batch["input_ids"].shape[1] - prefix.SHORTEST
    trainer.shared_prefix.wanted = False
    torch.testing.assert_close(shared, losses_and_gradients(trainer, batch), **CLOSE)


def test_a_whole_training_reads_it_once_and_evaluates_with_it(tmp_path):
    curves = {}
    for share in (True, False):
        rows = chats(8)
        trainer = build("imitation-divergence", tmp_path / str(share), rows, eval_rows=rows, share_prefix=share)
        shapes = watched(trainer.model.model.language_model)
        trainer.train()
        curves[share] = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        curves[share].append(trainer.evaluate()["eval_loss"])
        prefixes = [shape for shape in shapes if shape[0] == 1]
        assert len(prefixes) <= 5 if share else not prefixes  # the check reads twice more, a chance word once
    assert curves[True] == pytest.approx(curves[False], rel=1e-5)


def test_with_adapters_on_the_llm_rows_are_read_whole(tmp_path):
    model, processor = tiny_parts()
    peft = lora_config(model, ["llm"], rank=2)
    trainer = build("imitation-divergence", tmp_path, chats(), model, processor, peft)
    batch = next(iter(trainer.get_train_dataloader()))
    shapes = watched(trainer.speech_model.model.language_model)
    losses_and_gradients(trainer, batch)
    widths = {batch["input_ids"].shape[1], batch["teacher_input_ids"].shape[1]}
    assert {shape[1] for shape in shapes} == widths


def test_where_activations_are_computed_again_the_teacher_alone_shares(tmp_path):
    trainer = build("imitation-divergence", tmp_path, chats(), gradient_checkpointing=True, max_steps=1)
    shapes = watched(trainer.model.model.language_model)
    trainer.train()
    batch = next(iter(trainer.get_train_dataloader()))
    student, teacher = (batch[f"{name}input_ids"].shape[1] for name in ("", "teacher_"))
    assert (4, student) in shapes and not any(shape == (4, teacher) for shape in shapes)


# Attention


def test_the_backward_pass_by_products_takes_queries_that_follow_other_keys(monkeypatch):
    torch.manual_seed(0)
    ran, apply = [], attention.BackwardByProducts.apply
    monkeypatch.setattr(attention.BackwardByProducts, "apply", lambda *args: ran.append(1) or apply(*args))
    module = torch.nn.Module()
    module.num_key_value_groups, module.is_causal = 2, True
    mask = torch.ones(5, 9, dtype=torch.bool).tril(4)[None, None].expand(3, 1, 5, 9)
    for given in (mask, None):
        results = []
        for function in (sdpa_attention_forward, attention_with_products):
            generator = torch.Generator().manual_seed(0)
            heads = [(4, 5), (2, 9), (2, 9)]
            tensors = [torch.randn(3, *size, 8, generator=generator).bfloat16().requires_grad_() for size in heads]
            output, _ = function(module, *tensors, given)
            output.float().sin().sum().backward()
            results.append((output, *(tensor.grad for tensor in tensors)))
        torch.testing.assert_close(*results, rtol=2e-2, atol=1e-2)
    assert len(ran) == 1  # without a mask PyTorch's own begins at the first key
