"""The KV blocks of sequences: what is found in the prefix cache, what is taken, and what is left for others to find."""

from worker_service.engine.kv_blocks import KvBlocks
from worker_service.engine.limits import EngineLimits, EnginePolicy
from worker_service.engine.messages import SequenceId
from worker_service.engine.prefix_keys import block_key, root_key
from worker_service.engine.sequence import Sequence

SPARE_BLOCKS = 16
"""Blocks beyond its tokens that a sequence takes for its answer, so that these lie side by side."""
SPARE_SHARE = 8
"""No more spare blocks than this part of those that are free."""


class SequenceBlocks:
    """Blocks for sequences, over the cache of full blocks.

    Sequences that grow beside each other would each find the next block taken, so each takes some in advance; when
    blocks run out, those go first.

    A sequence shares full, computed blocks only, and never the one with its last token: that token is computed
    anyway, because the next one follows from it. So it writes to blocks that it alone holds.
    """

    def __init__(self, limits: EngineLimits, policy: EnginePolicy) -> None:
        self._limits = limits
        self._policy = policy
        self.blocks = KvBlocks(limits.num_blocks)
        self._with_spares: dict[SequenceId, Sequence] = {}
        self.queried_tokens = 0
        """Tokens of prompts that were looked for."""
        self.hit_tokens = 0
        """Tokens of these prompts that were found in the prefix cache."""

    def allocate(self, sequence: Sequence) -> bool:
        """Give a sequence without blocks those for all of its tokens, shared where they are known; all or nothing."""
        found = self._find(sequence)
        for block in found:
            self.blocks.hold(block)
        sequence.blocks = list(found)
        if not self.grow(sequence):
            self.blocks.give_back(found)
            sequence.blocks = []
            return False
        sequence.num_computed = sequence.num_settled = len(found) * self._limits.block_tokens
        sequence.num_named_blocks = len(found)
        if sequence.num_cached is None:
            sequence.num_cached = sequence.num_computed
            self.queried_tokens += sequence.num_prompt_tokens
            self.hit_tokens += sequence.num_computed
        return True

    def num_missing(self, sequence: Sequence) -> int:
        """Tokens that a sequence without blocks would have to compute if it got them now; takes nothing."""
        return len(sequence.token_ids) - len(self._find(sequence)) * self._limits.block_tokens

    def num_needed(self, sequence: Sequence) -> int:
        """Blocks that must be free for a sequence without blocks; kept ones that it finds count among those."""
        found = self._find(sequence)
        num_kept = sum(block not in self.blocks.users for block in found)
        return self._limits.blocks_for(sequence.num_placed) - len(found) + num_kept

    def num_own(self, sequence: Sequence) -> int:
        """Blocks that would be free without this sequence."""
        return sum(self.blocks.users[block] == 1 for block in sequence.blocks)

    def catch_up(self, sequence: Sequence) -> None:
        """Skip what another sequence has computed since this one got its blocks."""
        block_tokens = self._limits.block_tokens
        if not self._may_share(sequence) or sequence.num_computed % block_tokens:
            return
        index = sequence.num_computed // block_tokens
        while index < self._num_shareable(sequence):
            block = self.blocks.find(self._key(sequence, index))
            if block is None:
                break
            is_new = block != sequence.blocks[index]
            if is_new:
                self.blocks.hold(block)
                self.blocks.give_back([sequence.blocks[index]])
                sequence.blocks[index] = block
            # One that it has already was caught up with by a step that failed and is computed again.
            sequence.num_computed += block_tokens
            sequence.num_named_blocks = index = index + 1
            if is_new and sequence.num_cached is not None and not sequence.num_preemptions:
                sequence.num_cached += block_tokens
                self.hit_tokens += block_tokens

    def grow(self, sequence: Sequence) -> bool:
        """Give a sequence blocks for all of its tokens, one being chosen included; False when there is none left."""
        num_needed = self._limits.blocks_for(sequence.num_placed) - len(sequence.blocks)
        if num_needed <= 0:
            return True
        num_spare = min(
            self._expected_blocks(sequence) - len(sequence.blocks) - num_needed,
            (self.blocks.num_free - num_needed) // SPARE_SHARE,
            SPARE_BLOCKS,
        )
        if num_spare > 0:
            self._with_spares[sequence.submit.sequence_id] = sequence
        taken = self.blocks.take(num_needed + max(num_spare, 0), sequence.blocks)
        if taken is None:
            self._give_up_spares()
            taken = self.blocks.take(num_needed, sequence.blocks)
        if taken is None:
            return False
        sequence.blocks += taken
        return True

    def publish(self, sequence: Sequence) -> None:
        """Let others find the blocks that the last step filled."""
        if not self._policy.prefix_cache:
            return
        num_full = sequence.num_settled // self._limits.block_tokens
        for index in range(sequence.num_named_blocks, num_full):
            self.blocks.name(sequence.blocks[index], self._key(sequence, index))
        sequence.num_named_blocks = max(num_full, sequence.num_named_blocks)

    def free(self, sequence: Sequence) -> None:
        """Let go of all blocks; what was published can still be found for a while."""
        self._with_spares.pop(sequence.submit.sequence_id, None)
        self.blocks.give_back(sequence.blocks)
        sequence.blocks = []
        sequence.num_computed = sequence.num_settled = 0
        sequence.num_named_blocks = 0

    def forget(self, sequence: Sequence) -> None:
        """Let no sequence find the blocks that one has computed; sequences that hold some of them go on with them."""
        self.blocks.unname(sequence.blocks)

    def _give_up_spares(self) -> None:
        """Take back what sequences have beyond their tokens."""
        for sequence in self._with_spares.values():
            num_used = self._limits.blocks_for(sequence.num_placed)
            self.blocks.give_back(sequence.blocks[num_used:])
            del sequence.blocks[num_used:]
        self._with_spares.clear()

    def _find(self, sequence: Sequence) -> list[int]:
        """The longest known beginning of a sequence."""
        found: list[int] = []
        if self._may_share(sequence):
            for index in range(self._num_shareable(sequence)):
                block = self.blocks.find(self._key(sequence, index))
                if block is None:
                    break
                found.append(block)
        return found

    def _may_share(self, sequence: Sequence) -> bool:
        return self._policy.prefix_cache and not sequence.wants_prompt_scores

    def _num_shareable(self, sequence: Sequence) -> int:
        return (len(sequence.token_ids) - 1) // self._limits.block_tokens

    def _key(self, sequence: Sequence, index: int) -> bytes:
        """The key of a full block, computed once."""
        keys, size = sequence.block_keys, self._limits.block_tokens
        if not keys:
            submit = sequence.submit
            keys.append(root_key(submit.tenant, sequence.mix, share_base=self._policy.share_base_prefixes))
        while len(keys) <= index + 1:
            first = (len(keys) - 1) * size
            keys.append(block_key(keys[-1], sequence.token_ids[first : first + size]))
        return keys[index + 1]

    def _expected_blocks(self, sequence: Sequence) -> int:
        most = min(sequence.num_prompt_tokens + sequence.submit.stop.max_tokens, self._limits.max_sequence_tokens)
        return self._limits.blocks_for(most)
