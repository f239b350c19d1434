"""The part of a trainer that writes checkpoints and resumes: nothing half-written is ever taken for a checkpoint.

What is unusual here:
- A checkpoint counts once its marker is written, after all its files; older ones go only then.
- A run is resumed only on the data and with the batches it had, so that its losses are those of the unbroken run.
- Each checkpoint has a card of its own, which may be rewritten without making it less whole.
- Where the frozen parents are known, a checkpoint holds the trained groups alone. No arguments are pickled.
"""

import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
from transformers import PreTrainedModel
from transformers.trainer_utils import rotate_checkpoints

from modeling_speechllm.partial_checkpoints import TRAINED_FILE, check_keys, save_trained, trained_groups

from .averaging import average_checkpoints, best_checkpoints
from .card import WritesCard
from .folders import clear_halves, is_whole, last_checkpoint, mark_begun, mark_whole

SETTINGS_FILE = "speech_run.json"


class WholeCheckpoints(WritesCard):
    """Beside `transformers.Trainer` in the bases of a trainer of SpeechLLMs.

    The trainer has `data_fingerprint`, what its training rows are known by again, or None for a stream.
    """

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """As `Trainer.train`; `True` resumes from the last whole checkpoint, and afterwards the best checkpoints are
        averaged if `average_best` says so.

        Raises:
            ValueError: a checkpoint that is not whole, or of a run on other data or with other batches.
        """
        if resume_from_checkpoint:
            if resume_from_checkpoint is True:
                resume_from_checkpoint = str(last_checkpoint(self.args.output_dir))
            self._check_resume(Path(resume_from_checkpoint))
        if self.is_world_process_zero():
            clear_halves(self.args.output_dir)
        self.accelerator.wait_for_everyone()
        self.begin_clock(resume_from_checkpoint or None)
        output = super().train(resume_from_checkpoint or None, *args, **kwargs)
        if self.args.average_best:
            self._average_best()
        return output

    def _run_settings(self) -> dict[str, Any]:
        """What a resumed run must have in common with the run it resumes."""
        names = ("seed", "data_seed", "per_device_train_batch_size", "gradient_accumulation_steps")
        names += ("batch_seconds", "batch_tokens", "train_sampling_strategy")
        names += ("learning_rate", "learning_rates", "weight_decay", "optim")  # an optimizer's state restores its own
        names += ("adam_beta1", "adam_beta2", "adam_epsilon", "optim_args")
        names += ("buffer_size",) if self.data_fingerprint is None else ()
        return {
            "dataset": self.data_fingerprint or "streaming",
            "processes": self.accelerator.num_processes,
            "adapters": self._adapters(),
            **{name: getattr(value, "value", value) for name in names for value in [getattr(self.args, name)]},
        }

    def _adapters(self) -> dict[str, list]:
        """Rank and alpha of adapters, whose weights mean something else under others."""
        model = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
        configs = getattr(model, "peft_config", None) or {}
        return {name: [getattr(one, "r", None), getattr(one, "lora_alpha", None)] for name, one in configs.items()}

    def _check_resume(self, folder: Path) -> None:
        if not is_whole(folder):
            raise ValueError(
                f"{folder} is not a whole checkpoint: its writing was interrupted, or another program wrote it. "
                "Resume from an earlier one, or with resume_from_checkpoint=True from the last whole one."
            )
        before, now = json.loads((folder / SETTINGS_FILE).read_text(encoding="utf-8")), self._run_settings()
        before = now | {"learning_rates": None} | before  # earlier versions kept less, and had one learning rate
        changed = [
            f"{name} was {before.get(name)!r}, is {value!r}"
            for name, value in now.items()
            if before.get(name) != value
        ]
        if changed:
            raise ValueError(
                f"The run of {folder} cannot be resumed as it was: {'; '.join(changed)}. Restore these, or start a "
                "new run from the checkpoint's weights in another output_dir."
            )
        if self.data_fingerprint is None:
            state = json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))
            self._stream_start = state["global_step"] * self.args.gradient_accumulation_steps

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        folder = Path(self._get_output_dir(trial)) / f"checkpoint-{self.state.global_step}"
        limit, self.args.save_total_limit = self.args.save_total_limit, None  # rotated once the new one is whole
        try:
            if self.args.should_save:
                mark_begun(folder)
            super()._save_checkpoint(model, trial)
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                (folder / SETTINGS_FILE).write_text(json.dumps(self._run_settings()), encoding="utf-8")
                mark_whole(folder)
        except Exception as error:
            raise RuntimeError(
                f"Checkpoint {folder} could not be written: {error or type(error).__name__}. It will not be resumed "
                "from. Free some disk space or correct the folder, then resume with resume_from_checkpoint=True from "
                "the last whole one."
            ) from error
        finally:
            self.args.save_total_limit = limit
        if self.args.should_save:
            rotate_checkpoints(
                folder.parent, save_total_limit=limit, best_model_checkpoint=self.state.best_model_checkpoint
            )

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        """Trained groups alone where `save_trained_only` and the parents are known, else as in Trainer; always with
        the processor, never with pickled arguments."""
        folder = Path(output_dir or self.args.output_dir)
        if self._saves_trained_only():
            if self.args.should_save:
                save_trained(self.speech_model, str(folder), state_dict)
                self.processing_class.save_pretrained(folder)
        else:
            super()._save(str(folder), state_dict)
            (folder / "training_args.bin").unlink(missing_ok=True)
        if self.args.should_save:
            (folder / "training_args.json").write_text(self.args.to_json_string(), encoding="utf-8")
            self.write_card(folder)

    def _saves_trained_only(self) -> bool:
        return (
            self.args.save_trained_only
            and isinstance(self.accelerator.unwrap_model(self.model, keep_torch_compile=False), PreTrainedModel)
            and bool(self.speech_model.config.parents)
            and not self.is_fsdp_enabled
            and not self.speech_model.is_distributed_loading_by_transformers
        )

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        path = os.path.join(resume_from_checkpoint, TRAINED_FILE)
        speech_model = self.speech_model
        if not os.path.isfile(path):
            whole = os.path.join(resume_from_checkpoint, "model.safetensors")
            if getattr(speech_model, "is_quantized", False) and os.path.isfile(whole):
                return load_trainable(speech_model, load_file(whole))
            return super()._load_from_checkpoint(resume_from_checkpoint, model)
        groups = trained_groups(resume_from_checkpoint, {})  # those trained here, and what differed from the parents
        loaded, expected = load_file(path), speech_model.group_keys(groups)
        check_keys(resume_from_checkpoint, expected - loaded.keys(), loaded.keys() - expected, [])
        speech_model.load_state_dict(loaded, strict=False)

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        """As in Trainer, but of a head that is the embeddings, which no checkpoint holds twice."""
        tied = getattr(self.speech_model, "all_tied_weights_keys", None) or {}
        missing = [name for name in load_result.missing_keys if name not in tied]
        super()._issue_warnings_after_load(load_result._replace(missing_keys=missing))

    def _load_best_model(self) -> None:
        if self.is_deepspeed_enabled:
            super()._load_best_model()
        else:
            self._load_from_checkpoint(self.state.best_model_checkpoint)

    def _average_best(self) -> None:
        """Loads the mean of the best checkpoints' weights into the model and saves it to `averaged`."""
        metric = f"eval_{self.args.metric_for_best_model.removeprefix('eval_')}"
        chosen = best_checkpoints(
            self.args.output_dir, self.state.log_history, metric, self.args.greater_is_better, self.args.average_best
        )
        folder = os.path.join(self.args.output_dir, "averaged")
        if self.is_world_process_zero():
            average_checkpoints(chosen, folder)
        self.accelerator.wait_for_everyone()
        if self.is_sharded:  # ZeRO-3 was refused
            state = load_file(os.path.join(folder, "model.safetensors")) if self.is_world_process_zero() else {}
            options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
            set_model_state_dict(self.model, state, options=options)
        else:
            self._load_from_checkpoint(folder)
        self.save_model(folder)


def load_trainable(model: PreTrainedModel, weights: dict[str, torch.Tensor]) -> None:
    """Of the weights of a whole quantised model those that are trained: its 8 bits cannot be loaded twice.

    Raises:
        ValueError: one is not there.
    """
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                if name not in weights:
                    raise ValueError(f"The checkpoint has no {name}, which is trained. Give one of this run.")
                parameter.copy_(weights[name])


__all__ = ["WholeCheckpoints"]
