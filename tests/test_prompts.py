"""The prompt pools that targets are drawn from: what is packaged, what a file may say, and templates by sentinel."""

import random
from collections import Counter

import pytest

from processing_speechllm.chat_messages import instruction_chat
from trainers.targets.prompts import (
    SENTINEL,
    TEMPLATE_FOLDER,
    by_language,
    draw_prompts,
    load_tasks,
    save_tasks,
    select_prompts,
    templates_from_prompts,
    user_turn,
)

LANGUAGES = {"en", "zh", "vi", "id", "es", "de"}
POOL = "greet:\n  prompts:\n    en: {1: Say hello., 2: Greet them.}\n    de: {1: Grüße.}\n"


def pool(folder, text, name="pool.yaml"):
    (folder / name).write_text(text, encoding="utf-8")
    return folder


def test_the_packaged_pool_is_as_large_as_promised():
    tasks = load_tasks()
    assert len(tasks) >= 15
    for task in tasks:
        counts = Counter(prompt.language for prompt in task.prompts)
        assert set(counts) == LANGUAGES, task.name
        assert counts["en"] >= 8 and min(counts.values()) >= 2, task.name
        assert task.description, task.name
    assert 3 <= sum(task.held_out for task in tasks) <= len(tasks) // 4


def test_packaged_tasks_hold_a_prompt_out_in_every_language_and_keep_more_to_train_on():
    for task in (task for task in load_tasks() if not task.held_out):
        counts = Counter((prompt.language, prompt.held_out) for prompt in task.prompts)
        assert all(counts[language, True] and counts[language, False] >= 2 for language in LANGUAGES), task.name
        assert counts["en", False] >= 8, task.name


def test_every_packaged_template_says_where_the_speech_stands():
    templates = load_tasks(TEMPLATE_FOLDER)
    assert all("{audio}" in prompt.text for task in templates for prompt in task.prompts)
    assert {prompt.language for task in templates for prompt in task.prompts} == LANGUAGES
    assert sum(len(task.prompts) for task in templates) >= 50
    assert len(select_prompts(templates, "unseen_prompts")) == len(templates)


def test_the_three_sides_of_the_held_out_marks_share_nothing_and_leave_nothing_out():
    tasks = load_tasks()
    sides = {side: select_prompts(tasks, side) for side in ("train", "unseen_prompts", "unseen_tasks")}
    ids = {side: {prompt.id for task in chosen for prompt in task.prompts} for side, chosen in sides.items()}
    assert sum(map(len, ids.values())) == len(set.union(*ids.values())) == sum(len(task.prompts) for task in tasks)
    names = {side: {task.name for task in chosen} for side, chosen in sides.items()}
    assert names["train"] == names["unseen_prompts"] and not names["train"] & names["unseen_tasks"]


def test_ids_stay_when_a_prompt_goes(tmp_path):
    (task,) = load_tasks(pool(tmp_path, POOL))
    assert [prompt.id for prompt in task.prompts] == ["greet/en/1", "greet/en/2", "greet/de/1"]
    (task,) = load_tasks(pool(tmp_path, POOL.replace("1: Say hello., ", "")))
    assert [prompt.id for prompt in task.prompts] == ["greet/en/2", "greet/de/1"]


@pytest.mark.parametrize(
    ("text", "finding"),
    [
        (POOL.replace("prompts", "promts"), "unknown key 'promts'. Did you mean 'prompts'?"),
        (POOL + "  held_out: maybe\n", "true or false, not 'maybe'"),
        (POOL + "  held_out_prompts: [en/3]\n", "names 'en/3'. Did you mean 'en/2'?"),
        (POOL.replace("2: Greet them.", "1: Greet them."), "1 stands twice"),
        (POOL + POOL, "'greet' stands twice"),
        (POOL.replace("Greet them.", "say HELLO."), "greet/en/1 and greet/en/2 have the same wording"),
        (POOL.replace("de:", "no:"), 'the language False is no text. Put it in quotes, as in "no"'),
        (POOL.replace("Grüße.", "17"), "must be text, not 17"),
        (POOL.replace("{1: Grüße.}", "[Grüße.]"), "must be numbered"),
        (POOL.replace("Grüße.", "'{audio} {audio}'"), "more than once"),
        (POOL.replace("Grüße.", "'Auf {language}!'"), "needs language_names for de"),
        ("greet: [", "expected the node content"),
        ("- greet\n", "must be a mapping"),
    ],
)
def test_a_faulty_pool_is_refused_with_file_and_finding(tmp_path, text, finding):
    with pytest.raises(ValueError) as error:
        load_tasks(pool(tmp_path, text))
    assert finding in str(error.value) and str(tmp_path) in str(error.value)


