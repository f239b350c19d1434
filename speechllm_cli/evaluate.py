"""`speechllm evaluate`: scores a SpeechLLM beside text bound and cascade; the work is in `speechllm.evaluation`."""

import os
import sys
from collections.abc import Sequence
from typing import Any

from .loading import report
from .pages import page

NAME = "evaluate"
HELP = "score a SpeechLLM beside its text bound, a cascade, a second model"
DESCRIPTION = """\
Scores a SpeechLLM beside what it must be compared with; see {page}.

Settings come from a YAML recipe, a file or a packaged one by name, and from options, which win. A run that was stopped
goes on when its command is given again.
"""
EXAMPLE = """\
60 seconds with it, on a CPU, in a clone of the repository:
  python -m benchmarks.nanoworld.recordings --out nano-data     spoken requests
  speechllm evaluate --config nano-evaluate
  speechllm evaluate --model MODEL --dataset DATA --task transcribe --text_bound --cascade openai/whisper-small \\
      --output_dir scores
"""


def add_parser(commands: Any) -> None:
    """Lists the command among the subparsers; `main` hands it its arguments before any parser does."""
    commands.add_parser(NAME, help=HELP, add_help=False)


def run(arguments: Sequence[str]) -> int:
    """Runs the command; returns 0, 1 (it broke off), 2 (wrong settings or data) or 130 (Ctrl-C)."""
    try:
        from transformers.utils import logging

        import speechllm
        from speechllm.evaluation.config import EvaluationConfig
        from speechllm.evaluation.run import evaluate, with_known_models
        from trainers.commands.arguments import LaunchArguments
        from trainers.commands.launch import LAUNCHED, check_devices, start_through_accelerate
        from trainers.commands.parsing import parse
        from trainers.targets.endpoints import BackendError
    except (ImportError, OSError, RuntimeError) as error:
        report(f"a package is missing or broken ({error}). Run: speechllm doctor")
        return 2
    place = "nothing had begun"
    try:
        config, launch = parse(
            (EvaluationConfig, LaunchArguments),
            arguments,
            "speechllm evaluate",
            DESCRIPTION.format(page=page("evaluation")),
            EXAMPLE,
        )
        if launch.accelerate_config is not None and LAUNCHED not in os.environ:
            check_devices(launch.accelerate_config, NAME)
            return start_through_accelerate(launch.accelerate_config, NAME, arguments)
        logging.set_verbosity_error()  # its remarks on pipelines and caches are about our code, not the user's
        place = f"the same command goes on with what {config.output_dir} holds by now"
        evaluate(with_known_models(config, speechllm.MODELS))
        return 0
    except KeyboardInterrupt:
        report(f"stopped; {place}.")
        return 130
    except (ValueError, OSError) as error:
        print("speechllm:", str(error).strip(), file=sys.stderr, flush=True)
        return 2
    except (ImportError, BackendError) as error:
        report(f"{error} Then {place}.")
        return 1
