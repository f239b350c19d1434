"""The cache gives what the encoder and the LLM give, whole after any kill, and only to the model it was made with."""

import pickle
from dataclasses import asdict

import datasets
import pytest
import torch
from conftest import feature_extractor, scatter_weights, text_config, tiny_speechllm, whisper_config
from factories_processing import RATE, encoded, make_tokenizer, sine
from torch.utils.data import DataLoader
from transformers import HfArgumentParser, LlamaForCausalLM, WhisperForConditionalGeneration

from processing_speechllm import AudioError, SpeechLLMProcessor
from trainers.cache import encode
from trainers.cache import store as cache_store
from trainers.cache.config import EncodeConfig
from trainers.cache.encode import encode_dataset, encode_share, write_indexes
from trainers.cache.fingerprint import encoder_fingerprint
from trainers.cache.frame_cache import FrameCache, audio_keys, audio_token_count, pad_frames
from trainers.commands.inputs import load_speech_model
from trainers.data.bad_rows import BadRows

TOKENIZER = make_tokenizer()


def parts_of(audio="whisper", connector=None, **changes):
    """A tiny model with a frozen encoder, and its processor."""
    text = text_config(vocab_size=len(TOKENIZER) + 1)
    model = tiny_speechllm(audio, text, connector, audio_token_id=len(TOKENIZER), **changes)
    model.freeze("encoder", "llm")
    return model, SpeechLLMProcessor.from_parts(feature_extractor(audio), TOKENIZER, model.config)


def rows_of(*seconds, start=0):
    """Rows r0, r1, ... of sines, each of another pitch."""
    return [
        {"id": f"r{number}", "audio": (sine(length, frequency=200 + 50 * number), RATE), "text": f"hello {number}"}
        for number, length in enumerate(seconds, start)
    ]


def config_of(folder, **changes):
    settings = {"storage_dtype": "float32", "batch_seconds": 1.0, "decoding_threads": 0}
    return EncodeConfig(output_dir=str(folder), **settings | changes)


ROWS = rows_of(0.5, 0.11, 0.93, 0.3, 0.25, 0.72, 0.4)


def connected(model, frames, lengths):
    output = model.model.multi_modal_projector(frames, lengths)
    return [row[:length] for row, length in zip(output.embeddings, output.lengths, strict=True)]


def heard(model, processor, rows):
    """Encoder frames of a batch, layer by layer where the connector mixes layers."""
    inputs = processor(text=[processor.audio_token] * len(rows), audio=[row["audio"] for row in rows])
    output = model.model.audio_tower(
        inputs["input_features"], inputs["input_features_mask"], model.model.audio_layers or None
    )
    return [row[:length] for row, length in zip(output.last_hidden_state, output.lengths, strict=True)]


def online(model, processor, rows):
    """Connector embeddings of a batch, as the model's own forward makes them."""
    texts, audios = [processor.audio_token] * len(rows), [row["audio"] for row in rows]
    inputs = processor(text=texts, audio=audios)
    output = model.model.get_audio_features(inputs["input_features"], inputs["input_features_mask"]).connector
    return [row[:length] for row, length in zip(output.embeddings, output.lengths, strict=True)]


