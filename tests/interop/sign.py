# SPDX-License-Identifier: Apache-2.0
"""moe-convert and model-signing sign and check each other's directories.

usage: sign.py MOE_CONVERT CHECKPOINT SCRATCH [VERSION=PYTHON ...]

Prints a table, one row a signature; exit 1 where one is not what it must be.
Every row is also asked by the other tool wherever that can be: a signature
that one accepts and the other refuses is a finding, whatever it says.
"""

import datetime
import json
import os
import pathlib
import shutil
import subprocess
import sys

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from model_signing import hashing, signing, verifying

program, checkpoint, scratch = sys.argv[1:4]
old = [word.split("=", 1) for word in sys.argv[4:]]
os.chdir(scratch)
failed = 0
rows = 0
curves = {"P-256": ec.SECP256R1(), "P-384": ec.SECP384R1(),
          "P-521": ec.SECP521R1()}


def row(who, what, expected, ours, theirs):
    global failed, rows
    good = (ours in (expected, None)) and (theirs in (expected, None))
    failed += not good
    rows += 1
    words = {True: "accepted", False: "refused", None: "-"}
    print(f"{who:22} {what:42} {words[ours]:10} {words[theirs]:10} "
          f"{'ok' if good else 'WRONG'}", flush=True)


# ------------------------------------------------------------------- keys

def write_key(name, key):
    pem = serialization.Encoding.PEM
    pathlib.Path(f"{name}.pem").write_bytes(key.private_bytes(
        pem, serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption()))
    pathlib.Path(f"{name}.pub").write_bytes(key.public_key().public_bytes(
        pem, serialization.PublicFormat.SubjectPublicKeyInfo))


# A usage of no bit at all would be malformed: without `sign` it is another.
def certificate(name, key, issuer, issuer_key, ca, sign):
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime(2025, 1, 1, tzinfo=datetime.timezone.utc)
    builder = (
        x509.CertificateBuilder().subject_name(subject)
        .issuer_name(issuer or subject).public_key(key.public_key())
        .serial_number(x509.random_serial_number()).not_valid_before(now)
        .not_valid_after(now + datetime.timedelta(days=90))
        .add_extension(x509.BasicConstraints(ca, None), True)
        .add_extension(x509.KeyUsage(
            sign, not sign and not ca, False, False, False, ca, ca, False,
            False), True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(
            key.public_key()), False))
    made = builder.sign(issuer_key, hashes.SHA256())
    path = pathlib.Path(f"{name}.crt")
    path.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    return subject


def make_keys():
    for name, curve in curves.items():
        root, middle, leaf = (ec.generate_private_key(curve) for _ in range(3))
        write_key(name, leaf)
        r = certificate(f"{name}-root", root, None, root, True, False)
        m = certificate(f"{name}-middle", middle, r, root, True, False)
        certificate(f"{name}-leaf", leaf, m, middle, False, True)
        certificate(f"{name}-useless", leaf, m, middle, False, False)
    write_key("other", ec.generate_private_key(ec.SECP256R1()))


# ------------------------------------------------------------------ tools

def ours_sign(model, key, *more):
    subprocess.run([program, "sign", model, "--key", f"{key}.pem", "--force",
                    "--quiet", *more], check=True)


def ours_checks(model, *how):
    run = subprocess.run([program, "verify-signature", model, "--quiet", *how],
                         capture_output=True, text=True)
    if run.returncode not in (0, 3, 5):
        print(run.stderr)
        sys.exit(f"exit {run.returncode}")
    return run.returncode == 0


def theirs_sign(model, key, certs=None, shards=None, ignore=()):
    h = hashing.Config().set_ignored_paths(
        paths=["model.sig", *ignore], ignore_git_paths=True)
    if shards:
        h.use_shard_serialization(shard_size=shards)
    config = signing.Config().set_hashing_config(h)
    if certs:
        config.use_certificate_signer(
            private_key=f"{key}.pem", signing_certificate=f"{certs}.crt",
            certificate_chain=[f"{key}-middle.crt"])
    else:
        config.use_elliptic_key_signer(private_key=f"{key}.pem")
    config.sign(pathlib.Path(model), pathlib.Path(model, "model.sig"))


