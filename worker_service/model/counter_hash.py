"""Noise of draws as a function of (seed, position, token): the same bits on any device, in any batch and any order.

Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"), with the seed as its key. One block
of four words serves four neighbouring tokens: token t takes word t % 4 of the block whose counter is
(t // 4, position, 0, 0). The kernels compute the same (`cpu/sampling.h`); a change here changes every seeded answer.

Shapes: R rows, V tokens of the vocabulary, W blocks of four words.
"""

import torch

ROUNDS = 10
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
WORDS_OF_A_BLOCK = 4
_MASK32 = 0xFFFFFFFF
LARGEST_UNIFORM = 1.0 - 2.0**-24
"""Largest float below 1, so that no noise is infinite."""


def philox(
    counters: tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], keys: tuple[torch.Tensor, torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Four words for each counter and key; all are int64 tensors that hold 32 bits, of shapes that broadcast."""
    c0, c1, c2, c3 = counters
    k0, k1 = keys
    for index in range(ROUNDS):
        if index:
            k0, k1 = (k0 + KEY_STEPS[0]) & _MASK32, (k1 + KEY_STEPS[1]) & _MASK32
        # Products take 64 bits, of which int64 keeps all; the mask takes off the sign that shifting brings in.
        first, second = c0 * MULTIPLIERS[0], c2 * MULTIPLIERS[1]
        c0, c1 = ((second >> 32) & _MASK32) ^ c1 ^ k0, second & _MASK32
        c2, c3 = ((first >> 32) & _MASK32) ^ c3 ^ k1, first & _MASK32
    return c0, c1, c2, c3


def words(seeds_R: torch.Tensor, positions_R: torch.Tensor, num_tokens: int) -> torch.Tensor:
    """32 random bits for each token of each row, int64 `[R, V]`; `seeds_R` are 64 bits in int64."""
    device = seeds_R.device
    seeds_R1, positions_R1 = seeds_R[:, None], positions_R[:, None] & _MASK32
    blocks_W = torch.arange(-(-num_tokens // WORDS_OF_A_BLOCK), device=device)
    nothing = torch.zeros((), dtype=torch.int64, device=device)
    counters = blocks_W, positions_R1, nothing, nothing
    found = philox(counters, (seeds_R1 & _MASK32, (seeds_R1 >> 32) & _MASK32))
    return torch.stack(found, -1).flatten(1)[:, :num_tokens]


def exponentials(seeds_R: torch.Tensor, positions_R: torch.Tensor, num_tokens: int) -> torch.Tensor:
    """Noise of the exponential distribution for each token of each row, fp32 `[R, V]`, finite and above 0.

    Of a word w it is -log(1 - u) for u = (w + 0.5) / 2^32, which is fine-grained where it is small: the smallest value
    wins a draw.
    """
    uniform_RV = (words(seeds_R, positions_R, num_tokens).to(torch.float32) + 0.5) * 2.0**-32
    return -torch.log1p(-uniform_RV.clamp(max=LARGEST_UNIFORM))