CASES = {
    "whisper": ("whisper", None, {}),
    "whisper, whole windows": ("whisper", None, {"pad_to_window": True}),
    "whisper, all layers": ("whisper", {"type": "stack_mlp", "stride": 4, "layers": "all"}, {}),
    "waveform": ("hubert", None, {}),
    "waveform, all layers": ("wav2vec2-layer-norm", {"type": "stack_mlp", "stride": 4, "layers": "all"}, {}),
}


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_embeddings_from_the_cache_are_those_made_on_line(case, tmp_path):
    model, processor = parts_of(*CASES[case][:2], **CASES[case][2])
    rows = [ROWS[2], ROWS[0], ROWS[1]]  # the longest first, as they are encoded: the same batch sums alike
    expected = online(model, processor, rows)
    # float32 holds the frames exactly; float16 rounds each to 11 bits. Layers are mixed window by window on line and
    # in one piece from the cache, which some processors sum in another order.
    exact = 1e-5 if "all layers" in case else 0
    for dtype, close in (("float32", {"rtol": 0, "atol": exact}), ("float16", {"rtol": 0, "atol": 5e-3})):
        folder = tmp_path / dtype
        encode_dataset(model, processor, rows, config_of(folder, storage_dtype=dtype, batch_seconds=60))
        cache = FrameCache(folder)
        cache.check(model, processor)
        frames, lengths = pad_frames([cache.frames(row["id"]) for row in rows])
        assert frames.dtype == getattr(torch, dtype)
        if dtype == "float32":
            for row, length, known in zip(frames, lengths, heard(model, processor, rows), strict=True):
                assert torch.equal(row[:length], known)
        for made, known in zip(connected(model, frames.float(), lengths), expected, strict=True):
            torch.testing.assert_close(made, known, **close)
        counts = [audio_token_count(processor, cache.frame_count(row["id"])) for row in rows]
        assert counts == [len(known) for known in expected]


@torch.no_grad()
def test_batches_shards_and_threads_change_nothing(tmp_path):
    model, processor = parts_of()
    encode_dataset(model, processor, ROWS, config_of(tmp_path / "one", batch_seconds=100))
    settings = {"batch_seconds": 0.9, "shard_bytes": 3000, "decoding_threads": 3}
    report = encode_dataset(model, processor, iter(ROWS), config_of(tmp_path / "many", **settings))
    one, many = FrameCache(tmp_path / "one"), FrameCache(tmp_path / "many")
    assert len(list((tmp_path / "many" / "frames").glob("*.safetensors"))) > 2
    assert (report.rows, report.audios, len(many)) == (7, 7, 7)
    assert report.audio_seconds == pytest.approx(3.21) == sum(many.seconds(row["id"]) for row in ROWS)
    for row in ROWS:
        # The same sums in batches of another width.
        torch.testing.assert_close(many.frames(row["id"]), one.frames(row["id"]), rtol=0, atol=2e-5)


def kill_at(monkeypatch, step):
    """The `step`-th time that anything is about to be encoded or put in place, the process ends."""
    calls = []

    def killing(function):
        def call(*args, **kwargs):
            calls.append(1)
            if len(calls) == step:
                raise KeyboardInterrupt
            return function(*args, **kwargs)

        return call

    monkeypatch.setattr(encode, "encode_frames", killing(encode.encode_frames))
    monkeypatch.setattr(cache_store.os, "replace", killing(cache_store.os.replace))


def shards_of(folder):
    return {path.name: path.stat().st_mtime_ns for path in folder.glob("frames/*.safetensors")}


def test_a_run_killed_anywhere_goes_on_and_loses_and_doubles_nothing(tmp_path, monkeypatch):
    model, processor = parts_of()
    rows = [*ROWS, {"id": "pair", "audio": [ROWS[0]["audio"], ROWS[1]["audio"]]}]
    encode_dataset(model, processor, rows, config_of(tmp_path / "whole", shard_bytes=3000))
    whole = FrameCache(tmp_path / "whole")
    steps = 0
    for step in range(1, 100):
        folder = tmp_path / str(step)
        with monkeypatch.context() as patch:
            kill_at(patch, step)
            try:
                encode_dataset(model, processor, rows, config_of(folder, shard_bytes=3000))
                break
            except KeyboardInterrupt:
                steps = step
        shards = shards_of(folder)
        kept = cache_store.read_shards(folder / "frames", "")["items"].keys()
        report = encode_dataset(model, processor, rows, config_of(folder, shard_bytes=3000))
        assert report.kept == len({key.split("/")[0] for key in kept})
        assert report.audios == len(rows) + 1 - len(kept)
        assert shards.items() <= shards_of(folder).items()
        assert not list(folder.rglob("*.partial"))
        cache = FrameCache(folder)
        assert cache._frames.items.keys() == whole._frames.items.keys()
        for key in whole._frames.items:
            torch.testing.assert_close(cache.frames(key), whole.frames(key), rtol=0, atol=2e-5)
    assert steps > 8


