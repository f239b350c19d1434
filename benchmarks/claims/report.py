"""What has been run, as tables and pictures: means and spreads over seeds, and each claim's verdict.

    OUT/WORLD/report/PAPER.md, PAPER.png    made anew from the results every time

A page (`--docs`) gets the same between its marks `<!-- claims: WORLD PAPER -->` and `<!-- end -->`; what stands
outside of them, a paragraph per claim, is its author's and stays.
"""

import json
import math
import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from benchmarks.claims.pictures import draw
from benchmarks.claims.runner import job_folder
from benchmarks.claims.variants import Claim, Column, Paper, Variant

SYSTEMS = {"text_bound": "text bound (the LLM reads)", "cascade": "cascade (the LLM reads a recogniser)"}
Results = Mapping[str, Mapping[int, Mapping[str, Any]]]  # variant, seed -> result


def load_results(out: Path, world: str, paper: Paper) -> Results:
    """The results that there are."""
    return {name: results_of(out, world, variant) for name, variant in paper.variants.items()}


def results_of(out: Path, world: str, variant: Variant) -> dict[int, dict[str, Any]]:
    """A variant's results by seed."""
    paper, _, name = (variant.same_as or f"{variant.paper}/{variant.name}").partition("/")
    found = {}
    for path in sorted(job_folder(out, world, paper, name, 0).parent.glob("seed-*/result.json")):
        found[int(path.parent.name.removeprefix("seed-"))] = json.loads(path.read_text(encoding="utf-8"))
    return found


def figure(result: Mapping[str, Any], path: str, system: str = "speech") -> float | None:
    """
    The figure at a path, `losses.NAME` or `SET.overall.SYSTEM.METRIC` and the like.

    A name with `*` stands for all that fit, whose mean is taken; `speech` in the path is replaced by `system`. None
    where the result has no such figure.
    """
    if path.startswith("losses."):
        return result["losses"].get(path.removeprefix("losses.")) if system == "speech" else None
    found: list[Any] = [result["scores"]]
    for name in path.split("."):
        name = system if name == "speech" else name
        found = [part[key] for part in found if isinstance(part, Mapping) for key in part if fnmatch(key, name)]
    numbers = [number for number in found if isinstance(number, int | float)]
    return sum(numbers) / len(numbers) if numbers else None


def figures(results: Mapping[int, Mapping[str, Any]], column: Column, system: str = "speech") -> dict[int, float]:
    """A column's figure by seed, of those that have one; see [`not_finite`]."""
    values = {seed: figure(result, column.of, system) for seed, result in results.items()}
    return {seed: value * column.times for seed, value in values.items() if value is not None and math.isfinite(value)}


def not_finite(results: Mapping[int, Mapping[str, Any]], column: Column) -> set[int]:
    """The seeds of which a figure is NaN or infinite: trainings that diverged."""
    values = {seed: figure(result, column.of) for seed, result in results.items()}
    return {seed for seed, value in values.items() if value is not None and not math.isfinite(value)}


def number(value: float) -> str:
    """A figure with about three digits."""
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}" if abs(value) >= 1 else f"{value:.3f}"


def spread(values: Sequence[float]) -> str:
    """`mean ± standard deviation`, of one seed the figure alone."""
    if not values:
        return ""
    deviation = f" ± {number(statistics.stdev(values))}" if len(values) > 1 else ""
    return f"{number(statistics.fmean(values))}{deviation}"


def cell(results: Mapping[int, Mapping[str, Any]], column: Column) -> str:
    """A variant's mean and spread, and of how many seeds there is no finite figure."""
    lost = not_finite(results, column)
    told = [spread(list(figures(results, column).values())), f"({len(lost)} not finite)" * bool(lost)]
    return " ".join(filter(None, told))


def table(paper: Paper, results: Results) -> list[str]:
    """Markdown: a line per variant that has been run, with the name that `--variants` takes, those beside it, and
    which have not been run."""
    lines = [f"| variant | trained, M | seeds | {' | '.join(column.title for column in paper.columns)} |"]
    lines.append("|---|---:|---:|" + "---:|" * len(paper.columns))
    for name, variant in paper.variants.items():
        found = results[name]
        if not found:
            continue
        sizes = {result["trained_parameters"] for result in found.values()}
        parts = next(iter(found.values()))["parts"]
        size = f"{parts} x " * (parts > 1) + "/".join(f"{size / 1e6:.2f}" for size in sorted(sizes))
        cells = [cell(found, column) for column in paper.columns]
        lines.append(f"| {variant.title} (`{name}`) | {size} | {len(found)} | {' | '.join(cells)} |")
    for system, title in SYSTEMS.items():
        values = beside(paper, results, system)
        if any(value is not None for value in values):
            cells = ["" if value is None else number(value) for value in values]
            lines.append(f"| *{title}* | | | {' | '.join(cells)} |")
    missing = [f"`{name}`" for name in paper.variants if not results[name]]
    if missing:
        lines += ["", f"Not run: {', '.join(missing)}."]
    return lines


