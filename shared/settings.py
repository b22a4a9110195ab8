"""Settings: read once, in `__main__`, from `HOTSLOT_*` variables and the same names as flags.

    class StoreSettings(Settings):
        num_slots: int = Field(default=8, ge=1)
        \"\"\"Slots in every target module.\"\"\"

    settings = load(StoreSettings, prog="python -m store_service")

`HOTSLOT_NUM_SLOTS=4` and `--num-slots 4` set the field; a flag wins. A wrong value ends the process with exit code 2
and one line for each that says which it is. Constructing a Settings class by hand reads no environment.
"""

import os
import sys
from collections.abc import Callable, Sequence
from typing import Annotated, Any, TypeVar, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    GetCoreSchemaHandler,
    SecretBytes,
    SecretStr,
    ValidationError,
)
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails, core_schema
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict
from pydantic_settings.exceptions import SettingsError

from hotslot.endpoints import advertised_endpoint, dialled_endpoint, listen_endpoint
from hotslot.errors import InvalidEndpointError
from hotslot.redis_url import REDIS_EXAMPLE, check_redis_url
from hotslot.secret_urls import masked_url, scheme_of
from shared.failed_start import EXIT_REFUSED, pause_before_end

ENV_PREFIX = "HOTSLOT_"
EXIT_WRONG_SETTING = EXIT_REFUSED
MAX_START_PAUSE_S = 3600.0


class Settings(BaseModel):
    """Base of all settings classes: frozen, nothing unknown, a docstring under each field is its help."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        use_attribute_docstrings=True,
        validate_default=True,
        # An error of a secret setting may end up in a traceback.
        hide_input_in_errors=True,
    )

    def shown(self) -> dict[str, Any]:
        """Every setting as it may be logged, with secrets masked."""
        return {
            name: value if isinstance(value, bool | int | float | None) else str(value)
            for name in type(self).model_fields
            for value in [getattr(self, name)]
        }


def split_text(value: object) -> object:
    """Parts of a text, or of several, between commas."""
    if isinstance(value, str):
        value = [value]
    return [part for text in value for part in text.split(",") if part] if isinstance(value, list) else value


TextList = Annotated[tuple[str, ...], NoDecode, BeforeValidator(split_text)]
"""Several texts: separated by commas, or as a repeated flag."""

AnySettings = TypeVar("AnySettings", bound=Settings)


def _endpoint(parse: Callable[[str], object]) -> AfterValidator:
    """Check text by a parser of endpoints; the value is its text as the parser writes it."""

    def check(text: str) -> str:
        try:
            return str(parse(text))
        except InvalidEndpointError as exc:
            raise ValueError(exc.problem) from exc

    return AfterValidator(check)


ListenAddress = Annotated[str, _endpoint(listen_endpoint)]
"""host:port to listen on, or a Unix socket."""
DialledAddress = Annotated[str, _endpoint(dialled_endpoint)]
"""host:port to call, or a scheme that gRPC resolves."""
AdvertisedAddress = Annotated[str, _endpoint(lambda text: advertised_endpoint(text) if text else "")]
"""host:port that other machines are told; empty when it is not set."""


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


def load(settings: type[AnySettings], *, prog: str, argv: Sequence[str] | None = None) -> AnySettings:
    """Read the process's flags and environment; prints what is wrong and exits with 2 when it cannot.

    `argv` is for tests; None means the process's own.
    """
    config = SettingsConfigDict(
        env_prefix=ENV_PREFIX,
        # Other programs' HOTSLOT_ variables live in the same environment.
        extra="ignore",
        cli_prog_name=prog,
        cli_parse_args=list(sys.argv[1:] if argv is None else argv),
        cli_kebab_case=True,
        cli_implicit_flags=True,
        cli_hide_none_type=True,
        cli_avoid_json=True,
        cli_exit_on_error=False,
    )
    source = type(settings.__name__, (settings, BaseSettings), {"model_config": config, "__doc__": settings.__doc__})
    try:
        found = source()
        return settings(**{name: getattr(found, name) for name in settings.model_fields})
    except ValidationError as exc:
        lines = [_explain(settings, error) for error in exc.errors()]
    except SettingsError as exc:
        lines = [_without_urls(str(exc).removeprefix("error parsing CLI: "))]
    with pause_before_end(_start_pause_s()):
        print("\n".join(f"{prog}: {line}" for line in lines), file=sys.stderr)  # noqa: T201 (no logging yet)
        print(f"{prog}: --help lists all settings", file=sys.stderr)  # noqa: T201
    raise SystemExit(EXIT_WRONG_SETTING)


def _start_pause_s() -> float:
    """The setting start_pause_s, looked up by itself, since the settings as a whole could not be read."""
    try:
        return min(float(os.environ.get(f"{ENV_PREFIX}START_PAUSE_S", "0")), MAX_START_PAUSE_S)
    except ValueError:
        return 0.0


def _explain(settings: type[Settings], error: ErrorDetails) -> str:
    name = str(error["loc"][0]) if error["loc"] else ""
    message = error["msg"].removeprefix("Value error, ")
    if name not in settings.model_fields:
        return f"{name}: {message}" if name else message
    where = f"--{name.replace('_', '-')} ({ENV_PREFIX}{name.upper()})"
    if error["type"] == "missing":
        return f"{where}: must be set"
    if is_secret(settings.model_fields[name]):
        return f"{where}: {message}"
    return f"{where}: {message}; found {_without_urls(str(error['input']))[:120]!r}"


def is_secret(field: FieldInfo) -> bool:
    """True when a setting's value is never to be shown as it is."""
    kinds = {field.annotation, *get_args(field.annotation)}
    return any(isinstance(kind, type) and issubclass(kind, SecretUrl | SecretStr | SecretBytes) for kind in kinds)


def _without_urls(text: str) -> str:
    """Text with every URL in it masked: one that holds a password may stand in a wrong place."""
    return " ".join(masked_url(word) if "://" in word else word for word in text.split(" "))
