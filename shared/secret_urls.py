"""Settings that are URLs with passwords: checked when they are read, and shown masked."""

from pydantic import GetCoreSchemaHandler
from pydantic_core import core_schema

from hotslot.redis_url import REDIS_EXAMPLE, check_redis_url
from hotslot.secret_urls import masked_url, scheme_of


class SecretUrl:
    """A URL that may hold a password: only `value` shows it, never `str` or `repr`."""

    example = "scheme://host/name"

    def __init__(self, value: str) -> None:
        self.value = value

    def __str__(self) -> str:
        return masked_url(self.value)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({masked_url(self.value)!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SecretUrl) and other.value == self.value

    def __hash__(self) -> int:
        return hash(self.value)

    @classmethod
    def check(cls, url: str) -> None:
        """Raise ValueError, without any part of the URL, for what no such URL can be."""

    @classmethod
    def __get_pydantic_core_schema__(cls, source: object, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        """Accepts text; dumps masked."""
        return core_schema.no_info_plain_validator_function(
            cls._validate, serialization=core_schema.plain_serializer_function_ser_schema(str)
        )

    @classmethod
    def _validate(cls, value: object) -> "SecretUrl":
        url = value.value if isinstance(value, SecretUrl) else value
        if not isinstance(url, str) or not scheme_of(url):
            raise ValueError(f"expected a URL, for example {cls.example}")
        cls.check(url)
        return value if isinstance(value, cls) else cls(url)


class RedisUrl(SecretUrl):
    """URL of one node of Redis, or of a cluster."""

    example = REDIS_EXAMPLE

    @classmethod
    def check(cls, url: str) -> None:
        """Raise ValueError, without any part of the URL but its scheme, for what cannot be used."""
        check_redis_url(url)