def beside(paper: Paper, results: Results, system: str) -> list[float | None]:
    """A system's figure per column, None in those of another system. The same for all variants with the frozen LLM; of
    the first that has it."""
    frozen = [result for name, found in results.items() if not paper.variants[name].changes_llm and
              paper.variants[name].parts is None for result in found.values()]  # fmt: skip
    values = []
    for column in paper.columns:
        of_another = any(f".{name}." in column.of for name in SYSTEMS if name != system)
        known = [figure(result, column.of, system) for result in frozen if not of_another]
        values.append(next((value * column.times for value in known if value is not None), None))
    return values


def verdict(claim: Claim, results: Results) -> list[str] | None:
    """
    What came of a claim: both figures, the difference with its spread over seeds, and whether it held: in every seed
    that both variants have, in none, or in some. None where no seed has both.
    """
    column = Column("", claim.of)
    better, than = (figures(results[name], column) for name in (claim.better, claim.than))
    seeds = sorted(better.keys() & than.keys())
    lost = set().union(*(not_finite(results[name], column) for name in (claim.better, claim.than)))
    if not seeds:
        return ["", "", "0", f"not finite ({len(lost)})"] if lost else None
    differences = [better[seed] - than[seed] for seed in seeds]
    held = [difference > 0 if claim.higher else difference < 0 for difference in differences]
    base = statistics.fmean(than[seed] for seed in seeds)
    share = f" ({100 * statistics.fmean(differences) / base:+.1f} %)" if base else ""
    means = [number(statistics.fmean(values[seed] for seed in seeds)) for values in (better, than)]
    word = "held" if all(held) else "did not hold" if not any(held) else f"in {sum(held)} of {len(held)} seeds"
    word = word if any(differences) else "no difference"
    word = word if len(seeds) > 1 else f"{word} (one seed)"
    word += f", not finite in {len(lost)} more" * bool(lost)
    difference = spread(differences)
    difference = difference if difference.startswith("-") else f"+{difference}"
    return [f"{means[0]} against {means[1]}", f"{difference}{share}", str(len(seeds)), word]


def claims_table(paper: Paper, results: Results) -> list[str]:
    """Markdown: each claim with the paper's figures and those here."""
    lines = ["| claim | paper | here | difference | seeds | verdict |", "|---|---|---|---:|---:|---|"]
    for claim in paper.claims:
        found = verdict(claim, results) or ["not run", "", "0", "not run"]
        lines.append(f"| {claim.says} | {claim.paper} | {' | '.join(found)} |")
    return lines if paper.claims else []


def cost(results: Results) -> str:
    """Median seconds of a variant under one seed."""
    spent = [result["seconds"] for found in results.values() for result in found.values()]
    if not spent:
        return ""
    middle = {name: statistics.median(seconds[name] for seconds in spent) for name in ("training", "evaluation")}
    return f"Median by the clock: training {middle['training']:.0f} s, evaluation {middle['evaluation']:.0f} s."


def shortened(results: Results) -> str:
    """That results are of other `--steps` or of a `--limit`, where some are."""
    found = [result["shortened"] for seeds in results.values() for result in seeds.values() if "shortened" in result]
    asked = sorted({f"--{name} {value}" for short in found for name, value in short.items()})
    return f"**Runs of another length than the variants' own: {', '.join(asked)}.**" if asked else ""


def elsewhere(paper: Paper, results: Results) -> str:
    """Which seeds of which variants were run by another device than most, and so in another precision."""
    runs: dict[str, dict[str, list[int]]] = {}
    for name, found in results.items():
        for seed, result in found.items():
            runs.setdefault(result.get("device", "cpu"), {}).setdefault(name, []).append(seed)
    if len(runs) < 2:
        return ""
    most = max(runs, key=lambda device: sum(map(len, runs[device].values())))
    told = [
        f"with {device}: " + ", ".join(f"`{name}` {' '.join(map(str, seeds))}" for name, seeds in names.items())
        for device, names in sorted(runs.items())
        if device != most
    ]
    return f"`--device {most}`, but these seeds {'; '.join(told)}."


def block(paper: Paper, results: Results, picture: str) -> str:
    """A paper's claims, table and picture."""
    note = [text, ""] if (text := shortened(results)) else []
    parts = [*note, *claims_table(paper, results), "", *table(paper, results), ""]
    parts += [text, ""] if (text := elsewhere(paper, results)) else []
    parts += [cost(results), ""]
    return "\n".join([*parts, f"![{paper.title}]({picture})"]).strip("\n")


