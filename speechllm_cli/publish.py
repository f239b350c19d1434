"""`speechllm export`, `check`, `push` and `overlap`: from a checkpoint to a page on the Hub."""

import argparse
from pathlib import Path
from typing import Any

from .loading import CommandError, report

EXAMPLE = """\
60 seconds with it, in a clone of the repository:
  speechllm export speechllm/nano hub-folder --repository my-name/nano
  speechllm check hub-folder
  speechllm push hub-folder my-name/nano --private --dry_run
"""
EXPORT = """\
Writes a complete Hub repository from a checkpoint: weights, processor, code, card, licence. OUT must not exist.
The folder of `speechllm targets` becomes a data set: its recordings are put into its files.
"""
CHECK = """\
Checks a folder before it is published: it loads with and without this package and answers its own example; card,
metadata, licences, no pickle, no keys, no paths of this machine. The exit status is 1 after any FAIL, else 0.
"""
PUSH = """\
Sends a folder to the Hub, after checking it and printing what it will send. What was stopped goes on when the same
command is given again with --update; what the Hub holds already is not sent twice. HF_TOKEN or `hf auth login` says
who you are.
"""
OF_MODELS = ("merge", "connector_only", "dtype", "base", "max_shard_size", "example", "results")  # not of data sets
CARD_OPTIONS = ("summary", "repository", "languages", "license_name", "license_link")  # beside name and licence


def add_parsers(commands: Any) -> None:
    """Adds them to the subparsers."""
    add_overlap_parser(commands)
    options = {"formatter_class": argparse.RawDescriptionHelpFormatter, "epilog": EXAMPLE}
    export = commands.add_parser("export", help="make a Hub repository of a checkpoint", description=EXPORT, **options)
    export.add_argument("checkpoint", help="folder: a saved model, a training's checkpoint, adapters, or targets")
    export.add_argument("out", help="folder to write; must not exist")
    whole = export.add_mutually_exclusive_group()
    whole.add_argument("--merge", action="store_true", help="merge LoRA adapters into the weights")
    whole.add_argument(
        "--connector_only", action="store_true", help="the trained parts alone, with the ids of their parents"
    )
    formats = ("auto", "float32", "bfloat16", "float16")
    export.add_argument("--dtype", default="auto", choices=formats, help="number format; auto: the checkpoint's")
    export.add_argument("--base", metavar="MODEL", help="the model that adapters belong to, where they do not name it")
    export.add_argument("--max_shard_size", default="5GB", metavar="SIZE", help="largest file of weights (5GB)")
    export.add_argument("--example", nargs=2, metavar=("RECORDING", "INSTRUCTION"), help="what `check` asks again")
    export.add_argument("--results", nargs="+", metavar="FILE", help="results.json of speechllm evaluate")
    card = export.add_argument_group("the card, in place of what the facts say")
    card.add_argument("--name", help="the name of the model or data set")
    card.add_argument("--summary", metavar="TEXT", help="one sentence or two on what it is")
    card.add_argument("--repository", metavar="OWNER/NAME", help="where it will lie, for the card's examples")
    card.add_argument("--languages", nargs="+", metavar="CODE", help="languages that it is for")
    card.add_argument("--license", metavar="ID", help="the Hub's identifier of the licence, such as apache-2.0")
    card.add_argument("--license_name", metavar="NAME", help="its name, for the identifier other")
    card.add_argument("--license_link", metavar="URL", help="its text, for the identifier other")
    export.set_defaults(run=run_export)

    check = commands.add_parser("check", help="check a folder before publishing", description=CHECK, **options)
    check.add_argument("folder", help="what `export` has written")
    check.add_argument("--skip_loading", action="store_true", help="only look at files and card")
    check.set_defaults(run=run_check)

    push = commands.add_parser("push", help="send a folder to the Hub", description=PUSH, **options)
    push.add_argument("folder", help="what `export` has written")
    push.add_argument("repository", metavar="OWNER/NAME", help="where it goes")
    push.add_argument("--private", action="store_true", help="a repository that only you see, if it is new")
    push.add_argument("--branch", default="main", help="branch, made if it is not there (main)")
    push.add_argument("--message", help="message of the commit")
    push.add_argument("--update", action="store_true", help="commit to a repository that holds files already")
    push.add_argument("--dry_run", action="store_true", help="check, print what would be sent, and stop")
    push.set_defaults(run=run_push)


