"""Signed adapters: what is signed by an allowed signer goes on, and every other signature is refused for what it is."""

import base64
import copy
import hashlib
import json
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hotslot.errors import InvalidRequestError, SignatureRefusedError, StoreUnavailableError
from hotslot.formats.companions import SUMMARY_FILE, Companions
from hotslot.ids import TenantId
from store_service.admission.admit import Checkpoint
from store_service.signatures.policy import read_policies
from store_service.signatures.requirement import SignatureRequirement, Signed
from tests.support.checkpoints import adapter
from tests.support.signing import DAY, SIGNATURE, TestAuthority, TestKey, bundle_of, policy_file, resign

ACME = TenantId("acme")
CONFIG, WEIGHTS, GENERATION = "adapter_config.json", "adapter_model.safetensors", "generation_config.json"
CI = x509.UniformResourceIdentifier("spiffe://acme/ci")


class Place:
    """A folder to sign, with the parties."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.folder = root / "bot"
        adapter().write(self.folder)
        (self.folder / GENERATION).write_text('{"eos_token_id": 7}')
        (self.folder / "README.md").write_text("a bot")
        self.release, self.stranger = TestKey(root / "keys", "release"), TestKey(root / "keys", "stranger")
        self.authority, self.other = TestAuthority(root / "keys", "ca"), TestAuthority(root / "keys", "other")
        self.policies = policy_file(
            root / "policies.json",
            {
                "acme": [
                    {"name": "release", "key": "keys/release.pub"},
                    {"name": "builds", "authority": "keys/ca.pem", "identities": ["spiffe://acme/ci", "ci@acme.org"]},
                ]
            },
        )

    def checkpoint(self, **more: bytes) -> Checkpoint:
        """What a client would have uploaded: no README, and a summary of what lies beside."""
        files = {path.name: path for path in self.folder.iterdir() if path.name != "README.md"}
        for name, data in more.items():
            (self.root / name).write_bytes(data)
            files[name.replace("__", ".")] = self.root / name
        return Checkpoint(files)

    def require(self, checkpoint: Checkpoint | None = None) -> Signed:
        return SignatureRequirement(self.policies).require(ACME, checkpoint or self.checkpoint())

    def codes(self, checkpoint: Checkpoint | None = None) -> set[str]:
        with pytest.raises(SignatureRefusedError) as refused:
            self.require(checkpoint)
        return {violation.code for violation in refused.value.violations}


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def test_a_key_that_is_allowed_signs(place: Place) -> None:
    place.release.sign(place.folder)
    assert place.require().signer == "key:release"


@pytest.mark.parametrize("name", [CI, x509.RFC822Name("ci@acme.org")])
def test_a_certificate_of_an_allowed_identity_signs(place: Place, name: x509.GeneralName) -> None:
    place.authority.signer([x509.DNSName("somebody.else"), name])(place.folder)
    assert place.require().signer == f"certificate:{name.value}"


def test_a_tenant_without_a_policy_needs_no_signature(place: Place) -> None:
    found = SignatureRequirement(place.policies).require(TenantId("other"), place.checkpoint())
    assert (found.signer, SUMMARY_FILE in found.checkpoint.files) == ("", False)
    assert SignatureRequirement(None).require(ACME, place.checkpoint()).signer == ""


def test_one_policy_may_be_for_every_tenant_that_has_none_of_its_own(place: Place) -> None:
    policy_file(place.policies, {"*": [{"name": "release", "key": "keys/release.pub"}], "acme": []})
    place.release.sign(place.folder)
    assert SignatureRequirement(place.policies).require(TenantId("other"), place.checkpoint()).signer == "key:release"
    assert place.codes() == {"SIGNER_NOT_ALLOWED"}  # a tenant for whom nobody may sign publishes nothing


def test_files_beside_the_weights_are_read_from_what_was_signed(place: Place) -> None:
    place.release.sign(place.folder)
    forged = Companions(files=(GENERATION,), end_token_ids=(1, 2, 3)).to_json().encode()
    found = place.require(place.checkpoint(**{SUMMARY_FILE: forged})).checkpoint
    assert SUMMARY_FILE not in found.files
    assert found.companions is not None
    assert found.companions.end_token_ids == (7,)


def test_a_change_of_the_policies_holds_at_once(place: Place) -> None:
    place.release.sign(place.folder)
    requirement = SignatureRequirement(place.policies)
    requirement.open()
    assert requirement.require(ACME, place.checkpoint()).signer
    policy_file(place.policies, {"acme": [{"name": "stranger", "key": "keys/stranger.pub"}]})
    with pytest.raises(SignatureRefusedError):
        requirement.require(ACME, place.checkpoint())
    place.policies.write_text("{")
    with pytest.raises(StoreUnavailableError):
        requirement.require(TenantId("other"), place.checkpoint())
    with pytest.raises(InvalidRequestError):
        requirement.open()


def swap_digests(statement: dict[str, Any]) -> None:
    first, second = statement["predicate"]["resources"][:2]
    first["digest"], second["digest"] = second["digest"], first["digest"]
    agree(statement)


def agree(statement: dict[str, Any]) -> None:
    """Make the digest of the whole that of its parts."""
    parts = b"".join(bytes.fromhex(each["digest"]) for each in statement["predicate"]["resources"])
    statement["subject"][0]["digest"]["sha256"] = hashlib.sha256(parts).hexdigest()


def sign_nothing(statement: dict[str, Any]) -> None:
    statement["predicate"]["resources"] = []
    agree(statement)


def named(name: str) -> Callable[[dict[str, Any]], None]:
    def change(statement: dict[str, Any]) -> None:
        of_config = next(each for each in statement["predicate"]["resources"] if each["name"] == CONFIG)
        of_config["name"] = name

    return change


def hashed(**more: str) -> Callable[[dict[str, Any]], None]:
    return lambda statement: statement["predicate"]["serialization"].update(more)


STATEMENTS: dict[str, tuple[Callable[[dict[str, Any]], None], set[str]]] = {
    "digests of two files swapped": (swap_digests, {"SIGNED_FILES_DIFFER"}),
    "a path out of the folder": (named("../adapter_config.json"), {"SIGNATURE_INVALID"}),
    "a path out of it, in the middle": (named("a/../../etc/passwd"), {"SIGNATURE_INVALID"}),
    "an absolute path": (named("/etc/passwd"), {"SIGNATURE_INVALID"}),
    "a path of Windows": (named("..\\adapter_config.json"), {"SIGNATURE_INVALID"}),
    "a path with a null": (named("adapter_config.json\0"), {"SIGNATURE_INVALID"}),
    "another name": (named("adapter_config.json.old"), {"SIGNED_FILES_DIFFER"}),
    "a file in a folder": (named("sub/adapter_config.json"), {"SIGNED_FILES_DIFFER"}),
    "shards": (hashed(method="shards", shard_size="1"), {"SIGNATURE_INVALID"}),
    "another hash": (hashed(hash_type="blake3"), {"SIGNATURE_INVALID"}),
    "a whole that is not that of its parts": (
        lambda s: s["subject"][0]["digest"].update(sha256="0" * 64),
        {"SIGNATURE_INVALID"},
    ),
    "nothing": (sign_nothing, {"SIGNED_FILES_DIFFER"}),
    "another predicate": (lambda s: s.update(predicateType="https://slsa.dev/provenance/v1"), {"SIGNATURE_INVALID"}),
    "no statement": (lambda s: s.update(_type="x"), {"SIGNATURE_INVALID"}),
}


@pytest.mark.parametrize("kind", STATEMENTS)
def test_a_statement_that_is_signed_and_means_something_else_is_refused(place: Place, kind: str) -> None:
    change, codes = STATEMENTS[kind]
    place.release.sign(place.folder)
    resign(place.folder, place.release, lambda statement: None)
    assert place.require().signer == "key:release", "signing anew alone breaks nothing"
    resign(place.folder, place.release, change)
    assert place.codes() == codes


def changed_after(name: str) -> Callable[[Place], None]:
    def change(place: Place) -> None:
        place.release.sign(place.folder)
        (place.folder / name).write_bytes((place.folder / name).read_bytes() + b" ")

    return change


def added_after(name: str) -> Callable[[Place], None]:
    def change(place: Place) -> None:
        place.release.sign(place.folder)
        (place.folder / name).write_bytes(b"{}")

    return change


def removed_after(name: str) -> Callable[[Place], None]:
    def change(place: Place) -> None:
        place.release.sign(place.folder)
        (place.folder / name).unlink()

    return change


def signature_of_another(place: Place) -> None:
    other = place.root / "other"
    adapter(seed=5).write(other)
    place.release.sign(other)
    (place.folder / SIGNATURE).write_bytes((other / SIGNATURE).read_bytes())


def payload_of_another(place: Place) -> None:
    """One signature around another's statement."""
    signature_of_another(place)
    other = bundle_of(place.folder)
    place.release.sign(place.folder)
    bundle = bundle_of(place.folder)
    bundle["dsseEnvelope"]["payload"] = other["dsseEnvelope"]["payload"]
    (place.folder / SIGNATURE).write_text(json.dumps(bundle))