def write_reports(out: Path, world: str, chosen: Sequence[Paper], docs: Path | None = None) -> int:
    """Writes the reports of the papers of which something has been run, and renews the page; how many there are."""
    folder = out / world / "report"
    folder.mkdir(parents=True, exist_ok=True)
    written = 0
    for paper in chosen:
        results = load_results(out, world, paper)
        if not any(results.values()):
            print(f"{paper.name}: nothing has been run")
            continue
        known = tuple(column for column in paper.columns if any(figures(found, column) for found in results.values()))
        seen = replace(paper, columns=known)  # a panel for each column that has a figure
        systems = {name: beside(seen, results, name) for name in SYSTEMS}
        draw(paper.title, known, drawn(seen, results), systems, folder / f"{paper.name}.png")
        text = f"# {paper.title}\n\n{paper.source}; {world} world.\n\n{block(paper, results, f'{paper.name}.png')}\n"
        (folder / f"{paper.name}.md").write_text(text, encoding="utf-8")
        if docs is not None and (reason := shortened(results) or lost(docs, world, paper, results)):
            print(f"{docs} keeps its tables of {paper.name}: {reason}")
        elif docs is not None:
            picture = docs.parent / "images" / f"claims-{world}-{paper.name}.png"
            picture.parent.mkdir(parents=True, exist_ok=True)
            picture.write_bytes((folder / f"{paper.name}.png").read_bytes())
            renew(docs, world, paper.name, block(paper, results, f"images/{picture.name}"))
        print(f"{paper.name}: {folder / paper.name}.md")
        written += 1
    return written


def drawn(paper: Paper, results: Results) -> dict[str, list[list[float]]]:
    """Title of each variant that has been run -> by column its figures, one per seed."""
    return {
        variant.title: [list(figures(results[name], column).values()) for column in paper.columns]
        for name, variant in paper.variants.items()
        if results[name]
    }


def mark_of(world: str, paper: str) -> str:
    """What stands on a page above a paper's tables."""
    return f"<!-- claims: {world} {paper} -->"


def block_pattern(world: str, paper: str) -> re.Pattern:
    """A paper's tables on a page, with their marks."""
    return re.compile(f"{re.escape(mark_of(world, paper))}\n.*?<!-- end -->", re.DOTALL)


def lost(page: Path, world: str, paper: Paper, results: Results) -> str:
    """That a page tells of variants, seeds of them or figures that there are no results of, where it does."""
    block = block_pattern(world, paper.name).search(page.read_text(encoding="utf-8"))
    there = cells_of(block[0].splitlines() if block else [])
    here = cells_of(table(paper, results))
    known = {"seeds", *(column.title for column in paper.columns)}
    missing = []
    for name, cells in there.items():
        found = here.get(name, {})
        fewer = int(found.get("seeds") or 0) < int(cells["seeds"])
        if name in results and (fewer or any(cells[title] and not found.get(title) for title in known & cells.keys())):
            missing.append(name)
    if not missing:
        return ""
    return f"it tells of runs that are not here ({', '.join(missing)}). Run them too, or give another page."


def cells_of(lines: Sequence[str]) -> dict[str, dict[str, str]]:
    """The lines of a table of variants, as [`table`] writes it: name -> title of a column -> cell."""
    titles: list[str] = []
    found: dict[str, dict[str, str]] = {}
    for line in lines:
        cells = [part.strip() for part in line.strip().strip("|").split(" | ")]
        if line.startswith("| variant |"):
            titles = cells
        elif name := re.search(r"\(`([^`]+)`\) \|", line):
            found[name[1]] = dict(zip(titles, cells, strict=False))
    return found


def check_page(page: Path, world: str, papers: Sequence[str]) -> None:
    """
    Raises:
        FileNotFoundError: no such page.
        ValueError: it has no place for one of the papers' tables.
    """
    if not page.is_file():
        raise FileNotFoundError(f"{page} is no file. Give a Markdown page with a mark for each paper.")
    for paper in papers:
        if not block_pattern(world, paper).search(page.read_text(encoding="utf-8")):
            raise ValueError(
                f"{page} has no place for {world} {paper}. Write {mark_of(world, paper)} and, below it, <!-- end -->."
            )


def renew(page: Path, world: str, paper: str, content: str) -> None:
    """Puts the content between a page's marks; see [`check_page`]."""
    check_page(page, world, [paper])
    whole = f"{mark_of(world, paper)}\n{content}\n<!-- end -->"
    text = page.read_text(encoding="utf-8")
    page.write_text(block_pattern(world, paper).sub(lambda _: whole, text), encoding="utf-8")


__all__ = ["check_page", "figure", "load_results", "renew", "verdict", "write_reports"]
