"""The connector that reads with Whisper's decoder (`whisper_reader`), of tokens that Whisper and the LLM both have.

Whisper's tokens of English text are nearly all tokens of the LLM too; the others (names, numbers) Whisper then spells
in shorter ones, and so the rarest. So every vector is one of the LLM's own, and of Whisper's table only the rows that
are used are kept.
"""

from dataclasses import asdict
from pathlib import Path

import torch
from transformers import AutoTokenizer, PreTrainedModel

from modeling_speechllm.configuration_connectors import connector_config
from modeling_speechllm.parents import read_decoder, reading_vocabulary


def shared_tokens(whisper: Path, llm: Path, end: int, most: int) -> dict[int, int]:
    """Whisper's ids before `end` -> the LLM's, of at most so many ASCII tokens that both have: those that the LLM's
    tokenizer learned first, which are the most frequent of its English texts."""
    tokenizer = AutoTokenizer.from_pretrained(whisper)
    found = reading_vocabulary(str(whisper), str(llm), end)
    shared = {id: ids[0] for id, ids in found.items() if len(ids) == 1 and tokenizer.decode([id]).isascii()}
    return dict(sorted(sorted(shared.items(), key=lambda pair: pair[1])[:most]))


def put_reader(model: PreTrainedModel, whisper: Path, llm: Path, most: int) -> None:
    """Gives a SpeechLLM this connector, from folders of a whole Whisper and of the LLM's tokenizer; at most so many
    tokens."""
    settings, decoder = read_decoder({"type": "whisper_reader", "decoder": str(whisper)})
    config = connector_config(settings | {"vocabulary": 1})  # as many as are kept, below
    suppressed = config.suppress_tokens
    shared = shared_tokens(whisper, llm, config.end, most)
    shared = {token: id for token, id in shared.items() if token not in suppressed}
    # Numbered anew: text, what is suppressed in it, the end and all after it.
    kept = [*shared, *suppressed, *range(config.end, config.tokens)]
    count, end = len(shared), len(shared) + len(suppressed)
    moved = end - config.end
    numbers = {"decoder": None, "tokens": len(kept), "vocabulary": count, "end": end, "times": config.times + moved}
    numbers |= {"prompt": [token + moved for token in config.prompt], "no_speech": config.no_speech + moved}
    model.replace_connector(asdict(config) | numbers | {"suppress_tokens": list(range(count, end))})
    state = decoder.state_dict()
    state["embed_tokens.weight"] = state["embed_tokens.weight"][kept]
    rows = torch.tensor(list(shared.values()))
    state |= {"table.token_ids": torch.arange(count), "table.copied_ids": rows}
    state["table.weight"] = model.get_input_embeddings().weight.detach()[rows]
    model.model.multi_modal_projector.load_state_dict(state)