def theirs_checks(model, key=None, roots=None, shards=None):
    config = verifying.Config()
    signature = pathlib.Path(model, "model.sig")
    try:
        if key:
            config.use_elliptic_key_verifier(public_key=f"{key}.pub")
        else:
            config.use_certificate_verifier(
                certificate_chain=[f"{r}.crt" for r in roots])
        # What their command line does, and older bundles do not say: the
        # signature itself is not signed.
        config.set_hashing_config(hashing.Config().set_ignored_paths(
            paths=["model.sig"], ignore_git_paths=True))
        # 1.1.1 reads the size of shards back as a float and stumbles.
        if shards:
            config.set_hashing_config(
                hashing.Config().use_shard_serialization(shard_size=shards))
        config.verify(pathlib.Path(model), signature)
        return True
    except Exception as why:  # whatever they raise is a no
        if os.environ.get("MOEC_INTEROP_VERBOSE"):
            print(f"    {type(why).__name__}: {why}"[:300])
        return False


def payload_of(bundle):
    import base64
    return base64.b64decode(bundle["dsseEnvelope"]["payload"])


def make_model(name):
    model = pathlib.Path(name)
    if model.exists():
        shutil.rmtree(model)
    subprocess.run([program, "convert", checkpoint, name, "--ep", "4",
                    "--quiet"], check=True)
    (model / "sub" / "deeper").mkdir(parents=True)
    (model / "sub" / "deeper" / "caf\u00e9 \U0001f600.txt").write_text("x")
    (model / "sub-way").write_text("sorts before sub/ bytewise")
    (model / "empty").write_text("")
    (model / ".gitattributes").write_text("never signed")
    return name


# -------------------------------------------------------------------- rows

def both(key=None, roots=None):
    """How both tools check: the same key, or the same roots."""
    if key:
        return (["--key", f"{key}.pub"], {"key": key})
    how = []
    for r in roots:
        how += ["--certificate-chain", f"{r}.crt"]
    return (how, {"roots": roots})


def check(who, what, model, expected, shards=None, **how):
    ours, theirs = both(**how)
    row(who, what, expected, ours_checks(model, *ours),
        theirs_checks(model, shards=shards, **theirs))


def all_good(model):
    for curve in curves:
        chain = ["--certificate", f"{curve}-leaf.crt", "--certificate-chain",
                 f"{curve}-middle.crt"]
        ours_sign(model, curve)
        check("moe-convert", f"{curve} key", model, True, key=curve)
        ours_sign(model, curve, *chain)
        check("moe-convert", f"{curve} certificate chain", model, True,
              roots=[f"{curve}-root"])
        theirs_sign(model, curve)
        check("model-signing 1.1.1", f"{curve} key", model, True, key=curve)
        theirs_sign(model, curve, certs=f"{curve}-leaf")
        check("model-signing 1.1.1", f"{curve} certificate chain", model, True,
              roots=[f"{curve}-root"])
    theirs_sign(model, "P-256", shards=100000)
    check("model-signing 1.1.1", "shards of 100000 bytes", model, True,
          shards=100000, key="P-256")
    theirs_sign(model, "P-256", ignore=["sub"])
    check("model-signing 1.1.1", "ignored directory", model, True, key="P-256")
    ours_sign(model, "P-256", "--ignore", "sub")
    check("moe-convert", "ignored directory", model, True, key="P-256")


def old_releases(model):
    here = pathlib.Path(__file__).parent / "sign_old.py"
    pathlib.Path(model, ".gitattributes").unlink()  # they signed it, some
    for version, python in old:
        for curve in curves:
            for chain in ([], [f"{curve}-leaf.crt", f"{curve}-middle.crt"]):
                pathlib.Path(model, "model.sig").unlink(missing_ok=True)
                made = subprocess.run(
                    [python, here, version, model, f"{model}/model.sig",
                     f"{curve}.pem", *chain], capture_output=True, text=True)
                what = f"{curve} {'certificate chain' if chain else 'key'}"
                if made.returncode:
                    print(f"model-signing {version:8} {what}: does not sign "
                          f"here: {made.stderr.strip().splitlines()[-1]}")
                    continue
                how = {"roots": [f"{curve}-root"]} if chain else {"key": curve}
                # 0.2 signed SHA-256 with every key; 1.1.1 takes the curve's
                # digest for keys without certificate.
                good = not (version == "0.2.0" and not chain and
                            curve != "P-256")
                check(f"model-signing {version}", what, model, good, **how)