def add_overlap_parser(commands: Any) -> None:
    """Adds `overlap` to the subparsers."""
    parser = commands.add_parser(
        "overlap",
        help="count what training and evaluation data share",
        description="Counts evaluation rows whose sentence (with --audio: or recording) is in the training data.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="60 seconds with it:\n  speechllm overlap --training targets --evaluation test --card hub-folder\n",
    )
    parser.add_argument("--training", nargs="+", required=True, metavar="DATA", help="folders, manifests or Hub ids")
    parser.add_argument("--evaluation", nargs="+", required=True, metavar="DATA", help="folders, manifests or Hub ids")
    parser.add_argument("--training_split", default="train", help="split of the training data (train)")
    parser.add_argument("--evaluation_split", help="its split (test; of local data without: all)")
    parser.add_argument("--audio", action="store_true", help="compare recordings too; all are decoded")
    parser.add_argument("--card", nargs="+", metavar="FOLDER", help="exported models or data sets whose cards say it")
    parser.set_defaults(run=run_overlap)


def is_dataset(folder: str) -> bool:
    """Whether a folder holds a data set: parquet files in `data` or a manifest of recordings, and no model."""
    path = Path(folder)
    rows = any(path.glob("data/*.parquet")) or (path / "manifest.jsonl").is_file()
    return rows and not (path / "config.json").exists() and not (path / "adapter_config.json").exists()


def load_packages() -> None:
    """
    Raises:
        CommandError: a package that publishing needs is missing or broken.
    """
    try:
        import speechllm  # noqa: F401  registers the model classes
    except (ImportError, OSError, RuntimeError) as error:
        raise CommandError(f"a package is missing or broken ({error}). Run: speechllm doctor") from error


def run_export(arguments: argparse.Namespace) -> int:
    """Returns 0, or 2 if the checkpoint or the folder cannot be used."""
    try:
        load_packages()
        if is_dataset(arguments.checkpoint):
            out = export_data(arguments)
        else:
            from hub_cards.export import ExportSettings, export_checkpoint

            settings = {name: value for name, value in vars(arguments).items() if name in vars(ExportSettings())}
            settings["example"] = tuple(arguments.example) if arguments.example else None
            out = export_checkpoint(arguments.checkpoint, arguments.out, ExportSettings(**settings))
    except (CommandError, OSError, ValueError, RuntimeError) as error:
        report(error)
        return 2
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    print(f"{out}: {size / 1e6:.1f} MB. Look at {out / 'README.md'}, then: speechllm check {out}")
    return 0


def export_data(arguments: argparse.Namespace) -> Path:
    """
    A data set's folder from targets, or from a manifest and its recordings.

    Raises:
        CommandError: options that only a model has.
    """
    from hub_cards.dataset_card import export_dataset
    from hub_cards.export import ExportSettings

    defaults = vars(ExportSettings())
    foreign = [name for name in OF_MODELS if getattr(arguments, name) != defaults[name]]
    if foreign:
        raise CommandError(
            f"{arguments.checkpoint} is a data set, for which {', '.join(f'--{name}' for name in foreign)} means "
            "nothing. Leave it out."
        )
    rows = None
    if (Path(arguments.checkpoint) / "manifest.jsonl").is_file():
        from trainers.data.bad_rows import BadRows
        from trainers.data.loading import load_rows, with_durations

        rows = with_durations(load_rows(arguments.checkpoint), BadRows(None, max_share=0.0, minimum=1))
    card = {name: getattr(arguments, name) for name in CARD_OPTIONS}
    return export_dataset(arguments.checkpoint, arguments.out, arguments.name, arguments.license, rows, card)


