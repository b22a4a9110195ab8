"""Messages about admission: what base models are compared by, and what owners of checkpoints should know."""

from collections.abc import Iterable

from hotslot.contract.admission_warning import AdmissionWarning
from hotslot.errors import FieldViolation, InvalidRequestError
from hotslot.formats.base_details import BaseDetails, details_from_json
from hotslot.formats.strict_json import StrictJsonError
from hotslot.pb.hotslot.store.v1 import adapter_store_pb2 as pb


def details_of(message: pb.BaseModel) -> BaseDetails | None:
    """A base model's details; raises InvalidRequestError."""
    try:
        return details_from_json(message.details_json)
    except StrictJsonError as exc:
        raise InvalidRequestError([FieldViolation("details_json", str(exc))]) from exc


def warnings_to_pb(warnings: Iterable[AdmissionWarning]) -> list[pb.Warning]:
    """Warnings as messages."""
    return [pb.Warning(code=warning.code, message=warning.message) for warning in warnings]
