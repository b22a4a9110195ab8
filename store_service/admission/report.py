"""Shows a verdict to people and to programs."""

import json

from store_service.admission.admit import Verdict


def as_json(verdict: Verdict) -> str:
    """One JSON object with `valid`, `violations`, `warnings`, and the version's `digest` and `manifest` when valid."""
    manifest = verdict.manifest
    document = {
        "valid": manifest is not None,
        "violations": [
            {
                "code": violation.code,
                "subject": violation.subject,
                "found": violation.found,
                "expected": violation.expected,
                "message": violation.message,
            }
            for violation in verdict.violations
        ],
        "warnings": [{"code": warning.code, "message": warning.message} for warning in verdict.warnings],
        "digest": manifest.digest if manifest is not None else None,
        "manifest": json.loads(manifest.canonical_json()) if manifest is not None else None,
    }
    return json.dumps(document, indent=2)


def as_text(verdict: Verdict, name: str) -> str:
    """A few lines for a terminal."""
    manifest = verdict.manifest
    if manifest is None:
        count = len(verdict.violations)
        lines = [f"{name}: refused, {count} violation{'s' if count != 1 else ''}"]
        lines += [f"  {violation.code}  {violation.message}" for violation in verdict.violations]
        return "\n".join(lines)
    ranks = sorted({module.rank for module in manifest.modules})
    lines = [
        f"{name}: valid, {len(manifest.modules)} modules, rank {', '.join(map(str, ranks))}, {manifest.dtype}, "
        f"{manifest.weights_size_bytes:,} bytes normalised",
        f"  {manifest.digest}",
    ]
    return "\n".join([*lines, *(f"  warning: {warning.message}" for warning in verdict.warnings)])
