"""The claims' report and command line: what is told of results, which options are refused, and what stays."""

import json
import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from test_claims import called, variant, world  # noqa: F401  fixtures

from benchmarks.claims import __main__ as claims
from benchmarks.claims import real
from benchmarks.claims.__main__ import main
from benchmarks.claims.report import (
    beside,
    cell,
    elsewhere,
    figure,
    load_results,
    lost,
    renew,
    table,
    verdict,
    write_reports,
)
from benchmarks.claims.runner import Job, mean_of, run_job
from benchmarks.claims.variants import Claim, Column, Paper, load_paper

# ruff: noqa: F811  fixtures are arguments


def test_means_leave_out_what_a_part_does_not_have():
    assert mean_of([{"a": 1, "b": {"c": 2}}, {"a": 3, "b": {}, "d": None}]) == {"a": 2, "b": {"c": 2}, "d": None}


def test_figures_are_found_by_path_and_averaged_over_what_a_star_stands_for():
    result = {"losses": {"output": 5.0}, "scores": {"six": {"groups": {"task": {}}}}}
    result["scores"]["six"]["groups"]["task"] = {
        name: {"speech": {"f1": value}, "text_bound": {"f1": 100.0}}
        for name, value in (("open en", 10.0), ("open de", 30.0), ("closed", 90.0))
    }
    assert figure(result, "six.groups.task.open *.speech.f1") == 20.0
    assert figure(result, "six.groups.task.open *.speech.f1", "text_bound") == 100.0
    assert figure(result, "losses.output") == 5.0 and figure(result, "losses.output", "text_bound") is None
    assert figure(result, "six.groups.task.none.speech.f1") is None


def test_a_column_of_one_system_has_no_figure_of_another():
    scores = {"set": {"overall": {name: {"f1": value} for name, value in (("text_bound", 80.0), ("cascade", 70.0))}}}
    columns = (Column("heard", "set.overall.speech.f1"), Column("read", "set.overall.text_bound.f1"))
    paper = replace(load_paper("lad", "nano"), columns=columns)
    results = {name: {} for name in paper.variants} | {"shared": {0: {"losses": {}, "scores": scores}}}
    assert beside(paper, results, "text_bound") == [80.0, 80.0]
    assert beside(paper, results, "cascade") == [70.0, None]


def test_a_claim_holds_where_every_seed_says_so():
    def results(*values):
        return {seed: {"losses": {"output": value}, "scores": {}} for seed, value in enumerate(values)}

    claim = Claim("lower", "-", "new", "old", "losses.output", higher=False)
    assert verdict(claim, {"new": results(4.0, 4.5), "old": results(5.0, 5.0)})[-2:] == ["2", "held"]
    assert verdict(claim, {"new": results(4.0, 5.5), "old": results(5.0, 5.0)})[-1] == "in 1 of 2 seeds"
    assert verdict(claim, {"new": results(6.0), "old": results(5.0, 5.0)})[1:] == [
        "+1.00 (+20.0 %)",
        "1",
        "did not hold (one seed)",
    ]
    assert verdict(claim, {"new": {}, "old": results(5.0)}) is None


def test_a_training_that_diverged_is_no_verdict_and_ends_no_report():
    def results(*values):
        return {seed: {"losses": {"output": value}, "scores": {}} for seed, value in enumerate(values)}

    claim, nan = Claim("lower", "-", "new", "old", "losses.output", higher=False), float("nan")
    old = {"old": results(5.0, 5.0)}
    assert verdict(claim, old | {"new": results(4.0, nan)})[-2:] == ["1", "held (one seed), not finite in 1 more"]
    assert verdict(claim, old | {"new": results(nan, nan)}) == ["", "", "0", "not finite (2)"]
    assert cell(results(4.0, 6.0, nan), Column("", "losses.output")) == "5.00 ± 1.41 (1 not finite)"
    assert cell(results(nan), Column("", "losses.output")) == "(1 not finite)"


def test_seeds_of_another_device_are_named():
    results = {"one": {0: {}, 1: {"device": "cuda"}}, "two": {0: {"device": "cpu"}, 2: {}}, "three": {}}
    assert elsewhere(None, results) == "`--device cpu`, but these seeds with cuda: `one` 1."
    assert elsewhere(None, {"one": {0: {}, 1: {}}}) == ""