def test_two_processes_fill_one_cache_and_one_process_goes_on_with_it(tmp_path):
    model, processor = parts_of()
    config = config_of(tmp_path / "two", shard_bytes=3000)
    reports = [encode_share(model, processor, ROWS[:5], config, process=number, processes=2) for number in (0, 1)]
    assert [report.rows for report in reports] == [3, 2]
    (tmp_path / "two/frames/001-00009.safetensors.partial").write_bytes(b"half of what the second was writing")
    report = encode_dataset(model, processor, ROWS, config)
    assert (report.kept, report.audios) == (5, 2)
    assert not list(tmp_path.rglob("*.partial"))
    encode_dataset(model, processor, ROWS, config_of(tmp_path / "one"))
    one, two = FrameCache(tmp_path / "one"), FrameCache(tmp_path / "two")
    assert len(one) == len(two) == 7
    for row in ROWS:
        torch.testing.assert_close(two.frames(row["id"]), one.frames(row["id"]), rtol=0, atol=2e-5)


def test_bad_rows_are_set_aside_counted_and_listed(tmp_path):
    model, processor = parts_of()
    good = {"bytes": encoded(sine(0.2)), "path": "b.wav"}
    bad = [
        {"id": "empty", "audio": {"bytes": b"", "path": "a.wav"}},
        {"id": "half", "audio": [good, {"bytes": None, "path": "gone.wav"}]},
    ]
    report = encode_dataset(model, processor, [*ROWS[:2], *bad, {"id": "text", "audio": None}], config_of(tmp_path))
    assert (report.rows, report.audios, report.bad, report.without_audio) == (5, 2, 2, 1)
    listed = BadRows(tmp_path / "bad_rows", 1.0, 1).read()
    assert [(row["id"], row["source"]) for row in listed] == [("empty", "a.wav"), ("half", "b.wav, gone.wav")]
    assert "the file is empty" in listed[0]["finding"]
    assert len(FrameCache(tmp_path)) == 2
    report = encode_dataset(model, processor, [*ROWS[:2], bad[0] | {"audio": ROWS[2]["audio"]}], config_of(tmp_path))
    assert (report.kept, report.audios, report.bad) == (2, 1, 0)  # the repaired row is tried again
    assert BadRows(tmp_path / "bad_rows", 1.0, 1).read() == []


def test_a_row_that_was_set_aside_is_bad_audio_to_who_reads_the_cache(tmp_path):
    model, processor = parts_of()
    pair = {"id": "pair", "audio": [ROWS[0]["audio"], {"bytes": None, "path": "gone.wav"}]}
    bad = {"id": "empty", "audio": {"bytes": b"", "path": "a.wav"}}
    encode_dataset(model, processor, [*ROWS[:2], pair, bad], config_of(tmp_path))
    cache = FrameCache(tmp_path)
    for key in ("empty", "pair/0", "pair/1"):
        with pytest.raises(AudioError, match="Set aside when the cache .* was written"):
            cache.frames(key)
    with pytest.raises(KeyError, match="not in the cache"):
        cache.frames("never seen")


def test_shards_are_written_by_time_too(tmp_path, monkeypatch):
    clock = iter(range(0, 10_000, 40))
    monkeypatch.setattr(cache_store.time, "monotonic", lambda: next(clock))
    model, processor = parts_of()
    config = config_of(tmp_path, shard_seconds=60, batch_seconds=0.01)
    monkeypatch.setattr(encode, "encode_frames", _killed_at(6, encode.encode_frames))
    with pytest.raises(KeyboardInterrupt):
        encode_dataset(model, processor, ROWS, config)
    kept = cache_store.read_shards(tmp_path / "frames", "")["items"]
    assert len(kept) >= 2  # of a shard that would hold a gigabyte


def _killed_at(call, function):
    calls = iter(range(1, 1000))

    def run(*arguments):
        if next(calls) == call:
            raise KeyboardInterrupt
        return function(*arguments)

    return run


