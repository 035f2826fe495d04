"""`layermesh invite` and `layermesh nodes`."""

from typing import Annotated

import typer

from layermesh.cli_options import Debug, Json
from layermesh.commands.app import app
from layermesh.reporting import reporting

MOST_GUESTS = 64
nodes = typer.Typer(name="nodes", help="Show who is paired with this machine, or remove somebody.", add_completion=False)
app.add_typer(nodes)


@app.command()
def invite(
    count: Annotated[int, typer.Option("--count", min=1, max=MOST_GUESTS, help="How many workers: a line for each.")] = 1,
    host: Annotated[str | None, typer.Option(help="Address to let them in at.  [default: all of this machine's]")] = None,
    port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="Port to let them in at.  [default: 50701, or any that is free]")
    ] = None,
    no_discovery: Annotated[bool, typer.Option("--no-discovery", help="Do not announce it on the network.")] = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Print a line to paste on another machine, which makes it a worker of this one's mesh."""
    with reporting(debug):
        from layermesh.cli_invite import InviteOptions, run_invite

        code = run_invite(InviteOptions(count, host, port, not no_discovery, as_json))
    if code:
        raise typer.Exit(code)


@nodes.callback(invoke_without_command=True)
def nodes_root(context: typer.Context, as_json: Json = False, debug: Debug = False) -> None:
    """Show who is paired with this machine."""
    if context.invoked_subcommand is None:
        list_nodes(as_json=as_json, debug=debug)


@nodes.command("ls")
def list_nodes(as_json: Json = False, debug: Debug = False) -> None:
    """Show who is paired with this machine."""
    with reporting(debug):
        from layermesh.cli_nodes import print_nodes

        print_nodes(as_json=as_json)


@nodes.command("rm")
def rm_node(
    name: Annotated[str, typer.Argument(help="A name or an id that `layermesh nodes` shows.")],
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Remove a node from the mesh: nobody talks to it any more, from now on."""
    with reporting(debug):
        from layermesh.cli_nodes import remove_node

        remove_node(name, as_json=as_json)
