"""Budget of a step: prompts share the tokens that the sequences that generate leave."""

from collections.abc import Sequence


def share_budget(uncomputed: Sequence[int], budget: int) -> list[int]:
    """Tokens of each prompt to compute in a step of `budget` tokens; `uncomputed` is in the order of their rows.

    The first prompt gets half of the budget, so that it ends in time however many others come; what is left goes to
    the shortest remainder first, so that a long prompt does not hold up the first tokens of short ones (shortest
    remaining time first has the smallest mean, Schrage 1968). So a prompt of n tokens, with m before it, is done after
    at most 2 (n + m) / budget steps, rounded up for each prompt; the shortest one after 2 n / budget.
    """
    shares = [0] * len(uncomputed)
    if not uncomputed:
        return shares
    shares[0] = min(uncomputed[0], -(-budget // 2))
    budget -= shares[0]
    for index in sorted(range(len(uncomputed)), key=lambda i: uncomputed[i] - shares[i]):
        more = min(uncomputed[index] - shares[index], budget)
        shares[index] += more
        budget -= more
    return shares
