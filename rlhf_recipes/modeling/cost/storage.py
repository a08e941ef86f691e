"""Bytes of a weight matrix, as it is held in 16, 8 and 4 bit by bitsandbytes."""

BLOCK, OUTER_BLOCK = 64, 256  # weights that share a scale, and scales that do


def stored_bytes(outputs: int, inputs: int, bits: int, itemsize: int = 2) -> int:
    """Bytes of a matrix, with the scales that it is multiplied with.

    In 4 bit (NF4, arXiv 2305.14314, section 3) two weights are one byte, and 64 of them share a scale of 4 bytes; in
    8 bit (arXiv 2208.07339) each output has one scale of 4 bytes.

    Args:
        bits (`int`): 16, 8 or 4. 16 is the precision of the model, of `itemsize` bytes.
    """
    weights = outputs * inputs
    if bits == 16:
        return weights * itemsize
    if bits == 8:
        return weights + 4 * outputs
    return -(-weights // 2) + 4 * -(-weights // BLOCK)
