"""Identity of what `hotslot up` runs: made before the start, and looked after while it runs."""

from collections.abc import Callable

from hotslot.cli.output import say
from hotslot.cli.supervisor import ProcessEvent, UpPlan
from hotslot.errors import PreconditionError
from hotslot.local.identity_files import Renewal
from hotslot.local.identity_keeper import IdentityKeeper

_TOLD = {
    Renewal.CERTIFICATES: "certificates were renewed",
    Renewal.AUTHORITY: "certificates have a new authority, and the one before is trusted no longer",
}


def prepared(plan: UpPlan) -> Callable[[], ProcessEvent | None]:
    """Have certificates and tokens in the plan's folder; returns what is to be called while its processes run.

    Raises PreconditionError, and InvalidRequestError for a file of principals that cannot be read.
    """
    assert plan.identity is not None
    keeper = IdentityKeeper(plan.identity, plan.hosts)
    try:
        keeper.prepare()
    except OSError as exc:
        problem = f"{exc.filename or plan.identity.folder}: {exc.strerror or exc}"
        raise PreconditionError(f"certificates and tokens cannot be kept: {problem}", "up") from exc

    def look() -> ProcessEvent | None:
        try:
            done = keeper.look()
        except (OSError, PreconditionError) as exc:
            say(f"hotslot: certificates are not renewed: {exc}")
            return None
        return ProcessEvent("renewed", {"what": done.value}, _TOLD[done]) if done is not None else None

    return look
