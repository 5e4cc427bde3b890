"""Ed25519 signatures: submitters sign, with the secret key, what only they may have written; others check it."""

from __future__ import annotations

import hashlib
import json
import re

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

#: Characters of a signature, in hexadecimal digits.
SIGNATURE_LENGTH = 128
#: What a public key begins with, so that a secret key, as many digits, is never taken for one.
PUBLIC_KEY_PREFIX = "ed25519:"
#: What is hashed before a secret key to give the seed of its pair of keys; deploy/make-secrets.sh does the same.
SEED_LABEL = b"gridfleet: Ed25519 seed: "
#: What the workers' key begins with, so that a secret key is never taken for it.
WORKER_KEY_PREFIX = "worker:"
#: What is hashed before a secret key to give the workers' key; deploy/make-secrets.sh does the same.
WORKER_KEY_LABEL = b"gridfleet: worker key: "


class Verifier:
    """Checks signatures; what it holds makes none.

    Parameters
    ----------
    public_key : str
        As `Signer.public_key` has it.

    Raises
    ------
    ValueError
        If it is none.
    """

    def __init__(self, public_key: str) -> None:
        if re.fullmatch(f"{PUBLIC_KEY_PREFIX}[0-9a-f]{{64}}", public_key) is None:
            raise ValueError(f"it is not {PUBLIC_KEY_PREFIX} and 64 hexadecimal digits")
        self.public_key = public_key
        self._key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(public_key.removeprefix(PUBLIC_KEY_PREFIX)))

    def is_signed(self, signature: str, what: str, *facts: str | int | None) -> bool:
        """Whether a signature is that of these facts."""
        try:
            self._key.verify(bytes.fromhex(signature), _message(what, *facts))
        except (InvalidSignature, ValueError):  # ValueError: no hexadecimal digits
            return False
        return True


class Signer:
    """Signs facts that belong together.

    Parameters
    ----------
    secret_key : bytes
        The fleet's secret key, `Settings.key`: any bytes that nobody can guess. The private key is made of it.
    """

    def __init__(self, secret_key: bytes) -> None:
        self._key = Ed25519PrivateKey.from_private_bytes(hashlib.sha256(SEED_LABEL + secret_key).digest())
        #: The key that checks what this one signs; nobody can sign with it.
        self.public_key = PUBLIC_KEY_PREFIX + self._key.public_key().public_bytes_raw().hex()

    def sign(self, what: str, *facts: str | int | None) -> str:
        """Return the signature of facts; `what` keeps those of a payload from being taken for those of a search."""
        return self._key.sign(_message(what, *facts)).hex()


def worker_key_of(secret_key: bytes) -> str:
    """Return the key with which workers sign the models that they fit; nobody finds the secret key by it."""
    return WORKER_KEY_PREFIX + hashlib.sha256(WORKER_KEY_LABEL + secret_key).hexdigest()


def _message(what: str, *facts: str | int | None) -> bytes:
    """Return what is signed: JSON, which no other facts give."""
    return json.dumps([what, *facts]).encode()