def test_a_task_may_stand_in_one_file_only(tmp_path):
    pool(tmp_path, POOL, "first.yaml")
    with pytest.raises(ValueError, match="second.yaml: task 'greet' is also in first.yaml"):
        load_tasks(pool(tmp_path, POOL, "second.yaml"))
    with pytest.raises(ValueError, match="No YAML files"):
        load_tasks(tmp_path / "empty")


def test_an_unknown_task_or_an_empty_choice_is_refused():
    with pytest.raises(ValueError, match="no 'sumarise'. Did you mean 'summarise'"):
        select_prompts(load_tasks(), names=["sumarise"])
    with pytest.raises(ValueError, match="no 'fr'"):
        select_prompts(load_tasks(), languages=["fr"])
    with pytest.raises(ValueError, match="left of title with prompt_split='train'"):
        select_prompts(load_tasks(), names=["title"])


def test_an_instruction_is_laid_out_as_the_pipeline_does():
    assert user_turn("What is said?", 2) == instruction_chat([None, None], "What is said?")


def test_a_template_stands_around_the_speech():
    (message,) = user_turn('Say "{audio}" in German.', 2)
    parts = [block.get("text", block["type"]) for block in message["content"]]
    assert parts == ['Say "', "audio", "\n", "audio", '" in German.']
    assert user_turn("", 1) == user_turn("{audio}", 1) == [{"role": "user", "content": [{"type": "audio"}]}]


def test_a_translation_is_never_asked_into_the_spoken_language():
    prompts = [prompt for task in load_tasks() if task.name == "translate" for prompt in task.prompts]
    for prompt in prompts:
        wordings = {prompt.wording(["de"], random.Random(seed))[0] for seed in range(100)}
        names = prompt.language_names
        assert wordings == {prompt.text.replace("{language}", names[code]) for code in names if code != "de"}


def test_a_row_s_prompts_are_of_different_tasks_as_far_as_they_go():
    tasks = select_prompts(load_tasks(), names=["repeat", "topic"], languages=["de"])
    drawn = draw_prompts(tasks, 4, random.Random(0))
    assert {task.name for task, _ in drawn[:2]} == {"repeat", "topic"}
    assert len({prompt.id for _, prompt in drawn}) == 4
    with pytest.raises(ValueError, match="5 different prompts per row are asked for, but the pool has 4"):
        draw_prompts(tasks, 5, random.Random(0))


def test_weights_give_the_packaged_templates_the_authors_share_of_translations():
    tasks = by_language(select_prompts(load_tasks(TEMPLATE_FOLDER)))["en"]
    rng = random.Random(0)
    drawn = [draw_prompts(tasks, 2, rng, {"template_translate": 95}) for _ in range(2000)]
    assert all(first[1] != second[1] for first, second in drawn)
    share = sum(task.name == "template_translate" for pair in drawn for task, _ in pair) / 4000
    assert share == pytest.approx(0.95, abs=0.012)  # three deviations of 4,000 draws
    even = [draw_prompts(tasks, 2, rng) for _ in range(2000)]
    share = sum(task.name == "template_translate" for pair in even for task, _ in pair) / 4000
    assert share == pytest.approx(1 / len(tasks), abs=0.02)


def test_templates_are_split_at_the_sentinel_and_the_others_counted(tmp_path):
    prompts = [
        f"Summary of {SENTINEL}:",
        lambda text: f"{text}\nIs this {{spam}}?",
        "No place for the text.",
        lambda text: f"{text} and again {text}",
        f"summary  of {SENTINEL}:",
        f"{{language}} {SENTINEL}",
    ]
    task, counts = templates_from_prompts(prompts)
    assert [(prompt.id, prompt.text) for prompt in task.prompts] == [
        ("collection/en/1", "Summary of {audio}:"),
        ("collection/en/2", "{audio}\nIs this {spam}?"),
    ]
    assert counts == {"kept": 2, "no_sentinel": 1, "several_sentinels": 1, "duplicate": 1, "reserved": 1}
    with pytest.raises(ValueError, match="None of 1 prompts"):
        templates_from_prompts(["nothing"])
    save_tasks([task], tmp_path / "collection.yaml")
    assert load_tasks(tmp_path) == [task]


def test_saved_tasks_read_back_the_same(tmp_path):
    tasks = load_tasks()
    save_tasks(tasks, tmp_path / "all.yaml")
    assert load_tasks(tmp_path) == tasks