def test_too_many_bad_rows_stop_the_run(tmp_path, monkeypatch):
    monkeypatch.setattr(encode, "ROWS_BEFORE_JUDGING", 20)
    model, processor = parts_of()
    rows = [*ROWS, *({"id": f"bad {number}", "audio": "nowhere.wav"} for number in range(20))]
    with pytest.raises(
        RuntimeError, match=r"17 of 24 rows .* cannot be used, .*\n- bad 0 .nowhere.wav.: nowhere.wav: no such"
    ):
        encode_dataset(model, processor, rows, config_of(tmp_path, max_bad_share=0.3, shard_bytes=1))
    report = encode_dataset(model, processor, rows, config_of(tmp_path, max_bad_share=0.9))
    assert (report.kept, report.audios, report.bad) == (7, 0, 20)


CHANGES = {
    "encoder weights": lambda model, processor: model.model.audio_tower.encoder.conv1.weight.data.mul_(1.001),
    "encoder config": lambda model, processor: setattr(model.model.audio_tower.config, "activation_function", "relu"),
    "encoder windows": lambda model, processor: setattr(model.model.audio_tower, "window", 10),
    "feature extractor": lambda model, processor: setattr(processor.feature_extractor, "dither", 1.0),
    "processor's padding": lambda model, processor: setattr(processor, "pad_to_window", True),
}


@pytest.mark.parametrize("part", CHANGES)
def test_a_cache_of_another_encoder_is_refused_and_the_part_named(part, tmp_path):
    model, processor = parts_of()
    encode_dataset(model, processor, ROWS[:2], config_of(tmp_path))
    cache = FrameCache(tmp_path)
    cache.check(model, processor)
    CHANGES[part](model, processor)
    with pytest.raises(ValueError, match=rf"another setting of: {part} \(cached .*, now [^;]*\)\. Take the model"):
        cache.check(model, processor)
    with pytest.raises(ValueError, match=f"another setting of: {part}.*Encode into another folder"):
        encode_dataset(model, processor, ROWS, config_of(tmp_path))
    assert len(FrameCache(tmp_path)) == 2


def test_another_storage_or_a_trained_encoder_is_refused(tmp_path):
    model, processor = parts_of()
    encode_dataset(model, processor, ROWS[:2], config_of(tmp_path))
    with pytest.raises(
        ValueError, match="layers .cached output, now 0 1 2.; storage dtype .cached float32, now float16"
    ):
        encode_dataset(model, processor, ROWS, config_of(tmp_path, storage_dtype="float16", layers="all"))
    model.unfreeze("encoder")
    with pytest.raises(ValueError, match="The encoder is trained.*Freeze it"):
        FrameCache(tmp_path).check(model, processor)


@pytest.mark.parametrize("audio", ["whisper", "hubert", "wavlm", "parakeet", "seamless"])
def test_saving_and_loading_keeps_the_fingerprint(audio, tmp_path):
    model, processor = parts_of(audio)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path), SpeechLLMProcessor.from_pretrained(tmp_path)
    loaded[0].config.use_cache = loaded[0].model.audio_tower.config.use_cache = False  # as a Trainer does
    assert encoder_fingerprint(*loaded) == encoder_fingerprint(model, processor)


def test_a_connector_reads_its_layers_from_a_cache_of_more(tmp_path):
    model, processor = parts_of()
    encode_dataset(model, processor, ROWS[:2], config_of(tmp_path, layers=["0", "1", "-1"]))
    cache = FrameCache(tmp_path)
    assert cache.layers == [0, 1, 2] and cache.frames("r0").shape[1:] == (3, 16)
    every = cache.frames("r0")
    cache.check(model, processor)  # reads the output alone
    assert torch.equal(cache.frames("r0"), every[:, 2])
    model.config.connector["layers"] = [2, 0]
    cache.check(model, processor)
    assert torch.equal(cache.frames("r0"), every[:, [2, 0]])
    encode_dataset(model, processor, ROWS[:2], config_of(tmp_path / "fewer", layers=[1]))
    with pytest.raises(ValueError, match=r"holds the encoder's layers \[1\], the connector reads \[2, 0\]"):
        FrameCache(tmp_path / "fewer").check(model, processor)
    with pytest.raises(ValueError, match="layers=.3. are not all from 0 to 2"):
        encode_dataset(model, processor, ROWS, config_of(tmp_path / "none", layers=[3]))


