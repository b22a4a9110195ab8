"""The pool's secret: one file, a key for each purpose, changed without a restart."""

import os
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from hotslot.errors import InvalidRequestError
from shared.pool_secret import MAX_SECRETS, MIN_POOL_SECRET_LENGTH, PoolSecret, Purpose, derived_key, main

OLD, NEW = "old secret of the pool, long enough", "new secret of the pool, long enough"


def secret_file(folder: Path, *lines: str) -> Path:
    path = folder / "pool.secret"
    path.write_text("".join(f"{line}\n" for line in lines), "utf-8")
    return path


@pytest.mark.parametrize("purpose", Purpose)
def test_keys_are_those_of_hkdf(tmp_path: Path, purpose: Purpose) -> None:
    theirs = HKDF(hashes.SHA256(), 32, salt=b"hotslot pool secret v1", info=purpose.encode()).derive(OLD.encode())
    assert PoolSecret(secret_file(tmp_path, OLD)).keys(purpose) == (theirs,)


def test_a_key_of_one_purpose_is_none_of_another() -> None:
    assert len({derived_key(OLD.encode(), purpose) for purpose in Purpose}) == len(Purpose)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "found 0 secrets"),
        (b"\n \n", "found 0 secrets"),
        (b"SECRETshort\n", "a secret of 11 characters, expected 32"),
        (f"{OLD}\nSECRET\n".encode(), "a secret of 6 characters"),
        (f"{OLD}\n".encode() * (MAX_SECRETS + 1), f"found {MAX_SECRETS + 1} secrets"),
        (b"\xff\xfe" * 40, "expected text"),
        (None, "No such file"),
    ],
)
def test_a_file_that_is_none_is_told_without_a_piece_of_it(tmp_path: Path, content: bytes | None, said: str) -> None:
    path = tmp_path / "pool.secret"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InvalidRequestError) as refused:
        PoolSecret(path)
    assert said in str(refused.value)
    assert "SECRET" not in str(refused.value)
    assert str(MIN_POOL_SECRET_LENGTH) in str(refused.value) or "characters" not in str(refused.value)


def test_a_file_that_changes_is_read_again_and_a_broken_one_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = PoolSecret(secret_file(tmp_path, OLD))
    # Files are looked at once a second, by a clock of their own.
    now_s = [secret._lines._stamps._looked_s]
    secret._lines._stamps._clock = lambda: now_s[0]
    before = secret.keys(Purpose.RECORDS)
    assert secret.keys(Purpose.RECORDS) is before

    def write(*lines: str) -> None:
        os.utime(secret_file(tmp_path, *lines), ns=(0, int(now_s[0] * 1e9)))
        now_s[0] += 2

    write(NEW, OLD)
    assert secret.keys(Purpose.RECORDS) == (derived_key(NEW.encode(), Purpose.RECORDS), *before)
    write("short")
    assert secret.keys(Purpose.RECORDS)[1:] == before
    write(NEW)
    assert secret.keys(Purpose.RECORDS) == (derived_key(NEW.encode(), Purpose.RECORDS),)


def test_the_key_of_records_alone_seals_no_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = PoolSecret(secret_file(tmp_path, NEW, OLD))
    assert main([str(tmp_path / "pool.secret")]) == 0
    printed = capsys.readouterr().out
    part = PoolSecret(secret_file(tmp_path, *printed.split()))
    assert part.keys(Purpose.RECORDS) == whole.keys(Purpose.RECORDS)
    assert part.keys(Purpose.COMPILED_CODE) == ()
    assert main([]) == 2
    assert main([str(tmp_path / "absent")]) == 2
    assert "No such file" in capsys.readouterr().err
