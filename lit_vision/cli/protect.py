"""The protect command: keys, sealed copies, signatures, and the watermark of a model."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lit_vision.cli.parser import CommandParser, add_key_arguments, add_overwrite_argument, ask_passphrase
from lit_vision.errors import UsageError

if TYPE_CHECKING:
    from lit_vision.io.sealed import MasterKey

_MODEL = "a run's folder, or a model's file"


def main(argv: Sequence[str]) -> int:
    """Run `lit-vision protect keygen|seal|unseal|sign|verify|check`; returns 0.

    Raises:
        UserError: one line that names the file or flag and what to do; with check, also a model without the mark.
    """
    args = _parser().parse_args(list(argv))
    from lit_vision.convert import protect

    if args.name == "keygen":
        for path in protect.make_keys(args.file, args.signing):
            print(path)
    elif args.name == "seal":
        print(protect.seal_model(args.model, _key(args, args.model, new=True), args.out, args.overwrite))
    elif args.name == "unseal":
        print(protect.unseal_model(args.model, _key(args, args.model, new=False), args.out, args.overwrite))
    elif args.name == "sign":
        print(protect.sign_model(args.model, args.key, args.overwrite))
    elif args.name == "verify":
        print(f"{protect.verify_model(args.model, args.key)}: the signature is one of {args.key} for these bytes")
    else:
        from lit_vision.io.sealed import read_key_file

        print(protect.check_watermark(args.model, read_key_file(args.key)))
    return 0


def _parser() -> CommandParser:
    parser = CommandParser(
        prog="lit-vision protect",
        description="Seal a model's file so that only a key opens it, sign it so that changes are noticed, and read a "
        "watermark. The\nREADME says what each does not protect from.",
        epilog="example: lit-vision protect keygen my.key && lit-vision protect seal runs/classifier/1 --key my.key",
    )
    names = parser.add_subparsers(
        dest="name", metavar="NAME", required=True, help="lit-vision protect NAME --help lists its options"
    )
    keygen = names.add_parser("keygen", help="make a key that only its owner can read (file mode 0600)")
    keygen.add_argument("file", type=Path, metavar="FILE", help="new file for the key")
    keygen.add_argument(
        "--signing", action="store_true", help="a key pair to sign and verify with: FILE, private, and FILE.pub"
    )
    seal = names.add_parser(
        "seal", help="write an encrypted copy (AES-256-GCM) that predict, serve, ... open in memory"
    )
    seal.add_argument("model", metavar="MODEL", help=_MODEL)
    seal.add_argument("--out", metavar="FILE.sealed", help="default: the file's name with .sealed added")
    unseal = names.add_parser("unseal", help="write the model inside a sealed file in plain")
    unseal.add_argument("model", metavar="FILE.sealed", help="a file of lit-vision protect seal")
    unseal.add_argument("--out", metavar="FILE", help="default: the name without .sealed")
    for sub, purpose in ((seal, "opens the copy"), (unseal, "it was sealed with")):
        add_key_arguments(sub, purpose)
        add_overwrite_argument(sub)
    sign = names.add_parser("sign", help="write FILE.sig beside a model's file (OpenSSF model-signing)")
    sign.add_argument("model", metavar="MODEL", help=f"{_MODEL}, sealed or not")
    sign.add_argument("--key", type=Path, required=True, metavar="FILE", help="private key of keygen --signing")
    add_overwrite_argument(sign)
    verify = names.add_parser("verify", help="check FILE.sig against a model's file, of which nothing is parsed")
    verify.add_argument("model", metavar="MODEL", help=f"{_MODEL}, sealed or not")
    verify.add_argument("--key", type=Path, required=True, metavar="FILE.pub", help="public key of keygen --signing")
    check = names.add_parser("check", help="read the watermark of a key (Classifier's watermark) from a model")
    check.add_argument("model", metavar="MODEL", help="a run's folder, its .ckpt or a .safetensors")
    check.add_argument("--key", type=Path, required=True, metavar="FILE", help="key that it was trained with")
    return parser


def _key(args: argparse.Namespace, model: str, new: bool) -> MasterKey:
    """Return the key of the flags, or a passphrase that is typed on the terminal, twice if it is new."""
    from lit_vision.io.sealed import passphrase, read_key

    key = read_key(args.key, args.passphrase_file)
    if key is not None:
        return key
    if not sys.stdin.isatty():
        raise UsageError(f"protect {args.name}: give --key or --passphrase_file; there is no terminal to ask on")
    typed = ask_passphrase(model)
    if new and typed != ask_passphrase(f"{model} again"):
        raise UsageError("the passphrases differ; type the same one twice")
    return passphrase(typed, "the passphrase")
