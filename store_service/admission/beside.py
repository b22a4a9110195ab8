"""Compares what lies beside an adapter's weights with the base's: tokens that end answers, and what is not used."""

from collections.abc import Iterable

from hotslot.contract.admission_warning import AdmissionWarning
from hotslot.formats.base_spec import BaseSpec
from hotslot.formats.companions import ADDED_TOKENS, TOKENIZER, TOKENIZER_CONFIG, Companions

MAX_NAMED = 5
_TOKENIZERS = (TOKENIZER, TOKENIZER_CONFIG, ADDED_TOKENS)


def judge_companions(found: Companions, base: BaseSpec) -> tuple[tuple[int, ...], tuple[AdmissionWarning, ...]]:
    """The tokens that end the adapter's answers beside the base's own, and what its owner should know."""
    damaged = tuple(
        AdmissionWarning("BESIDE_NOT_READABLE", f"{name} beside the weights is not used, for {problem}")
        for name, problem in found.damaged.items()
    )
    end_token_ids, warnings = _compare(found, base) if found.files else ((), ())
    return end_token_ids, (*damaged, *warnings)


def _compare(found: Companions, base: BaseSpec) -> tuple[tuple[int, ...], tuple[AdmissionWarning, ...]]:
    known = base.details.companions if base.details is not None else None
    if known is None:
        return (), (_not_compared(found.files, base),)
    warnings: list[AdmissionWarning] = []
    if not known.files:
        warnings.append(_not_compared(found.files, base))
    elif not set(known.files).isdisjoint(_TOKENIZERS):
        warnings += _tokenizer_warnings(found, known)
    end_ids, unknown = _end_ids(found, known)
    embedding = base.token_embedding
    beyond = {i for i in end_ids if embedding is not None and i >= embedding.in_features}
    if beyond or unknown:
        names = [*unknown, *map(str, sorted(beyond))]
        warnings.append(
            AdmissionWarning(
                "END_TOKEN_NOT_IN_BASE",
                f"the adapter's answers should end at {_listed(names)}, for which the base has no token; they end at "
                "the base's own end tokens",
            )
        )
    return tuple(sorted(end_ids - beyond - set(known.end_token_ids))), tuple(warnings)


def _end_ids(found: Companions, known: Companions) -> tuple[set[int], list[str]]:
    """The adapter's end tokens by id, and those that have none."""
    ids = set(found.end_token_ids)
    if not found.end_token or found.end_token == known.end_token:
        return ids, []
    token_id = known.added_tokens.get(found.end_token, found.added_tokens.get(found.end_token))
    return (ids, [repr(found.end_token)]) if token_id is None else (ids | {token_id}, [])


def _tokenizer_warnings(found: Companions, known: Companions) -> list[AdmissionWarning]:
    warnings = []
    added = [repr(text) for text, i in found.added_tokens.items() if known.added_tokens.get(text) != i]
    if added:
        warnings.append(
            AdmissionWarning(
                "ADDED_TOKENS_NOT_USED",
                f"the adapter's tokenizer has {_listed(added)}, which the base's has not or has with another id; "
                "prompts are encoded with the base's tokenizer, where these are plain text",
            )
        )
    if found.chat_template_digest and found.chat_template_digest != known.chat_template_digest:
        warnings.append(
            AdmissionWarning(
                "CHAT_TEMPLATE_NOT_USED",
                "the adapter's chat template is not the base's; chats are rendered with the base's, so send text or "
                "tokens that you have rendered yourself where the difference matters",
            )
        )
    return warnings


def _not_compared(files: Iterable[str], base: BaseSpec) -> AdmissionWarning:
    return AdmissionWarning(
        "BESIDE_NOT_COMPARED",
        f"{_listed(list(files))} lie beside the weights and are not used; whether they differ from the base's is not "
        f"known, because {base.name} was registered without them: start a worker of this version, or register it again",
    )


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else ""
    return ", ".join(names[:MAX_NAMED]) + more