def edit(model, change):
    path = pathlib.Path(model, "model.sig")
    text = json.loads(path.read_text())
    change(text)
    path.write_text(json.dumps(text))


def change_payload(bundle):
    import base64
    text = payload_of(bundle).replace(b'"algorithm": "sha256"',
                                      b'"algorithm":  "sha256"', 1)
    bundle["dsseEnvelope"]["payload"] = base64.b64encode(text).decode()


def all_bad(model):
    theirs_sign(model, "P-256")
    check("model-signing 1.1.1", "another key", model, False, key="other")
    check("model-signing 1.1.1", "another curve", model, False, key="P-384")
    check("model-signing 1.1.1", "a key where a chain is asked for", model,
          False, roots=["P-256-root"])
    edit(model, change_payload)
    check("edited", "statement changed", model, False, key="P-256")
    theirs_sign(model, "P-256")
    edit(model, lambda b: b["dsseEnvelope"].update(signatures=[]))
    check("edited", "no signature", model, False, key="P-256")
    theirs_sign(model, "P-256")
    edit(model, lambda b: b.update(
        mediaType="application/vnd.dev.sigstore.bundle+json;version=0.1"))
    check("edited", "bundle version 0.1", model, False, key="P-256")
    theirs_sign(model, "P-256")
    edit(model, lambda b: b["verificationMaterial"].pop("tlogEntries"))
    check("edited", "no tlogEntries", model, True, key="P-256")
    edit(model, lambda b: b["verificationMaterial"]["publicKey"].pop("hint"))
    check("edited", "no hint", model, True, key="P-256")
    edit(model, lambda b: b.update(surprise=1))
    check("edited", "unknown key", model, False, key="P-256")
    ours_sign(model, "P-256", "--certificate", "P-256-leaf.crt",
              "--certificate-chain", "P-256-middle.crt")
    check("moe-convert", "another root", model, False, roots=["P-384-root"])
    check("moe-convert", "the middle as root", model, False,
          roots=["P-256-middle"])
    check("moe-convert", "a chain where a key is asked for", model, False,
          key="P-256")
    ours_sign(model, "P-256", "--certificate", "P-256-leaf.crt")
    check("moe-convert", "middle certificate missing", model, False,
          roots=["P-256-root"])
    ours_sign(model, "P-256", "--certificate", "P-256-useless.crt",
              "--certificate-chain", "P-256-middle.crt")
    check("moe-convert", "certificate not for signatures", model, False,
          roots=["P-256-root"])
    # Theirs knows nothing of conversions: what ours must not take.
    theirs_sign(model, "P-256", ignore=["slots.bin"])
    row("model-signing 1.1.1", "a part of the conversion ignored", False,
        ours_checks(model, "--key", "P-256.pub"), None)
    ours_sign(model, "P-256")
    config = pathlib.Path(model, "config.json")
    text = config.read_bytes()
    config.write_bytes(text + b" ")
    check("moe-convert", "a file changed", model, False, key="P-256")
    config.unlink()
    check("moe-convert", "a file missing", model, False, key="P-256")
    config.write_bytes(text)
    pathlib.Path(model, "extra").write_text("")
    check("moe-convert", "a file too many, empty", model, False, key="P-256")
    pathlib.Path(model, "extra").unlink()
    pathlib.Path(model, "link").symlink_to("config.json")
    check("moe-convert", "a link", model, False, key="P-256")
    pathlib.Path(model, "link").unlink()
    check("moe-convert", "all back in place", model, True, key="P-256")
    theirs_sign(model, "P-256", shards=100000)
    with open(config, "ab") as f:
        f.write(b" ")
    check("model-signing 1.1.1", "shards, a file grew", model, False,
          shards=100000, key="P-256")
    config.write_bytes(text)


make_keys()
print(f"{'signed by':22} {'what':42} {'ours':10} {'theirs':10}")
model = make_model("model")
all_good(model)
old_releases(model)
all_bad(model)
print(f"{rows} signatures, {failed} wrong")
sys.exit(failed != 0)
