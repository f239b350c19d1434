"""The facts of a training, for the card that lies in every checkpoint in place of TRL's and PEFT's."""

import time
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers.utils import logging
from trl import SFTConfig

from hub_cards.contamination import find_overlap
from hub_cards.facts import merge_facts, read_facts, without_places, write_facts
from hub_cards.measure import count_elements, hardware_name, model_facts, package_versions
from hub_cards.metadata import languages
from hub_cards.model_card import write_card
from hub_cards.rows import describe_rows, instructions
from modeling_speechllm.partial_checkpoints import TRAINED_FILE

# Settings that say where and how work was done, not what was trained, or that stand elsewhere on the card.
NOT_RECIPE = set(
    "output_dir logging_dir run_name dataset_kwargs resume_from_checkpoint seed data_seed use_cpu disable_tqdm "
    "report_to push_to_hub hub_model_id hub_token hub_strategy hub_private_repo hub_revision train_groups "
    "logging_steps logging_strategy save_steps save_strategy save_total_limit do_train do_eval do_predict project "
    "trackio_space_id local_rank ddp_timeout dataloader_num_workers dataloader_pin_memory deepspeed fsdp fsdp_config "
    "model dataset eval_dataset lora_groups lora_rank lora_alpha lora_dropout accelerator_config debug "
    "ddp_find_unused_parameters include_for_metrics".split()
)
# Inherited settings that a recipe tells also where they are at their defaults.
RECIPE = set(
    "learning_rate lr_scheduler_type warmup_steps optim weight_decay adam_beta1 adam_beta2 adam_epsilon max_grad_norm "
    "num_train_epochs per_device_train_batch_size gradient_accumulation_steps bf16 fp16".split()
)
# Of the model that a training begins with, what is not said of the one that it makes.
IDENTITY = ("name", "summary", "repository", "package_name", "weight_bytes", "contents", "languages")
STALE = "evaluation text_ability behaviour failures memory intended_use limits notes files".split()
PARTS = (TRAINED_FILE, "adapter_model.safetensors")  # weights that are no whole model
WORKS_OF_SETS = {"continuation": "blsp", "BI": "mtbi", "T": "bloomzmms", "MI": "bloomzmms", "TMI": "bloomzmms"}

logger = logging.get_logger(__name__)


@dataclass
class CardFacts:
    """
    What a training's card says beside what the trainer sees.

    Attributes:
        before: facts of the model that the training begins with; its stages and data come first on the card, its
            licence stays.
        data: entries of the section `data`; by default the training rows, described as one.
        stage: fields of this stage, over those that the trainer finds.
    """

    before: dict[str, Any] = field(default_factory=dict)
    data: list[dict[str, Any]] | None = None
    stage: dict[str, Any] = field(default_factory=dict)


