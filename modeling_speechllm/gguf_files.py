"""GGUF files, read by transformers and gguf as ever, in a quarter of the time.

Most of what loading a small LLM takes is not its weights. transformers builds gguf's table of tensor names once for
every module of the model, and gguf takes the tokenizer's arrays apart one mapped NumPy view at a time, for the config
and again for the weights. Within `quick_gguf` both do the same with less work; no value is computed here.
"""

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from unittest.mock import patch

import numpy as np
from transformers import modeling_gguf_pytorch_utils
from transformers.utils import logging


def quick_reader() -> type:
    """gguf's reader, which goes over arrays of strings or numbers once and without mapped views."""
    from gguf import GGUFReader, GGUFValueType

    class QuickReader(GGUFReader):
        def _get_field_parts(self, orig_offs: int, raw_type: int) -> tuple[int, list, list[int], list]:
            if raw_type != GGUFValueType.ARRAY or self.byte_order == "S":  # of the other byte order
                return super()._get_field_parts(orig_offs, raw_type)
            start = int(orig_offs)
            parts = [self._get(start, np.uint32), self._get(start + 4, np.uint64)]
            kind, count, offset = GGUFValueType(parts[0][0]), int(parts[1][0]), start + 12
            types = [GGUFValueType.ARRAY] + [kind] * (count > 0)
            if kind == GGUFValueType.STRING:
                file, read_length = memoryview(self.data), struct.Struct("=Q").unpack_from
                for _ in range(count):
                    (length,) = read_length(file, offset)
                    parts += [np.frombuffer(file[offset : offset + 8], np.uint64)]
                    parts += [np.frombuffer(file[offset + 8 : offset + 8 + length], np.uint8)]
                    offset += 8 + length
                return offset - start, parts, list(range(3, len(parts), 2)), types
            if kind in self.gguf_scalar_to_np:
                values = np.asarray(self._get(offset, self.gguf_scalar_to_np[kind], count))
                parts += list(values.view(np.ndarray)[:, None])
                return offset + values.nbytes - start, parts, list(range(2, len(parts))), types
            return super()._get_field_parts(orig_offs, raw_type)

    return QuickReader


@contextmanager
def quick_gguf() -> Iterator[None]:
    """Within it GGUF files are loaded quicker. A file is read once for all that is loaded of it."""
    import gguf

    reader, names = quick_reader(), gguf.get_tensor_name_map
    once = lru_cache(maxsize=1)
    with (
        patch.multiple(gguf, GGUFReader=once(reader), get_tensor_name_map=once(names)),
        patch.object(modeling_gguf_pytorch_utils, "tqdm", logging.tqdm),  # which progress bars off are off for
    ):
        yield


__all__ = ["quick_gguf"]
