"""Settings: read once, in `__main__`, from `HOTSLOT_*` variables and the same names as flags.

    class StoreSettings(Settings):
        num_slots: int = Field(default=8, ge=1)
        \"\"\"Slots in every target module.\"\"\"

    settings = load(StoreSettings, prog="python -m store_service")

`HOTSLOT_NUM_SLOTS=4` and `--num-slots 4` set the field; a flag wins. A wrong value ends the process with exit code 2
and one line for each that says which it is. Constructing a Settings class by hand reads no environment.
"""

import sys
from collections.abc import Sequence
from typing import Annotated, Any, TypeVar
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

from pydantic import BaseModel, BeforeValidator, ConfigDict, GetCoreSchemaHandler, ValidationError
from pydantic_core import ErrorDetails, core_schema
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict
from pydantic_settings.exceptions import SettingsError

ENV_PREFIX = "HOTSLOT_"
EXIT_WRONG_SETTING = 2
_SECRET_PARAMETERS = {"password", "username", "token", "ssl_password"}


class Settings(BaseModel):
    """Base of all settings classes: frozen, nothing unknown, a docstring under each field is its help."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, validate_default=True)

    def shown(self) -> dict[str, Any]:
        """Every setting as it may be logged, with secrets masked."""
        return {
            name: value if isinstance(value, bool | int | float | None) else str(value)
            for name in type(self).model_fields
            for value in [getattr(self, name)]
        }


def _split(value: object) -> object:
    if isinstance(value, str):
        value = [value]
    return [part for text in value for part in text.split(",") if part] if isinstance(value, list) else value


TextList = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split)]
"""Several texts: separated by commas, or as a repeated flag."""

AnySettings = TypeVar("AnySettings", bound=Settings)


class SecretUrl:
    """A URL that may hold a password: only `value` shows it, never `str` or `repr`."""

    def __init__(self, value: str) -> None:
        self.value = value

    def __str__(self) -> str:
        return masked_url(self.value)

    def __repr__(self) -> str:
        return f"SecretUrl({masked_url(self.value)!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SecretUrl) and other.value == self.value

    def __hash__(self) -> int:
        return hash(self.value)

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        """Accepts text; dumps masked."""
        return core_schema.no_info_plain_validator_function(
            cls._validate, serialization=core_schema.plain_serializer_function_ser_schema(str)
        )

    @classmethod
    def _validate(cls, value: object) -> "SecretUrl":
        if isinstance(value, SecretUrl):
            return value
        if not isinstance(value, str) or "://" not in value:
            raise ValueError("expected a URL, for example redis://host:6379/0")
        return cls(value)


def masked_url(url: str) -> str:
    """The URL with everything secret in it replaced by ***."""
    parts = urlsplit(url)
    user, at, host = parts.netloc.rpartition("@")
    if at and ":" in user:
        user = user.partition(":")[0] + ":***"
    query = [(k, "***" if k in _SECRET_PARAMETERS else v) for k, v in parse_qsl(parts.query, keep_blank_values=True)]
    return urlunsplit(parts._replace(netloc=user + at + host, query=urlencode(query, safe="*")))


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
        lines = [str(exc).removeprefix("error parsing CLI: ")]
    print("\n".join(f"{prog}: {line}" for line in lines), file=sys.stderr)  # noqa: T201 (no logging yet)
    print(f"{prog}: --help lists all settings", file=sys.stderr)  # noqa: T201
    raise SystemExit(EXIT_WRONG_SETTING)


def _explain(settings: type[Settings], error: ErrorDetails) -> str:
    name = str(error["loc"][0]) if error["loc"] else ""
    message = error["msg"].removeprefix("Value error, ")
    if name not in settings.model_fields:
        return f"{name}: {message}" if name else message
    where = f"--{name.replace('_', '-')} ({ENV_PREFIX}{name.upper()})"
    if error["type"] == "missing":
        return f"{where}: must be set"
    found = str(error["input"])
    shown = masked_url(found) if "://" in found else found
    secret = settings.model_fields[name].annotation is SecretUrl and "://" not in found
    return f"{where}: {message}" + ("" if secret else f"; found {shown[:120]!r}")
