"""Places of errors' attributes in the statuses that carry them."""

from enum import Enum


class Detail(Enum):
    """Place of an attribute; `hotslot.rpc.details` has the forms."""

    FIELDS = "fields"
    VIOLATIONS = "violations"
    RESOURCE = "resource"
    PRECONDITION = "precondition"
    QUOTA = "quota"
    RETRY = "retry"
    TEXT = "text"
    NUMBER = "number"