def test_a_page_keeps_figures_that_the_results_do_not_have(tmp_path):
    paper = replace(load_paper("lad", "nano"), columns=(Column("a", "losses.a"), Column("b", "losses.b")))
    whole = {"trained_parameters": 1_000_000, "parts": 1, "losses": {"a": 1.0, "b": 2.0}, "scores": {}}
    results = {name: {} for name in paper.variants} | {"shared": {0: whole}}
    page = tmp_path / "page.md"
    page.write_text("\n".join(["<!-- claims: nano lad -->", *table(paper, results), "<!-- end -->"]))
    assert lost(page, "nano", paper, results) == ""
    part = results | {"shared": {0: whole | {"losses": {"a": 1.0}}}}
    assert "not here (shared)" in lost(page, "nano", paper, part)
    assert lost(page, "nano", replace(paper, columns=paper.columns[:1]), part) == ""  # it has no such column any more


@pytest.mark.parametrize(
    ("options", "finding"),
    [
        (["--limit", "0"], "'0' is no whole number from 1 on"),
        (["--steps", "-3"], "'-3' is no whole number from 1 on"),
        (["--seeds", "-1"], "'-1' is no whole number from 0 on"),
        (["--device", "tpu"], "invalid choice: 'tpu'"),
        (["--questions", "labels", "--docs", "page.md"], "leave out --steps, --limit and --questions"),
    ],
)
def test_options_that_cannot_be_are_refused(options, finding, monkeypatch, capsys, tmp_path):
    command = ["claims", "--world", "nano", "--papers", "bloomzmms", "--out", str(tmp_path), *options]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit):
        main()
    assert finding in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_what_comes_before_is_asked_of_all_seeds_before_anything_is_run(tmp_path, monkeypatch, world, capsys):
    monkeypatch.setattr(claims, "build_world", lambda arguments: world)
    monkeypatch.setattr(claims, "run_all", lambda *_: pytest.fail("something was run"))
    before = tmp_path / "nano" / "runs" / "bloomzmms" / "stage-1" / "seed-0" / "whole" / "model"
    before.mkdir(parents=True)
    (before / "config.json").write_text("{}")
    command = ["claims", "--world", "nano", "--papers", "bloomzmms", "--variants", "stage-1-T", "--seeds", "0", "1"]
    monkeypatch.setattr(sys, "argv", [*command, "--out", str(tmp_path)])
    with pytest.raises(SystemExit):
        main()
    assert "has not been run with seed 1" in capsys.readouterr().err and not list(tmp_path.rglob("manifest.json"))


def test_a_job_that_fails_leaves_a_report_and_says_how_it_goes_on(tmp_path, monkeypatch, world, capsys):
    def fail(*_):
        raise RuntimeError("speechllm imitate ended with 2")

    monkeypatch.setattr(claims, "build_world", lambda arguments: world)
    monkeypatch.setattr(claims, "run_all", fail)
    monkeypatch.setattr(sys, "argv", ["claims", "--world", "nano", "--papers", "lad", "--out", str(tmp_path)])
    with pytest.raises(SystemExit) as ended:
        main()
    told = capsys.readouterr()
    assert ended.value.code == 2 and "ended with 2\nWhat is done stays" in told.err and "lad: nothing" in told.out


def test_a_real_world_that_was_begun_is_not_gone_on_with_in_another_size(tmp_path, monkeypatch):
    monkeypatch.setattr(real, "check_sources", lambda *_: None)
    (tmp_path / "real").mkdir()
    begun = vars(real.CPU_SIZE) | {"seed": 0}
    (tmp_path / "real" / real.BEGUN).write_text(json.dumps(begun))
    with pytest.raises(ValueError, match="begun in another size: .*300.*--device of then"):
        real.build(tmp_path, Path("parents"), Path("data"), device="cuda")
    (tmp_path / "real" / real.SENTINEL).write_text(json.dumps(begun))
    assert real.build(tmp_path, Path("parents"), Path("data"), device="cuda").name == "real"  # whole: used as it is


def test_a_page_keeps_its_paragraphs_when_its_tables_are_renewed(tmp_path):
    page = tmp_path / "claims.md"
    page.write_text("before\n<!-- claims: nano lad -->\nold\n<!-- end -->\nafter\n")
    renew(page, "nano", "lad", "| new |")
    assert page.read_text() == "before\n<!-- claims: nano lad -->\n| new |\n<!-- end -->\nafter\n"
    with pytest.raises(ValueError, match="no place for nano mtbi"):
        renew(page, "nano", "mtbi", "")