def run_overlap(arguments: argparse.Namespace) -> int:
    """Prints what is shared; returns 0, or 2 if data cannot be read."""
    try:
        load_packages()
        from hub_cards.contamination import find_overlap
        from hub_cards.facts import read_facts
        from speechllm.evaluation.rows import default_split
        from trainers.commands.card import display_name
        from trainers.data.loading import load_rows

        for folder in arguments.card or []:
            check_card_takes(folder)
        entries = []
        for training in arguments.training:
            rows = load_rows(training, arguments.training_split)
            for evaluation in arguments.evaluation:
                split = arguments.evaluation_split or default_split(evaluation)
                other = load_rows(evaluation, split)
                names = display_name(training), display_name(evaluation)
                entries.append(find_overlap(rows, other, *names, arguments.audio))
                found = entries[-1]
                recordings = "not compared" if found["audio"] is None else found["audio"]
                print(
                    f"{names[1]}, {split}: of {found['evaluation_rows']} rows {found['sentences']} sentences are in "
                    f"{names[0]}, {arguments.training_split} ({found['training_rows']} rows); recordings: "
                    f"{recordings}",
                    flush=True,
                )
        done = {(entry["training"], entry["evaluation"]) for entry in entries}
        for folder in arguments.card or []:
            before = read_facts(folder).get("contamination") or []
            kept = [entry for entry in before if (entry["training"], entry["evaluation"]) not in done]
            put_overlap(folder, [*kept, *entries])
            print(f"Written to {Path(folder) / 'README.md'}")
    except (CommandError, OSError, ValueError) as error:
        report(error)
        return 2
    return 0


def check_card_takes(folder: str) -> None:
    """
    Raises:
        CommandError: a folder without a card, or one whose card has words that writing it anew would lose.
    """
    from hub_cards.dataset_card import has_own_card, render_dataset_card
    from hub_cards.facts import FACTS_FILE, read_facts
    from hub_cards.model_card import render_model_card

    path, card = Path(folder), Path(folder) / "README.md"
    if is_dataset(folder) and has_own_card(path):
        return
    if not (path / FACTS_FILE).is_file():
        raise CommandError(f"{folder} has no {FACTS_FILE}. Give what speechllm export has written.")
    render = render_dataset_card if is_dataset(folder) else render_model_card
    if card.is_file() and card.read_text(encoding="utf-8") != render(read_facts(path)):
        raise CommandError(
            f"{card} was edited by hand, or is of an older version: it differs from what {FACTS_FILE} gives, and "
            f"would be written anew. Put your words into {FACTS_FILE} (notes, limits), remove the card, and try again."
        )


def put_overlap(folder: str, entries: list[dict]) -> None:
    """The overlap onto the card of a model's or data set's folder."""
    from hub_cards.dataset_card import write_overlap
    from hub_cards.facts import update_facts
    from hub_cards.model_card import write_card

    if is_dataset(folder):
        write_overlap(folder, entries)
    else:
        write_card(folder, update_facts(folder, {"contamination": entries}))


def run_check(arguments: argparse.Namespace) -> int:
    """Prints the report as it grows; returns 1 if anything failed, else 0."""
    try:
        load_packages()
    except CommandError as error:
        report(error)
        return 2
    return 1 if check(arguments.folder, not arguments.skip_loading) else 0


def check(folder: str, load: bool = True) -> int:
    """Prints the findings on a folder; returns how many failed."""
    from hub_cards.check import check_dataset, check_folder
    from hub_cards.findings import print_findings

    failures = print_findings(check_dataset(folder) if is_dataset(folder) else check_folder(folder, load))
    print(
        f"\n{failures} to repair before it can be published." if failures else "\nReady to be published.", flush=True
    )
    return failures


def run_push(arguments: argparse.Namespace) -> int:
    """Returns 0, 1 if the folder fails the check, or 2 if the Hub refused or could not be reached."""
    from hub_cards.push import PushError, PushSettings, check_name, check_token, plan_push, push_folder

    kind = "dataset" if is_dataset(arguments.folder) else "model"
    settings = PushSettings(
        arguments.repository, kind, arguments.private, arguments.branch, arguments.message, arguments.update
    )
    try:
        check_name(arguments.repository)
        if not arguments.dry_run:
            check_token()
        load_packages()
        if check(arguments.folder):
            return 1
        print()
        for line in plan_push(arguments.folder, settings, arguments.dry_run):
            print(line, flush=True)
        if arguments.dry_run:
            print("\nNothing was sent (--dry_run).")
            return 0
        print(f"\n{push_folder(arguments.folder, settings)}")
    except (CommandError, PushError) as error:
        report(error)
        return 2
    except KeyboardInterrupt:
        report("stopped. The same command with --update goes on; what arrived is not sent again.")
        return 130
    return 0