class WritesCard:
    """Beside `transformers.Trainer` in the bases of a trainer of SpeechLLMs: facts and card at every saving."""

    objective_name: str  # as the card calls what is trained for
    works: tuple[str, ...] = ()  # keys of `hub_cards.citations`

    def begin_clock(self, checkpoint: str | None) -> None:
        """Starts counting hours, from those of the run that is resumed."""
        self._hours_before, self._begun = 0.0, time.monotonic()
        self._trained_at_begin = self.trained_parameters()
        if checkpoint:
            try:
                self._hours_before = (read_facts(checkpoint).get("training") or [{}])[-1].get("hours")
            except ValueError as error:
                logger.warning(f"The hours before {checkpoint} are not known: {error}")
                self._hours_before = None

    def write_card(self, folder: str | Path, model: Any = None) -> None:
        """Writes `facts.json` and `README.md` into a folder; what fails there is warned of, the weights stay.

        Args:
            folder: of a checkpoint or a finished model.
            model: the model that was saved there, by default the one that is trained.
        """
        try:
            facts = self.facts(model)
            in_parts = any((Path(folder) / name).is_file() for name in PARTS)
            facts["model"]["contents"] = "trained parts" if in_parts else "whole"
            write_facts(folder, facts)
            write_card(folder)
        except Exception as error:  # a card is not worth a training
            message = f"{type(error).__name__}: {error}"
            logger.warning(f"The card in {folder} could not be written ({message}). The weights are not affected.")

    def trained_parameters(self) -> int:
        """How many parameters are being trained."""
        return sum(count_elements(parameter) for parameter in self.model.parameters() if parameter.requires_grad)

    def facts(self, model: Any = None) -> dict[str, Any]:
        """All that is known of the model by now, in the sections of `hub_cards.facts`."""
        model = self.speech_model if model is None else model
        before = {name: value for name, value in self.card.before.items() if name not in STALE}
        own = before.get("model") or {}
        before["model"] = {name: value for name, value in own.items() if name not in IDENTITY}
        found = merge_facts(before, model_facts(model, self.processing_class))
        described = self._data_facts()
        if own.get("languages"):
            found["model"]["languages"] = list(dict.fromkeys([*own["languages"], *languages(described)]))
        found["training"] = [*(self.card.before.get("training") or []), self.stage_facts()]
        found["data"] = [*(self.card.before.get("data") or []), *described["data"]]
        if described["instructions"]:
            found["prompt"] = found["prompt"] | {"instructions": described["instructions"]}
        if described["contamination"]:
            found["contamination"] = [*(self.card.before.get("contamination") or []), *described["contamination"]]
        return without_places(found)

    def stage_facts(self) -> dict[str, Any]:
        """This stage of training, as it stands."""
        args, state = self.args, self.state
        history = {name: entry[name] for entry in state.log_history for name in ("loss", "eval_loss") if name in entry}
        final = {entry_name: value for entry in state.log_history for entry_name, value in entry.items()}
        history |= {"loss": final["train_loss"]} if "train_loss" in final and "loss" not in history else {}
        begun = getattr(self, "_begun", None)
        known = begun is not None and self._hours_before is not None
        hours = self._hours_before + (time.monotonic() - begun) / 3600 if known else None
        stage = {
            "objective": self.objective_name,
            "trainer": type(self).__name__,
            "method": self._works(),
            "train_groups": list(args.train_groups),
            "trained_parameters": getattr(self, "_trained_at_begin", None) or self.trained_parameters(),
            "recipe": recipe(args, full=True),
            "seeds": {"seed": args.seed, "data_seed": args.data_seed if args.data_seed is not None else args.seed},
            "steps": state.global_step,
            "epochs": state.epoch,
            "hours": hours,
            "hardware": hardware_name(self.accelerator.num_processes),
            "processes": self.accelerator.num_processes,
            "packages": package_versions(),
            "losses": history,
            "finished": bool(state.max_steps) and state.global_step >= state.max_steps,
        }
        return merge_facts(stage, self.card.stage)

    def _works(self) -> list[str]:
        sets = [name for entry in self._data_facts()["data"] for name in (entry.get("targets") or {}).get("sets", {})]
        answers = [WORKS_OF_SETS[name] for name in sets if name in WORKS_OF_SETS]
        return list(dict.fromkeys([*self.works, *answers]))

    def _data_facts(self) -> dict[str, Any]:
        """Training rows as far as their columns tell, counted once."""
        known = getattr(self, "_described", None)
        if known is not None:
            return known
        rows, described = self.train_dataset, {"data": self.card.data or [], "instructions": [], "contamination": []}
        if isinstance(rows, Dataset):
            described["data"] = described["data"] or [describe_rows(rows, "training rows")]
            described["instructions"] = instructions(rows)
            sets = self.eval_dataset if isinstance(self.eval_dataset, dict) else {"evaluation rows": self.eval_dataset}
            described["contamination"] = [
                find_overlap(rows, evaluation, " + ".join(e["name"] for e in described["data"]), name)
                for name, evaluation in sets.items()
                if isinstance(evaluation, Dataset)
                and "text" in rows.column_names
                and "text" in evaluation.column_names
            ]
        self._described = described
        return described


def recipe(settings: Any, full: bool = False) -> dict[str, Any]:
    """Fields of a dataclass that differ from their defaults, as JSON has them; with `full` also those of `RECIPE` and
    of this package's own configs."""
    inherited = {item.name for item in fields(SFTConfig)}
    found = {}
    for item in fields(settings):
        value = getattr(settings, item.name)
        default = item.default_factory() if item.default_factory is not MISSING else item.default
        told = full and (item.name in RECIPE or item.name not in inherited)
        if item.name in NOT_RECIPE or value is None or (value == default and not told):
            continue
        value = getattr(value, "value", value)  # of an enumeration
        found[item.name] = value if isinstance(value, (str, int, float, bool, list, dict)) else str(value)
    return found


__all__ = ["CardFacts", "WritesCard", "recipe"]
