"""`spikesink verify`: may this model's numbers be believed, and why."""

import sys
from typing import Annotated

import typer

from spikesink.cli import options
from spikesink.records import VerificationRecord, check_output

SeqLen = Annotated[
    int | None,
    typer.Option(min=2, help="Tokens of the longest check; default 512, more where attention has windows."),
]


def verify_command(
    model: options.Model = None,
    seq_len: SeqLen = None,
    dtype: options.Dtype = None,
    device: options.Device = None,
    revision: options.Revision = None,
    trust_remote_code: options.TrustRemoteCode = False,
    allow_pickle: options.AllowPickle = False,
    out: options.Out = None,
    force: options.Force = False,
    json: options.Json = False,
) -> None:
    """Check every layer against the model's own arithmetic; exit 0 if all holds, 2 if the model is refused."""
    from spikesink.cli.progress import progress_bar

    if out is not None:
        check_output(out, VerificationRecord.file, force=force)
    with progress_bar() as progress:
        from spikesink.access.verify import require_verified, verify_all
        from spikesink.cli.sources import load_with_progress

        accessed = load_with_progress(
            progress, model, dtype=dtype, device=device, revision=revision, trust_remote_code=trust_remote_code,
            allow_pickle=allow_pickle,
        )  # fmt: skip
        record = verify_all(accessed, tokens=seq_len, progress=progress)
    if out is not None:
        record.save(out, force=force)
    if json:
        sys.stdout.write(record.to_json())
    else:
        from spikesink.cli.summary_verify import print_verification

        print_verification(record)
    require_verified(record)
