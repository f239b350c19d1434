"""Read an Ogg's pages, because libsndfile leaves out those that are cut or damaged and announces the shorter length.

Each page tells its size, its number in its stream and a checksum, and the last one of a stream is marked (RFC 3533,
section 6).
"""

import zlib
from collections.abc import Iterator

HEADER = 27  # bytes before the table of segments
MIRRORED = bytes(int(f"{value:08b}"[::-1], 2) for value in range(256))
FIRST, LAST = 2, 4  # bits of a page's kind


def pages(content: bytes) -> Iterator[tuple[int, int]]:
    """(offset, size) of each page from the start on. Of a page that is cut it is the whole size where its table of
    segments is there, else that of its header."""
    position = 0
    while content[position : position + 4] == b"OggS":
        size = HEADER
        if position + HEADER <= len(content):
            size += content[position + HEADER - 1]
            size += sum(content[position + HEADER : position + size])
        yield position, size
        position += size


def checksum(page: bytes) -> int:
    """Ogg's CRC-32 (polynomial 0x04c11db7, highest bit first, from zero) of a page whose own stands as zeros; that of
    zlib goes the other way."""
    mirrored = zlib.crc32(page.translate(MIRRORED), 0xFFFFFFFF) ^ 0xFFFFFFFF
    return int(f"{mirrored:032b}"[::-1], 2)


def examine(content: bytes) -> tuple[str, bool]:
    """What is wrong with an Ogg's pages, empty if nothing is, and whether the end of each stream is marked."""
    opened: dict[bytes, int] = {}  # stream -> number of its latest page
    end = count = 0
    for count, (start, size) in enumerate(pages(content), start=1):
        end = start + size
        if end > len(content):
            return "truncated Ogg: its last page is not whole", False
        page = content[start:end]
        if checksum(page[:22] + bytes(4) + page[26:]) != int.from_bytes(page[22:26], "little"):
            return f"damaged Ogg: the checksum of page {count} is wrong", False
        kind, stream, number = page[5], bytes(page[14:18]), int.from_bytes(page[18:22], "little")
        if kind & FIRST and count > 1 and not opened:
            return "an Ogg of several recordings, one behind the other, of which only the first would be heard", True
        if number != opened.get(stream, number - 1) + 1:
            return f"damaged Ogg: pages before page {count} are missing", False
        opened[stream] = number
        if kind & LAST:
            del opened[stream]
    if opened and content[end:].strip(b"\0"):
        return f"truncated or damaged Ogg: after page {count} comes something else", False
    return "", not opened


__all__ = ["checksum", "examine", "pages"]
