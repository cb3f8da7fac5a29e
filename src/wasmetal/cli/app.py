"""The ``wasmetal`` command: its subcommands, and how errors are reported.

Each subcommand imports what it needs when it runs, so that ``wasmetal --help`` stays quick.
"""

from __future__ import annotations

import os
import sys
from typing import Any

import typer
from typer.core import TyperGroup

from wasmetal.cli import actor, bench, chat, cluster, devices, doctor, embed, models, run, sdk, serve
from wasmetal.errors import WasmetalError

SWITCH_SECONDS = 5e-4
"""How long a thread may keep Python's lock while others want it: a tenth of the default. Otherwise one that has been
given another lock, and waits for Python's, holds up everybody who wants the former."""


class Commands(TyperGroup):
    """Turns an error into one line and an exit status: 2 for a WasmetalError, 130 for Ctrl-C, 1 for a closed pipe."""

    def invoke(self, ctx: Any) -> Any:
        """Run the subcommand."""
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()
        except WasmetalError as error:
            print(f"wasmetal: {error}", file=sys.stderr)
            raise typer.Exit(2) from None
        except KeyboardInterrupt:
            raise typer.Exit(130) from None
        except BrokenPipeError:
            # Python flushes stdout again at exit, which would fail once more.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(1) from None
        return result


app = typer.Typer(
    name="wasmetal",
    help="Run sandboxed WebAssembly guests whose memory the GPU computes on, without a copy.",
    cls=Commands,
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

app.command()(chat.chat)
# Everything after the guest, options included, is for the guest.
app.command(context_settings={"allow_interspersed_args": False})(run.run)
app.command()(serve.serve)
app.command()(embed.embed)
app.command()(models.pull)
app.command()(devices.devices)
app.command()(doctor.doctor)
app.add_typer(models.models, name="models")
app.add_typer(actor.actor, name="actor")
app.add_typer(cluster.cluster, name="cluster")
app.add_typer(bench.bench, name="bench")
app.add_typer(sdk.sdk, name="sdk")


def show_version(wanted: bool) -> None:
    """Print the version and exit."""
    if wanted:
        from importlib.metadata import version

        print("wasmetal", version("wasmetal"))
        raise typer.Exit


@app.callback()
def common(
    version: bool = typer.Option(False, "--version", callback=show_version, is_eager=True, help="Show the version."),
) -> None:
    """Options of ``wasmetal`` itself."""


def main() -> None:
    """Entry point of the ``wasmetal`` script."""
    sys.setswitchinterval(SWITCH_SECONDS)
    app()
