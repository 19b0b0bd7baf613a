"""What the command line does besides starting a node, by subject: each verb asks a node, or its files.

Exit codes: 0 it is done; 1 it was refused, with the reason and its code on standard error; 2 it could
not be asked: a bad option, no node, a data directory that cannot be used; 130 (143) it was interrupted.
"""

from __future__ import annotations

import click

from llmesh.node.verbs.backup import backup, restore
from llmesh.node.verbs.bring import deploy, fetch
from llmesh.node.verbs.doctor import doctor
from llmesh.node.verbs.keys import keys
from llmesh.node.verbs.models import models, remove, search
from llmesh.node.verbs.money import explain, send, unbond, wallet, withdraw
from llmesh.node.verbs.run import run
from llmesh.node.verbs.swarm import invite, ledger
from llmesh.node.verbs.view import peers, status

__all__ = ["VERBS"]

VERBS: tuple[click.Command, ...] = (
    status, doctor, models, search, run, deploy, fetch, remove, peers,
    wallet, explain, send, unbond, withdraw,
    keys, invite, ledger, backup, restore,
)  # fmt: skip
"""In the order in which they are listed."""