def signed_by(make: Callable[[Place], Callable[[Path], None]]) -> Callable[[Place], None]:
    return lambda place: make(place)(place.folder)


def hint_of_the_allowed(place: Place) -> None:
    """A stranger's signature that says to be the allowed key's."""
    place.release.sign(place.folder)
    material = bundle_of(place.folder)["verificationMaterial"]
    place.stranger.sign(place.folder)
    (place.folder / SIGNATURE).write_text(json.dumps(bundle_of(place.folder) | {"verificationMaterial": material}))


def chain_of_the_allowed(place: Place) -> None:
    """A stranger's signature with the certificate of an allowed signer."""
    place.authority.signer([CI])(place.folder)
    material = bundle_of(place.folder)["verificationMaterial"]
    place.stranger.sign(place.folder)
    (place.folder / SIGNATURE).write_text(json.dumps(bundle_of(place.folder) | {"verificationMaterial": material}))


def without_hint(place: Place) -> None:
    place.release.sign(place.folder)
    bundle = bundle_of(place.folder)
    bundle["verificationMaterial"]["publicKey"] = {}
    (place.folder / SIGNATURE).write_text(json.dumps(bundle))


HOSTILE: dict[str, tuple[Callable[[Place], None], set[str]]] = {
    "no signature": (lambda place: None, {"SIGNATURE_MISSING"}),
    "an empty one": (lambda place: (place.folder / SIGNATURE).touch(), {"SIGNATURE_INVALID"}),
    "no JSON": (lambda place: void((place.folder / SIGNATURE).write_bytes(b"\x80abc")), {"SIGNATURE_INVALID"}),
    "nested deeply": (lambda p: void((p.folder / SIGNATURE).write_text("[" * 100_000)), {"SIGNATURE_INVALID"}),
    "too large": (lambda p: void((p.folder / SIGNATURE).write_text(" " * 5_000_000)), {"SIGNATURE_INVALID"}),
    "a key twice": (lambda p: void((p.folder / SIGNATURE).write_text('{"a": 1, "a": 2}')), {"SIGNATURE_INVALID"}),
    "weights changed": (changed_after(WEIGHTS), {"SIGNED_FILES_DIFFER"}),
    "config changed": (changed_after(CONFIG), {"SIGNED_FILES_DIFFER"}),
    "generation config changed": (changed_after(GENERATION), {"SIGNED_FILES_DIFFER"}),
    "other weights that would be taken first": (
        lambda place: (
            (place.folder / WEIGHTS).rename(place.folder / "adapters.safetensors"),
            added_after(WEIGHTS)(place),
        )[1],
        {"SIGNED_FILES_DIFFER"},
    ),
    "a shard added": (added_after("adapter_model-00001-of-00001.safetensors"), {"SIGNED_FILES_DIFFER"}),
    "a tokenizer added": (added_after("tokenizer_config.json"), {"SIGNED_FILES_DIFFER"}),
    "generation config removed": (removed_after(GENERATION), {"SIGNED_FILES_DIFFER"}),
    "config removed": (removed_after(CONFIG), {"SIGNED_FILES_DIFFER"}),
    "another adapter's signature": (signature_of_another, {"SIGNED_FILES_DIFFER"}),
    "another adapter's statement": (payload_of_another, {"SIGNATURE_INVALID"}),
    "a stranger's key": (signed_by(lambda place: place.stranger.sign), {"SIGNATURE_INVALID"}),
    "a stranger's key under the allowed one's name": (hint_of_the_allowed, {"SIGNATURE_INVALID"}),
    "a stranger's key with an allowed certificate": (chain_of_the_allowed, {"SIGNATURE_INVALID"}),
    "no hint of the key": (without_hint, {"SIGNATURE_INVALID"}),
    "another authority": (signed_by(lambda place: place.other.signer([CI])), {"SIGNER_NOT_ALLOWED"}),
    "another identity": (
        signed_by(lambda p: p.authority.signer([x509.UniformResourceIdentifier("spiffe://acme/ci2")])),
        {"SIGNER_NOT_ALLOWED"},
    ),
    "an identity of another kind": (
        signed_by(lambda p: p.authority.signer([x509.DirectoryName(x509.Name([]))])),
        {"SIGNER_NOT_ALLOWED"},
    ),
    "no identity": (signed_by(lambda place: place.authority.signer([])), {"SIGNER_NOT_ALLOWED"}),
    "a certificate that has ended": (
        signed_by(lambda place: place.authority.signer([CI], -2 * DAY, -DAY)),
        {"SIGNATURE_EXPIRED"},
    ),
    "a certificate that has not begun": (
        signed_by(lambda place: place.authority.signer([CI], DAY, 2 * DAY)),
        {"SIGNATURE_EXPIRED"},
    ),
    "a certificate older than its authority": (
        signed_by(lambda place: place.authority.signer([CI], timedelta(days=-200), DAY)),
        {"SIGNER_NOT_ALLOWED"},
    ),
    "a certificate for something else": (
        signed_by(lambda place: place.authority.signer([CI], may_sign=False)),
        {"SIGNATURE_INVALID"},
    ),
}