def test_what_is_not_there_is_said(tmp_path):
    model, processor = parts_of()
    with pytest.raises(ValueError, match="is not there.*Run `speechllm encode`"):
        FrameCache(tmp_path)
    encode_share(model, processor, ROWS[:2], config_of(tmp_path))
    with pytest.raises(ValueError, match="was not finished"):
        FrameCache(tmp_path)
    write_indexes(tmp_path)
    cache = FrameCache(tmp_path)
    assert "r1" in cache and "r5" not in cache
    with pytest.raises(KeyError, match="'r5' is not in the cache.*which holds 2 others. Run `speechllm encode`"):
        cache.frames("r5")
    with pytest.raises(KeyError, match="holds no teacher states"):
        cache.teacher("r1")
    with pytest.raises(ValueError, match="holds no teacher states"):
        cache.check_teacher(model, processor, "hidden")
    shard = next(tmp_path.glob("frames/*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:-4])
    with pytest.raises(ValueError, match="missing or damaged.*Delete it"):
        FrameCache(tmp_path).frames("r1")
    with pytest.raises(ValueError, match="missing or damaged.*Delete it"):
        encode_dataset(model, processor, ROWS, config_of(tmp_path))


def test_ids_must_be_there_and_of_one_row_each(tmp_path):
    model, processor = parts_of()
    pair = {"id": "r0", "audio": [ROWS[0]["audio"], ROWS[1]["audio"]]}
    for rows, finding in [
        ([*ROWS, ROWS[0]], "Two rows would be 'r0'"),
        ([ROWS[0], {"audio": None}], "Row 1 has no id"),
        ([pair, ROWS[1] | {"id": "r0/1"}], "Two rows would be 'r0/1'"),
        ([{"id": "r0", "sound": None}], "has no column `audio`, only id, sound"),
    ]:
        with pytest.raises(ValueError, match=finding):
            encode_dataset(model, processor, rows, config_of(tmp_path))
    for number in (0, 1):  # two processes that know nothing of each other
        encode_share(model, processor, [ROWS[0]], config_of(tmp_path / "a" if number else tmp_path / "b"))
    (tmp_path / "a/frames/000-00000.safetensors").rename(tmp_path / "b/frames/001-00000.safetensors")
    with pytest.raises(ValueError, match="000-00000.safetensors and 001-00000.safetensors both hold 'r0'"):
        write_indexes(tmp_path / "b")
    pairs = [(b"", ["r0"]), ([b""], ["r0/0"]), ([b"", b""], ["r0/0", "r0/1"]), ([], []), (None, [])]
    assert all(audio_keys("r0", audio) == keys for audio, keys in pairs)


def test_a_full_disk_keeps_the_shards_before_it(tmp_path, monkeypatch):
    model, processor = parts_of()
    save, written = cache_store.save_file, []

    def fill(tensors, path, **settings):
        if written:
            path.write_bytes(b"half")
            raise OSError(28, "No space left on device")
        written.append(save(tensors, path, **settings))

    with monkeypatch.context() as patch:
        patch.setattr(cache_store, "save_file", fill)
        with pytest.raises(OSError, match="No space left on device.*make room there and run the same command again"):
            encode_dataset(model, processor, ROWS, config_of(tmp_path, shard_bytes=3000))
    assert len(list(tmp_path.glob("frames/*"))) == 1
    assert encode_dataset(model, processor, ROWS, config_of(tmp_path)).kept > 0
    assert len(FrameCache(tmp_path)) == 7


def test_values_beyond_the_storage_stop_the_run(tmp_path):
    model, processor = parts_of()
    model.model.audio_tower.encoder.layer_norm.weight.data.fill_(1e5)
    with pytest.raises(ValueError, match="frames of row .* reach .*e\\+05, which float16 cannot hold.*bfloat16"):
        encode_dataset(model, processor, ROWS[:2], config_of(tmp_path / "half", storage_dtype="float16"))
    encode_dataset(model, processor, ROWS[:2], config_of(tmp_path, storage_dtype="bfloat16"))
    assert FrameCache(tmp_path).frames("r0").isfinite().all()


@pytest.mark.slow
def test_data_sets_are_read_once_and_loader_workers_share_the_cache(tmp_path):
    model, processor = parts_of()
    rows = [row | {"audio": {"bytes": encoded(row["audio"][0]), "path": None}} for row in ROWS[:4]]
    data = datasets.Dataset.from_list(rows).cast_column("audio", datasets.Audio(decode=False))
    assert encode_dataset(model, processor, data, config_of(tmp_path)).audios == 4
    assert encode_dataset(model, processor, data.to_iterable_dataset(), config_of(tmp_path)).kept == 4
    cache = FrameCache(tmp_path)
    cache.frames("r0")  # opened here before the workers fork
    known = {key: pickle.loads(pickle.dumps(cache)).frames(key) for key in ("r0", "r1", "r2", "r3")}
    loader = DataLoader(
        list(known), batch_size=2, num_workers=2, collate_fn=lambda keys: [cache.frames(k) for k in keys]
    )
    for key, frames in zip(known, [frames for batch in loader for frames in batch], strict=True):
        assert torch.equal(frames, known[key])


def teacher_inputs(rows):
    """`text` as prompt and `answer` to predict, padded on the left."""
    prompts, answers = ([TOKENIZER(row[name])["input_ids"] for row in rows] for name in ("text", "answer"))
    longest = max(len(prompt + answer) for prompt, answer in zip(prompts, answers, strict=True))
    batch = {"input_ids": [], "attention_mask": [], "labels": []}
    for prompt, answer in zip(prompts, answers, strict=True):
        padding = longest - len(prompt + answer)
        batch["input_ids"].append([0] * padding + prompt + answer)
        batch["attention_mask"].append([0] * padding + [1] * len(prompt + answer))
        batch["labels"].append([-100] * (longest - len(answer)) + answer)
    return {name: torch.tensor(values) for name, values in batch.items()}


TAUGHT = [
    row | {"answer": answer} for row, answer in zip(ROWS[:3], ["world", "what is said here", "hello"], strict=True)
]


@pytest.fixture
def capped():
    """A model whose LLM scales and caps its logits."""
    model, processor = parts_of()
    model.config.text_config.logits_scaling = 2.0
    model.config.text_config.final_logit_softcapping = 5.0
    return model, processor


@torch.no_grad()
def test_teacher_states_are_those_of_the_llm_reading_alone(capped, tmp_path):
    model, processor = capped
    for layer in model.model.language_model.layers:
        layer.self_attn.attention_dropout = 0.5
    for teacher, dtype in (("hidden", "float32"), ("top_k", "float16")):  # log-probabilities are never rounded
        model.train()
        settings = {"top_k": 7, "temperature": 2.0, "teacher_batch_size": 2, "storage_dtype": dtype}
        config = config_of(tmp_path / teacher, teacher=teacher, **settings)
        report = encode_dataset(model, processor, TAUGHT, config, teacher_inputs)
        assert (report.teacher_rows, report.audios) == (3, 3)
    hidden, top = FrameCache(tmp_path / "hidden"), FrameCache(tmp_path / "top_k")
    for row in TAUGHT:
        prompt, answer = (TOKENIZER(row[name], return_tensors="pt")["input_ids"] for name in ("text", "answer"))
        ids = torch.cat([prompt, answer], dim=1)
        states = model.model.language_model(input_ids=ids).last_hidden_state[0]
        # The same sums with other padding.
        close = {"rtol": 0, "atol": 2e-5}
        torch.testing.assert_close(hidden.teacher(row["id"])["hidden"], states[prompt.shape[1] - 1], **close)
        logits = model(input_ids=ids).logits[0, prompt.shape[1] - 1 : -1]
        values, indices = (logits / 2.0).log_softmax(-1).topk(7)
        stored = top.teacher(row["id"])
        assert len(values) == answer.shape[1] and torch.equal(stored["indices"].long(), indices)
        torch.testing.assert_close(stored["log_probabilities"], values, **close)


def test_teacher_states_are_added_to_frames_and_refused_for_another_loss(capped, tmp_path):
    model, processor = capped
    encode_dataset(model, processor, TAUGHT, config_of(tmp_path))
    config = config_of(tmp_path, teacher="top_k", top_k=7, temperature=2.0, instruction="Repeat.")
    rows = [row | {"audio": "gone.wav"} for row in TAUGHT]  # is not read again
    report = encode_dataset(model, processor, rows, config, teacher_inputs)
    assert (report.audios, report.teacher_rows, report.without_audio, report.bad) == (0, 3, 0, 0)
    assert encode_dataset(model, processor, TAUGHT, config, teacher_inputs).kept == 3
    cache = FrameCache(tmp_path)
    settings = {"teacher": "top_k", "instruction": "Repeat.", "top_k": 7, "temperature": 2.0}
    cache.check_teacher(model, processor, **settings)
    for part, change in [
        ("teacher .cached top_k 7, temperature 2.0, now top_k 8", {"top_k": 8}),
        ("teacher .* now hidden", {"teacher": "hidden"}),
        ('instruction .cached "Repeat.", now null', {"instruction": None}),
    ]:
        with pytest.raises(ValueError, match=f"another setting of: {part}"):
            cache.check_teacher(model, processor, **settings | change)
    scatter_weights(model.lm_head, seed=5)
    with pytest.raises(ValueError, match="another setting of: LLM weights"):
        cache.check_teacher(model, processor, **settings)
    cache.check(model, processor)  # the encoder is the same


def test_a_teacher_needs_texts_and_answers(capped, tmp_path):
    with pytest.raises(ValueError, match="'top_k' needs teacher_inputs"):
        encode_dataset(*capped, TAUGHT, config_of(tmp_path, teacher="top_k"))
    with pytest.raises(ValueError, match="Row 'r0' has no answer"):
        encode_dataset(*capped, [TAUGHT[0] | {"answer": ""}], config_of(tmp_path, teacher="top_k"), teacher_inputs)


def test_the_config_is_a_command_line_and_refuses_nonsense():
    parser = HfArgumentParser(EncodeConfig)
    line = '--model m --layers 0 6 12 --teacher hidden --shard_bytes 5 --connector {"type":"conv"}'
    (config,) = parser.parse_args_into_dataclasses(line.split())
    assert (config.layers, config.teacher, config.connector) == ([0, 6, 12], "hidden", {"type": "conv"})
    assert EncodeConfig(**asdict(config)) == config
    assert parser.parse_args_into_dataclasses(["--layers", "all"])[0].layers == "all"
    broken = {"connector": '{"type":'}
    for wrong in ({"storage_dtype": "int8"}, {"teacher": "other"}, {"top_k": 0}, {"layers": ["first"]}, broken):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            EncodeConfig(**wrong)


def test_what_the_config_names_is_encoded(tmp_path):
    model, processor = parts_of()
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    config = config_of(tmp_path / "cache", model=str(tmp_path / "model"), device="cpu")
    assert encode_dataset(*load_speech_model(config), ROWS[:2], config).audios == 2
    FrameCache(tmp_path / "cache").check(model, processor)
    scatter_weights(WhisperForConditionalGeneration(whisper_config())).save_pretrained(tmp_path / "whisper")
    feature_extractor("whisper").save_pretrained(tmp_path / "whisper")
    LlamaForCausalLM(text_config(vocab_size=len(TOKENIZER))).save_pretrained(tmp_path / "llm")
    TOKENIZER.save_pretrained(tmp_path / "llm")
    settings = {"audio": str(tmp_path / "whisper"), "text": str(tmp_path / "llm"), "device": "cpu"}
    connector = {"type": "stack_mlp", "stride": 2, "layers": [1, 2]}
    config = config_of(tmp_path / "parts", **settings, connector=connector)
    assert encode_dataset(*load_speech_model(config), ROWS[:2], config).audios == 2
    assert FrameCache(tmp_path / "parts").layers == [1, 2]
    with pytest.raises(ValueError, match="`model`, or both `audio`"):
        load_speech_model(config_of(tmp_path / "other", device="cpu"))
