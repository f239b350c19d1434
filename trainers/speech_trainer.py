"""What all speech trainers share: TRL's `SFTTrainer` with sums of losses and exact batches.

What is unusual here:
- A loss is a set of terms, each a sum over items (answer tokens, utterances, ...) divided by how many of them the
  whole optimizer step has, over all processes and accumulated batches. So how the step is split changes nothing.
- Everything a step computes, student, teacher and CTC, runs inside one forward of the wrapped model, so that DDP,
  FSDP2 and DeepSpeed see the forward they know. TRL's fused head, which knows no logit caps and scales, is not used.
- Batches are a function of seed and epoch, a row's random choices of seed, epoch and row; a resumed run sees what the
  unbroken run would have seen. Checkpoints are in `whole_checkpoints.py`.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from transformers import EarlyStoppingCallback, PreTrainedModel, TrainerCallback
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled
from transformers.modeling_outputs import CausalLMOutput
from transformers.utils import logging
from trl import SFTTrainer

from modeling_speechllm.attention_backends import attention_for_any_length
from modeling_speechllm.audio_towers import AudioTower
from modeling_speechllm.connector_base import ConnectorOutput
from modeling_speechllm.llm_head import scale_logits
from processing_speechllm import SpeechLLMProcessor

from .checkpoints.card import CardFacts
from .checkpoints.trained_parts import (
    beside_adapters,
    beside_quantized,
    has_tied_head,
    own_rates,
    set_learning_rates,
    tie_head,
    train_groups,
)
from .checkpoints.whole_checkpoints import WholeCheckpoints
from .data.bad_rows import ROWS_BEFORE_JUDGING, BadRows
from .data.chats import IGNORED
from .data.collators import SpeechCollator
from .data.loaders import build_loader, is_stream
from .data.loading import dataset_fingerprint
from .data.statistics import unlabelled_rows
from .objectives.divergences import Head, TopTokens, response_divergence, response_loss, top_k_divergence
from .objectives.forward_redirection import through_forward
from .objectives.speech_inputs import connect, embed_prompts, read_prompts
from .objectives.terms import Term, Totals, weighted_loss
from .speech_config import SpeechTrainingConfig, check_given
from .speed.attention import fast_backward
from .speed.memory import activations_fit
from .speed.prefix import SharedPrefix, read_on

logger = logging.get_logger(__name__)


def last_places(mask: torch.Tensor) -> torch.Tensor:
    """(rows, places) bool mask -> the same with the last True of each row alone."""
    return mask & (mask.flip(-1).cumsum(-1).flip(-1) == 1)


class SpeechTrainer(WholeCheckpoints, SFTTrainer):
    """
    Base of the speech trainers. A subclass gives `objective` and its collator.

    Args:
        model: a `SpeechLLMForConditionalGeneration`.
        args: a config deriving from [`SpeechTrainingConfig`].
        train_dataset, eval_dataset: rows as `load_rows` gives them, a `datasets.Dataset` or `IterableDataset`; for
            evaluation a `Dataset`, or a dict of such.
        processing_class: the model's `SpeechLLMProcessor`.
        peft_config (*optional*): see `lora_config`; groups in `train_groups` are trained in full beside the adapters.
        callbacks (*optional*): further callbacks.
        data_collator (*optional*): of the trainer's own kind (`collator_class`), in place of the one made here.
        compute_loss_func (*optional*): of [`SpeechImitationTrainer`] alone: the loss in place of the trainer's own, of
            a model output with `logits` (rows, sequence, vocabulary), `labels` and `num_items_in_batch`, the answer
            tokens of the whole step.
        **kwargs: of `Trainer`: `compute_metrics`, `preprocess_logits_for_metrics`, `optimizers`,
            `optimizer_cls_and_kwargs`.

    Raises:
        TypeError: a model that is no SpeechLLM, or arguments and a processor of another kind.
        ValueError: settings that exclude each other, or that would not be acted on.
    """

    loss_is_scaled_for_ga = True
    takes_loss_func = False
    collator_class: type[SpeechCollator]
    config_class: type[SpeechTrainingConfig]

    def __init__(
        self,
        model: PreTrainedModel,
        args: SpeechTrainingConfig | None = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        peft_config: Any = None,
        callbacks: list[TrainerCallback] | None = None,
        data_collator: SpeechCollator | None = None,
        compute_loss_func: Callable | None = None,
        **kwargs: Any,
    ):
        check_given(type(self), model, args, processing_class, data_collator, compute_loss_func, kwargs)
        args = self.config_class("speechllm-output") if args is None else args
        tied = has_tied_head(model)
        train_groups(model, args.train_groups)
        if peft_config is not None:
            peft_config = beside_adapters(peft_config, args.train_groups)
        if args.checkpoints_by_default:
            self._choose_checkpointing(args, model, train_dataset, processing_class)
        self.frames_cache = self._open_cache(args, model, processing_class)
        self.bad_rows = BadRows(Path(args.output_dir) / "bad_rows", args.max_bad_share, ROWS_BEFORE_JUDGING)
        self._rows_seen = self._rows_bad = 0
        callbacks = list(callbacks or [])
        if args.early_stopping_patience is not None:
            callbacks.append(EarlyStoppingCallback(args.early_stopping_patience))
        self._totals = {"train": Totals(), "eval": Totals()}
        self._stream_start = 0
        self._busy = 0.0
        self.card = CardFacts()
        if is_deepspeed_zero3_enabled():
            from deepspeed.utils import set_z3_leaf_modules

            set_z3_leaf_modules(model, [AudioTower])  # gathered at once: how often its layers run depends on the batch
        languages = getattr(model.model.multi_modal_projector.config, "languages", None)
        if data_collator is None:
            data_collator = self.collator_class(processing_class, args, languages, self.frames_cache, self.bad_rows)
        with beside_quantized(model, adapters=peft_config is not None):
            super().__init__(
                model=model,
                args=args,
                data_collator=data_collator,
                train_dataset=train_dataset,
                eval_dataset=eval_dataset,
                processing_class=processing_class,
                peft_config=peft_config,
                callbacks=callbacks,
                **kwargs,
            )
        self._check_evaluation()
        self.compute_loss_func = compute_loss_func
        judged = languages and getattr(args, "language_weight", 0.0) and isinstance(train_dataset, Dataset)
        if judged and self.is_world_process_zero() and (finding := unlabelled_rows(train_dataset, languages)):
            logger.warning(finding)
        if tied and peft_config is not None:
            tie_head(self.speech_model)
        self._check_sharding()
        self._check_learning_rates()
        share = self.args.device.type == "cpu" if args.share_prefix is None else args.share_prefix
        self.shared_prefix = SharedPrefix(wanted=share and not (self.is_sharded or args.torch_compile))

    def _check_evaluation(self) -> None:
        """Raises a ValueError where processes would have no row to evaluate: now, not at the first evaluation."""
        sets, processes = self.eval_dataset, self.accelerator.num_processes
        for name, rows in sets.items() if isinstance(sets, dict) else [("eval_dataset", sets)]:
            if hasattr(rows, "__len__") and len(rows) < processes:
                raise ValueError(
                    f"{name}: {len(rows)} rows to evaluate cannot be dealt to {processes} processes. Give at least "
                    f"{processes}, or none."
                )

    def _choose_checkpointing(
        self, args: SpeechTrainingConfig, model: PreTrainedModel, rows: Any, processor: SpeechLLMProcessor
    ) -> None:
        """Activations are computed again where they would not fit into memory, and in sharded runs, whose processes
        must all do the same."""
        sharded = args.fsdp or args.deepspeed or model.is_distributed_loading_by_transformers
        again = bool(sharded) or not activations_fit(model, rows, processor, args, self.collator_class.runs_llm)
        args.activation_checkpointing = args.gradient_checkpointing = again

    def _check_sharding(self) -> None:
        """Raises a ValueError for weights that could not be averaged at the end of a sharded run."""
        adapted = hasattr(self.accelerator.unwrap_model(self.model, keep_torch_compile=False), "get_base_model")
        if self.args.average_best and (is_deepspeed_zero3_enabled() or (self.is_sharded and adapted)):
            raise ValueError(
                "average_best cannot load averaged weights into a model in shards of ZeRO-3, or of FSDP with "
                "adapters. Set it to 0, and afterwards take average_checkpoints of trainers.checkpoints.averaging."
            )

    def _check_learning_rates(self) -> None:
        """Raises a ValueError for rates of parts that are not trained, or where another makes the optimizer."""
        if not self.args.learning_rates:
            return
        own_rates(self.model.named_parameters(), self.args.learning_rates)
        deepspeed = getattr(self.args, "hf_deepspeed_config", None)
        elsewhere = deepspeed is not None and "optimizer" in deepspeed.config
        if elsewhere or self.optimizer is not None:
            maker = "DeepSpeed's config makes the optimizer" if elsewhere else "optimizers holds one"
            raise ValueError(
                f"learning_rates are of the optimizer that the trainer makes, and {maker}. Take it out of there, or "
                "set the rates there."
            )

    def _open_cache(self, args: SpeechTrainingConfig, model: PreTrainedModel, processor: Any) -> Any:
        if not args.frames_cache:
            return None
        if "encoder" in args.train_groups:
            raise ValueError("frames_cache holds a frozen encoder's outputs. Take encoder out of train_groups.")
        from .cache.frame_cache import FrameCache

        cache = FrameCache(args.frames_cache)
        cache.check(model, processor)
        return cache

    # The loss

    def objective(self, model: PreTrainedModel, batch: dict[str, Any]) -> dict[str, Term]:
        """The terms of the loss of one batch, and figures to report; `model` is the SpeechLLM without wrappers.

        The terms and the modules that are run must be the same for every batch, whether it has audio and answers or
        not: in a sharded run each module is a collective call.
        """
        raise NotImplementedError

    @cached_property
    def data_fingerprint(self) -> str | None:
        """What the training rows are known by when the run is resumed; None for a stream."""
        return None if is_stream(self.train_dataset) else dataset_fingerprint(self.train_dataset)

    @property
    def speech_model(self) -> PreTrainedModel:
        """The SpeechLLM, whatever wraps it."""
        model = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
        return model.get_base_model() if hasattr(model, "get_base_model") else model

    @property
    def is_sharded(self) -> bool:
        """Whether parameters are held in pieces, so that all processes must run the same modules, equally often."""
        by_load = self.speech_model.is_distributed_loading_by_transformers
        return self.is_fsdp_enabled or by_load or is_deepspeed_zero3_enabled()

    def whole_parameters(self, module: nn.Module) -> dict[str, torch.Tensor]:
        """A module's own parameters by name, for use without running it; where they are sharded, copies that the
        module's own hooks gather."""
        if not self.is_sharded:
            return dict(module.named_parameters(recurse=False))
        return through_forward(
            module, module, lambda: {name: value.clone() for name, value in module.named_parameters(recurse=False)}
        )

    def head(self, model: PreTrainedModel) -> Head:
        """Hidden states to logits. Where the head is sharded it is gathered once, so that each process can run it on
        as many chunks of positions as it has, in the backward pass again."""
        if not self.is_sharded:
            return model.compute_logits
        parameters = self.whole_parameters(model.lm_head)
        return lambda hidden: scale_logits(F.linear(hidden, **parameters), model.config.text_config)

    def terms(self, model: nn.Module, batch: dict[str, Any]) -> dict[str, Term]:
        """`objective` inside one forward of the wrapped model."""
        inner = self.accelerator.unwrap_model(model, keep_torch_compile=False)
        speech_model, found = self.speech_model, {}

        def run(batch: dict[str, Any]) -> dict[str, torch.Tensor]:
            self._rest_frozen(speech_model)
            found.update(self.objective(speech_model, batch))
            return {name: term.total for name, term in found.items()}

        with self.accelerator.autocast():
            totals = through_forward(model, inner, run, batch)
        return {name: Term(total, found[name].items, found[name].weight) for name, total in totals.items()}

    def predictions(self, model: PreTrainedModel, batch: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits (rows, sequence, vocabulary) and labels (rows, sequence) of a batch, those of a position standing at
        that before it as everywhere in transformers; `model` is the SpeechLLM without wrappers."""
        return self.head(model)(self.hidden(model, batch, connect(model, batch))), batch["labels"]

    def outputs(self, model: nn.Module, batch: dict[str, Any]) -> tuple[CausalLMOutput, torch.Tensor]:
        """`predictions` inside one forward of the wrapped model, for metrics and losses of the user's."""
        inner = self.accelerator.unwrap_model(model, keep_torch_compile=False)
        speech_model = self.speech_model

        def run(batch: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
            self._rest_frozen(speech_model)
            return self.predictions(speech_model, batch)

        with self.accelerator.autocast():
            logits, labels = through_forward(model, inner, run, batch)
        return CausalLMOutput(logits=logits), labels

    def _rest_frozen(self, model: PreTrainedModel) -> None:
        """Frozen groups run without dropout; a frozen LLM under gradient checkpointing stays in training mode, in
        which alone it is checkpointed."""
        if not model.training:
            return
        for group, modules in model.group_modules().items():
            trained = any(parameter.requires_grad for module in modules for parameter in module.parameters())
            if not trained and not (group == "llm" and self.args.gradient_checkpointing):
                for module in modules:
                    module.eval()

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: dict[str, torch.Tensor] | None = None,
    ) -> torch.Tensor:
        """Sum over terms of weight x total / items of the whole step; see the module's description."""
        counts = num_items_in_batch or {name: torch.tensor(value) for name, value in inputs["counts"].items()}
        if self.compute_loss_func is None:
            terms = self.terms(model, inputs)
            loss = weighted_loss(terms, counts)
        else:
            terms = {}
            items = counts["answer_tokens"]
            loss = self.compute_loss_func(*self.outputs(model, inputs), num_items_in_batch=items)
        if not torch.isfinite(loss):
            parts = ", ".join(f"{name} {term.total.item():g}" for name, term in terms.items() if term.weight)
            raise FloatingPointError(
                f"The loss is {loss.item()} in update {self.state.global_step + 1} ({parts}; rows "
                f"{', '.join(inputs['ids'][:8])}). Nothing was updated. Begin a new run from the last checkpoint's "
                "weights (as `model`), with a lower learning_rate, in bf16 in place of fp16, or without these rows."
            )
        self._totals["train"].add(terms, inputs["counts"])
        loss = loss * self.accelerator.num_processes  # processes average their gradients
        return (loss, {}) if return_outputs else loss

    def hidden(self, model: PreTrainedModel, batch: dict[str, Any], connected: ConnectorOutput) -> torch.Tensor:
        """Last-layer hidden states (batch, sequence, dim) of the LLM that hears what the connector gave."""
        inputs = embed_prompts(model, batch, connected)
        audio = model.model.get_placeholder_mask(batch["input_ids"])
        rows = batch["input_ids"], batch["attention_mask"], inputs["inputs_embeds"]
        return read_prompts(model, inputs, self.shared_prefix.of(model.model.language_model, *rows, audio))

    @contextmanager
    def teacher(self, model: PreTrainedModel) -> Iterator[nn.Module]:
        """The LLM as teacher: without gradients, dropout and adapters."""
        llm = model.model.language_model
        peft_model = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
        training = llm.training
        llm.eval()
        try:
            with torch.no_grad():
                if hasattr(peft_model, "disable_adapter"):
                    with peft_model.disable_adapter():
                        yield llm
                else:
                    yield llm
        finally:
            llm.train(training)

    def teacher_hidden(self, model: PreTrainedModel, batch: dict[str, Any]) -> torch.Tensor:
        """Last-layer hidden states (batch, sequence, dim) of the LLM that reads the transcripts."""
        with self.teacher(model) as llm:
            embeddings = model.model.embed_text(batch["teacher_input_ids"])
            rows = batch["teacher_input_ids"], batch["teacher_attention_mask"], embeddings
            return read_on(llm, self.shared_prefix.of(llm, *rows), embeddings)  # padded behind, as the student's

    def response_terms(
        self,
        model: PreTrainedModel,
        batch: dict[str, Any],
        hidden: torch.Tensor,
        cross_entropy_weight: float,
        divergence_weight: float,
        teacher: torch.Tensor | None = None,
        end_token_weight: float = 0.0,
    ) -> dict[str, Term]:
        """The loss terms on the answers, from hidden states (batch, sequence, dim) of the student and, if they are
        there already, of the teacher. Only positions that predict an answer's token get logits."""
        predicting = batch["labels"][:, 1:] != IGNORED
        student, labels = hidden[:, :-1][predicting], batch["labels"][:, 1:][predicting]
        head = self.head(model)
        terms = {}
        if cross_entropy_weight or not torch.is_grad_enabled():  # without a weight it is a figure of evaluations alone
            total, correct = response_loss(student, labels, head)
            terms["cross_entropy"] = Term(total, "answer_tokens", cross_entropy_weight)
            terms["token_accuracy"] = Term(correct, "answer_tokens", 0.0)
        if divergence_weight:
            args = self.args
            if "teacher_indices" in batch:
                states = batch["teacher_log_probabilities"], batch["teacher_indices"]
            else:
                teacher = self.teacher_hidden(model, batch) if teacher is None else teacher
                states = (teacher[:, :-1][batch["teacher_labels"][:, 1:] != IGNORED],)

            def divergence(student: torch.Tensor, *states: torch.Tensor) -> torch.Tensor:
                if len(states) == 2:
                    return top_k_divergence(student, TopTokens(*states, args.temperature), head, args.temperature)
                return response_divergence(student, *states, head, args.divergence, args.jsd_beta, args.temperature)

            terms["divergence"] = Term(divergence(student, *states), "answer_tokens", divergence_weight)
            if end_token_weight:
                ends = last_places(predicting)[predicting]
                total = divergence(student[ends], *(state[ends] for state in states))
                terms["end_token"] = Term(total, "answers", end_token_weight)
        return terms

    def check_teacher(self) -> None:
        """Raises a ValueError if the LLM, which is the teacher too, is trained in full."""
        if "llm" in self.args.train_groups:
            raise ValueError(
                "The teacher is the model's own LLM, so it cannot be trained in full. Take llm out of train_groups; "
                "train it by LoRA (peft_config), which the teacher reads without."
            )

    def check_cached_teacher(self, kind: str, instruction: str | None) -> None:
        """Raises a ValueError if a cached teacher is asked for and the cache's is another one."""
        if self.args.cached_teacher:
            settings = kind, instruction, self.args.top_k, self.args.temperature
            self.frames_cache.check_teacher(self.speech_model, self.processing_class, *settings)

    # Batches

    def _get_num_items_in_batch(self, batch_samples: list, device: torch.device) -> dict[str, torch.Tensor] | None:
        """How many of each item the optimizer step has over all its batches and processes."""
        if not batch_samples:
            return None
        names = sorted(batch_samples[0]["counts"])
        local = [sum(batch["counts"][name] for batch in batch_samples) for name in names]
        counts = torch.tensor(local, dtype=torch.float32, device=device)
        counts = self.accelerator.reduce(counts, reduction="sum")
        return dict(zip(names, counts, strict=True))

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> tuple[list, dict[str, torch.Tensor] | None]:
        begin = time.monotonic()
        batches, counts = super().get_batch_samples(*args, **kwargs)
        for batch in batches:
            self._rows_bad += batch["counts"]["bad_rows"]
            self._rows_seen += batch["counts"]["rows"] + batch["counts"]["bad_rows"]
        self._check_bad_rows()
        self._busy += time.monotonic() - begin
        return batches, counts

    def _check_bad_rows(self) -> None:
        """Stops a run with too many bad rows: of all processes, which look at each other's every tenth update."""
        seen, bad = self._rows_seen, self._rows_bad
        if self.accelerator.num_processes > 1:
            if self.state.global_step % 10:
                return
            both = torch.tensor([seen, bad], dtype=torch.long, device=self.args.device)
            seen, bad = self.accelerator.reduce(both, reduction="sum").tolist()
        self.bad_rows.check(seen, bad)

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        """As in Trainer, but of a resumed run that has had all of its updates none."""
        if 0 < self.state.max_steps <= self.state.global_step:
            self.control.should_training_stop = True
        else:
            super()._run_epoch(*args, **kwargs)

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        begin = time.monotonic()
        self.before_step()
        with attention_for_any_length(), fast_backward(wanted=not self.speech_model.attention_was_chosen):
            loss = super().training_step(*args, **kwargs)
        self._busy += time.monotonic() - begin
        return loss

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """As in Trainer; parts of the model have rates of their own where `learning_rates` says so."""
        given = self.optimizer is not None
        optimizer = super().create_optimizer(model)
        if self.args.learning_rates and not given:
            named = (self.model if model is None else model).named_parameters()
            set_learning_rates(optimizer, own_rates(named, self.args.learning_rates))
        return optimizer

    def before_step(self) -> None:
        """Called before each batch is trained on, for schedules."""

    def get_train_dataloader(self) -> DataLoader:
        """Batches of this process; not prepared by Accelerate, which would deal them out again."""
        return self._loader(self.train_dataset, self.data_collator, training=True)

    def get_test_dataloader(self, test_dataset: Any) -> DataLoader:
        return self._loader(test_dataset, self.data_collator.for_evaluation(), training=False, in_order=True)

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader:
        if isinstance(eval_dataset, str):
            eval_dataset = self.eval_dataset[eval_dataset]
        dataset = self.eval_dataset if eval_dataset is None else eval_dataset
        return self._loader(dataset, self.data_collator.for_evaluation(), training=False)

    def _loader(self, dataset: Any, collator: SpeechCollator, training: bool, in_order: bool = False) -> DataLoader:
        place = self.accelerator.process_index, self.accelerator.num_processes
        return build_loader(dataset, collator, self.args, *place, training, self._stream_start, in_order)

    # Reports

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            means, counts = self._totals["train"].take(self.accelerator)
            means.pop("loss", None)
            if self._busy > 0 and counts:
                means["tokens_per_second"] = counts["input_tokens"] / self._busy
                means["audio_seconds_per_second"] = counts["audio_seconds"] / self._busy
            if counts.get("bad_rows"):
                means["bad_rows"] = counts["bad_rows"]
            self._busy = 0.0
            logs |= means
        super().log(logs, start_time)

    def prediction_step(
        self, model: nn.Module, inputs: dict[str, Any], prediction_loss_only: bool, ignore_keys: Any = None
    ) -> tuple[None, torch.Tensor | None, torch.Tensor | None]:
        """The terms go into the totals of the evaluation. Where metrics or predictions are asked for, also logits and
        labels; of several processes all give as many rows, the added ones labelled -100 throughout."""
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager(), attention_for_any_length():
            if self.compute_loss_func is None:
                self._totals["eval"].add(self.terms(model, inputs), inputs["counts"])
            else:
                count = inputs["counts"]["answer_tokens"]
                loss = self.compute_loss_func(
                    *self.outputs(model, inputs), num_items_in_batch=torch.tensor(max(count, 1))
                )
                self._totals["eval"].add({"loss_func": Term(loss * count, "answer_tokens")}, inputs["counts"])
            if prediction_loss_only:
                return None, None, None
            output, labels = self.outputs(model, inputs)
        logits = self.accelerator.pad_across_processes(output.logits, dim=0)
        return None, logits, self.accelerator.pad_across_processes(labels, dim=0, pad_index=IGNORED)

    def evaluation_loop(self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> Any:
        """As in Trainer; the loss and its terms are means over all items of the set, however batched."""
        self._totals["eval"] = Totals()
        output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        means, _ = self._totals["eval"].take(self.accelerator)
        output.metrics.update({f"{metric_key_prefix}_{name}": value for name, value in means.items()})
        return output

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """The card of measured facts in the output folder, in place of TRL's, which tells of text."""
        if self.is_world_process_zero():
            self.write_card(self.args.output_dir)


__all__ = ["SpeechTrainer", "Term"]