def void(_: object) -> None:
    """Nothing."""


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_signature_is_refused_for_what_it_is(place: Place, kind: str) -> None:
    act, codes = HOSTILE[kind]
    act(place)
    assert place.codes() == codes


@pytest.fixture(scope="module")
def shared_place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    made = Place(tmp_path_factory.mktemp("signed"))
    made.authority.signer([CI])(made.folder)
    return made


def paths(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in a document."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [at] * bool(at) + [path for key, item in inside for path in paths(item, (*at, key))]


JUNK = st.one_of(
    st.none(), st.booleans(), st.integers(), st.text(max_size=8), st.just([]), st.just({}), st.just(["x"]),
    st.binary(max_size=64).map(lambda data: base64.b64encode(data).decode()),
)  # fmt: skip


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_bundle_that_is_changed_anywhere_is_refused_with_a_typed_error(
    shared_place: Place, data: st.DataObject
) -> None:
    place = shared_place
    sound = json.loads((place.folder / SIGNATURE).read_text())
    bundle = copy.deepcopy(sound)
    *way, last = data.draw(st.sampled_from(paths(sound)))
    inner = bundle
    for key in way:
        inner = inner[key]
    inner[last] = data.draw(JUNK)
    changed = place.root / "changed.sig"
    changed.write_text(json.dumps(bundle))
    checkpoint = Checkpoint({**place.checkpoint().files, SIGNATURE: changed})
    try:
        assert place.require(checkpoint).signer == f"certificate:{CI.value}"
    except SignatureRefusedError:
        return
    # What is left is the same statement by the same signer: the change was of a field that says nothing.
    envelope = bundle["dsseEnvelope"]
    assert envelope["payload"] == sound["dsseEnvelope"]["payload"]
    assert envelope["signatures"][0]["sig"] == sound["dsseEnvelope"]["signatures"][0]["sig"]


@pytest.mark.parametrize(
    "text",
    [
        "", "[]", "{}", '{"tenants": []}', '{"tenants": {}, "more": 1}', '{"tenants": {"A b": {"signers": []}}}',
        '{"tenants": {"acme": []}}', '{"tenants": {"acme": {"signers": {}}}}',
        '{"tenants": {"acme": {"signers": [1]}}}',
        '{"tenants": {"acme": {"signers": [{"name": "x"}]}}}',
        '{"tenants": {"acme": {"signers": [{"name": "x", "key": "nothing.pub"}]}}}',
        '{"tenants": {"acme": {"signers": [{"name": "", "key": "policies.json"}]}}}',
        '{"tenants": {"acme": {"signers": [{"name": "x", "authority": "policies.json", "identities": []}]}}}',
        '{"tenants": {"acme": {"signers": [{"name": "x", "authority": "policies.json", "identities": [""]}]}}}',
        '{"tenants": {"acme": {"signers": [{"name": "x", "key": "policies.json", "identities": ["a"]}]}}}',
    ],
)  # fmt: skip
def test_policies_that_say_nothing_clear_are_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "policies.json").write_text(text)
    with pytest.raises(InvalidRequestError):
        read_policies(tmp_path / "policies.json")


def test_an_unusable_key_of_a_policy_admits_nothing(place: Place) -> None:
    place.release.sign(place.folder)
    place.release.public.write_text("no key")
    assert place.codes() == {"SIGNATURE_INVALID"}