def test_a_regime_that_was_looked_for_is_made_by_its_name_alone(tmp_path, monkeypatch, world):
    begun: list[str] = []
    monkeypatch.setattr(claims, "build_world", lambda arguments: world)
    monkeypatch.setattr(claims, "run_all", lambda jobs, workers, run: begun.extend(job.variant.name for job in jobs))
    command = ["claims", "--world", "nano", "--papers", "mtbi", "--seeds", "0", "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", command)
    main()
    assert "phrases-interleaved" in begun and "phrases-few-interleaved" not in begun
    begun.clear()
    monkeypatch.setattr(sys, "argv", [*command, "--variants", "phrases-few-interleaved"])
    main()
    assert begun == ["phrases-few-interleaved"]


def test_a_report_of_nothing_run_says_so_and_fails(tmp_path, monkeypatch, capsys):
    paper = Paper("paper", "Paper", "source", {"one": variant()}, ())
    assert load_results(tmp_path, "nano", paper) == {"one": {}}
    (tmp_path / "nano").mkdir()
    monkeypatch.setattr(
        sys, "argv", ["claims", "--world", "nano", "--papers", "lad", "--out", str(tmp_path), "--report"]
    )
    with pytest.raises(SystemExit) as ended:
        main()
    said = capsys.readouterr()
    assert ended.value.code == 1
    assert "lad: nothing has been run" in said.out and "no results" in said.err


def test_a_report_of_shortened_runs_says_so_and_stays_off_the_page(tmp_path, world, called, capsys):
    page = tmp_path / "claims.md"
    page.write_text("<!-- claims: nano paper -->\nold\n<!-- end -->\n")
    columns = (Column("F1", "set.overall.speech.f1"),)
    paper = Paper("paper", "Paper", "source", {"one": variant()}, columns)
    run_job(Job(tmp_path, world, variant(), seed=0))
    write_reports(tmp_path, "nano", [paper])
    report = tmp_path / "nano/report/paper.md"
    assert "| one (`one`) |" in report.read_text() and "another length" not in report.read_text()
    run_job(Job(tmp_path, world, variant(), seed=1, overrides={"max_steps": 5}, limit=2))
    write_reports(tmp_path, "nano", [paper], page)
    assert "variants' own: --limit 2, --steps 5.**" in report.read_text()
    assert "old" in page.read_text() and "keeps its tables" in capsys.readouterr().out


def test_a_page_keeps_lines_that_there_are_no_results_of(tmp_path, world, called, capsys):
    page = tmp_path / "claims.md"
    mark = "<!-- claims: nano paper -->\n| variant | trained, M | seeds | F1 |\n"
    paper = Paper("paper", "Paper", "source", {"one": variant()}, (Column("F1", "set.overall.speech.f1"),))
    run_job(Job(tmp_path, world, variant(), seed=0))
    page.write_text(f"{mark}| one (`one`) | 0.98 | 3 | 50.0 |\n<!-- end -->\n")
    write_reports(tmp_path, "nano", [paper], page)
    assert "| 50.0 |" in page.read_text() and "runs that are not here (one)" in capsys.readouterr().out
    page.write_text(f"{mark}| one (`one`) | 0.98 | 1 | 50.0 |\n| gone (`gone`) | 0.98 | 3 | 50.0 |\n<!-- end -->\n")
    write_reports(tmp_path, "nano", [paper], page)
    assert "gone" not in page.read_text() and "| one (`one`) |" in page.read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--world", "nano", "--papers", "lad", "--variants", "nosuch"],
            "no variant nosuch in lad; there are one-lang",
        ),
        (["--world", "nano", "--papers", "across", "--variants", "stack-mlp"], "--papers bloomzmms --variants TMI"),
        (["--world", "nano", "--papers", "lad", "--questions", "nosuch"], "no questions nosuch in lad; there are six"),
        (["--world", "nano", "--variants", "tasks-lora"], "tasks-lora is left out of the nano world"),
        (["--world", "nano", "--report", "--seeds", "0"], "leave out --variants, --seeds and --questions"),
        (["--world", "nano", "--workers", "0"], "argument --workers: '0' is no whole number from 1 on"),
        (["--world", "nano", "--report"], "nothing to report on"),
        (["--world", "nano", "--docs", "nosuch.md"], "nosuch.md is no file"),
        (["--world", "nano", "--docs", "docs/claims.md", "--steps", "5"], "--docs is for whole runs"),
        (["--world", "real"], "needs --parents and --data"),
        (
            ["--world", "real", "--parents", "nosuch", "--data", "none"],
            "nosuch/gemma3-270m.*none/common_voice,.*xquad",
        ),
    ],
)
def test_what_is_not_there_is_said_before_any_work(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.setattr(sys, "argv", ["claims", "--out", str(tmp_path / "out"), *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert re.search(message, capsys.readouterr().err) and not (tmp_path / "out").exists()
