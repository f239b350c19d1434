"""The chats of an evaluation: a row's own messages bare of what cannot be asked, contexts, audios in words."""

from processing_speechllm.chat_messages import AUDIO_KINDS, block_source, normalize_chats

CONTEXT = "{context}"


def with_context(instruction: str, context: str | None) -> str:
    """The instruction with the text beside the speech: in its place `{context}`, else on lines before it."""
    if context is None:
        return instruction
    return instruction.replace(CONTEXT, context) if CONTEXT in instruction else f"{context}\n\n{instruction}"


def without_answer(messages: list[dict]) -> tuple[list[dict], str | None]:
    """A chat up to where the assistant's last turn begins, bare of what `datasets` adds, and that turn in words."""
    (messages,), _ = normalize_chats(messages)
    chat = []
    for message in messages:
        content = message.get("content", "")
        content = content if isinstance(content, str) else list(map(_bare_block, content))
        chat.append({"role": message["role"], "content": content})
    if chat[-1]["role"] != "assistant":
        return chat, None
    if len(chat) == 1:
        raise ValueError("its messages are an answer alone")
    return chat[:-1], content_in_words(chat[-1]["content"])


def _bare_block(block: dict) -> dict:
    """A block of text or audio without anything else; what would be lost with it is refused."""
    kind = block.get("type")
    if kind == "text" and isinstance(block.get("text"), str):
        return {"type": "text", "text": block["text"]}
    if kind not in AUDIO_KINDS:
        raise ValueError(f"a block of kind {kind!r} in its messages, where only text and audio can be asked about")
    if kind != "audio" or block_source(block) is not None:
        raise ValueError(
            f"a block of kind {kind!r} in its messages holds the audio itself; put the audio into the column 'audio' "
            'and {"type": "audio"} in its place'
        )
    return {"type": "audio"}


def check_audio_blocks(chat: list[dict], audios: int, texts: list[str] | None) -> None:
    """Refuses chats that have not one block per audio, and rows that have not one transcript per audio."""
    blocks = sum(
        block["type"] == "audio"
        for message in chat
        if isinstance(message["content"], list)
        for block in message["content"]
    )
    if blocks != audios:
        raise ValueError(
            f"its messages have {blocks} audio blocks, the row has {audios} audios; give one block per audio"
        )
    if texts is not None and len(texts) != audios:
        raise ValueError(f"it has {len(texts)} transcripts for {audios} audios; give a list with one per audio")


def content_in_words(content: str | list[dict]) -> str:
    """A message's content as people read it, audios as [audio]."""
    if isinstance(content, str):
        return content
    return "".join("[audio]" if block["type"] == "audio" else block["text"] for block in content)


__all__ = ["check_audio_blocks", "content_in_words", "with_context", "without_answer"]
