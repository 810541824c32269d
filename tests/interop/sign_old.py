# SPDX-License-Identifier: Apache-2.0
"""Sign with the release of model-signing that this Python has.

usage: sign_old.py VERSION MODEL SIGNATURE KEY [CERTIFICATE CHAIN]
"""

import pathlib
import sys

version, model, signature, key = sys.argv[1:5]
certificate = sys.argv[5:]

if version.startswith("0.2"):
    from model_signing import api
    from model_signing.signature import key as by_key
    from model_signing.signature import pki
    from model_signing.signing import in_toto

    hashing = api.HashingConfig().set_serialize_by_file_to_manifest(
        hashing_algorithm="sha256"
    )
    hashing.set_ignored_paths([pathlib.Path(signature)])
    manifest = hashing.hash(pathlib.Path(model))
    payload = in_toto.DigestsIntotoPayload.from_manifest(manifest)
    if certificate:
        signer = pki.PKISigner.from_path(key, certificate[0], certificate[1:])
    else:
        signer = by_key.ECKeySigner.from_path(key)
    bundle = signer.sign(payload.statement)
    pathlib.Path(signature).write_text(bundle.to_json())
else:
    from model_signing import hashing, signing

    # Its __init__ asks the network for a Sigstore signer that nobody wants.
    config = signing.Config.__new__(signing.Config)
    config.set_hashing_config(
        hashing.Config().set_ignored_paths(
            paths=[pathlib.Path(signature).name], ignore_git_paths=True
        )
    )
    if certificate:
        config.use_certificate_signer(
            private_key=key,
            signing_certificate=certificate[0],
            certificate_chain=certificate[1:],
        )
    else:
        config.use_elliptic_key_signer(private_key=key)
    config.sign(pathlib.Path(model), pathlib.Path(signature))
