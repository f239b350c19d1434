"""Count an MP3's frames, because libsndfile only guesses them where no Xing header says how many there are.

For a variable bit rate without that header its guess can be half the length, and it then stops reading there without a
word. Walking from frame to frame gives the true number, and a header written from it makes libsndfile read them all.
"""

BITRATES = {  # kbit/s of layer III by index, MPEG-1 and MPEG-2/2.5
    1: (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    2: (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
RATES = {3: (44100, 48000, 32000), 2: (22050, 24000, 16000), 0: (11025, 12000, 8000)}  # by version bits


def frame_size(header: bytes) -> tuple[int, int]:
    """(bytes, samples) of the layer-III frame that these four bytes head; (0, 0) if they head none."""
    if len(header) < 4 or header[0] != 0xFF or header[1] & 0xE6 != 0xE2:  # sync, layer III
        return 0, 0
    version, bitrate, rate = header[1] >> 3 & 3, header[2] >> 4, header[2] >> 2 & 3
    if version == 1 or bitrate in (0, 15) or rate == 3:
        return 0, 0
    first = version == 3
    size = (144 if first else 72) * BITRATES[1 if first else 2][bitrate] * 1000 // RATES[version][rate]
    return size + (header[2] >> 1 & 1), 1152 if first else 576


def walk(content: bytes) -> tuple[int, int, int, int]:
    """(offset of the first frame, whole frames, samples per frame, bytes missing from the last frame)."""
    position = 0
    while content[position : position + 3] == b"ID3" and position + 10 <= len(content):
        size = content[position + 6 : position + 10]
        position += 10 + (size[0] << 21 | size[1] << 14 | size[2] << 7 | size[3])
    first, count, samples = -1, 0, 0
    while position + 4 <= len(content):
        size, samples_here = frame_size(content[position : position + 4])
        after = position + size
        if size == 0 or first < 0 and after + 4 <= len(content) and frame_size(content[after : after + 4])[0] == 0:
            if first >= 0:  # tags or other matter behind the audio
                return first, count, samples, 0
            position += 1  # matter before the audio; a real frame is followed by another
            continue
        first, samples = (position, samples_here) if first < 0 else (first, samples)
        if after > len(content):
            return first, count, samples, after - len(content)
        count, position = count + 1, after
    return first, count, samples, 0


def with_length_header(content: bytes, first: int, count: int) -> bytes:
    """The MP3 with a Xing header before its first frame that announces `count` frames."""
    head = bytearray(content[first : first + 4])
    head[1] |= 1  # no checksum
    head[2] = head[2] & 0x0D | 0x90  # a bit rate whose frame surely holds the header; no padding
    mono, mpeg1 = head[3] >> 6 == 3, head[1] >> 3 & 3 == 3
    side_info = (17 if mono else 32) if mpeg1 else (9 if mono else 17)
    frame = bytes(head) + bytes(side_info) + b"Xing" + (1).to_bytes(4, "big") + count.to_bytes(4, "big")
    return frame.ljust(frame_size(bytes(head))[0], b"\0") + content[first:]
