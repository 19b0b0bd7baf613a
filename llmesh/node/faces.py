"""The gateway's two faces: the one that listens on the network, and the owner's own."""

from __future__ import annotations

import socket
from functools import partial
from ipaddress import ip_address

from llmesh.gateway.app import App, GatewaySettings, application, create_app
from llmesh.gateway.batch import batch_routes
from llmesh.gateway.deploy import deploy_routes
from llmesh.gateway.fetch import fetch_routes
from llmesh.gateway.gate import Gate
from llmesh.gateway.guard import Guard
from llmesh.gateway.keys import Keys
from llmesh.gateway.limits import Limits
from llmesh.gateway.metrics import metrics_routes
from llmesh.gateway.openapi import Route
from llmesh.gateway.owner import owner_routes, swarm_routes
from llmesh.gateway.peers import peers_routes
from llmesh.gateway.receipts import receipts_routes
from llmesh.gateway.send import send_routes
from llmesh.gateway.stake import stake_routes
from llmesh.gateway.wallet import Wallet, wallet_route
from llmesh.gateway.webhooks.routes import webhook_routes
from llmesh.node.backup import back_up
from llmesh.node.config import NodeConfig
from llmesh.node.home import Home
from llmesh.node.running import Node

__all__ = ["files_app", "network_app", "owner_app"]

_UNGUARDED = GatewaySettings(Gate(guard=None))


def network_app(config: NodeConfig, node: Node, keys: Keys, listener: socket.socket) -> App:
    """What everybody can reach; beyond this machine, or behind a proxy, nobody comes in without a key."""
    gate = Gate(
        Guard.for_host(config.host, config.allow_host),
        keys,
        Limits(config.limits),
        always=bool(config.trusted_proxy) or not ip_address(listener.getsockname()[0]).is_loopback,
        proxies=config.trusted_proxy,
    )
    return create_app(node, node, node, GatewaySettings(gate, meter=node.meter), _routes(node))


def owner_app(home: Home, node: Node, keys: Keys, wallet: Wallet) -> App:
    """All of it, and what only the owner may do, for the owner's socket."""
    more = (
        *_routes(node),
        *_owner_routes(home, keys, wallet),
        *swarm_routes(node.invite),
        *stake_routes(node.swarm, wallet),
        *send_routes(node, wallet),
        *fetch_routes(node),
    )
    return create_app(node, node, node, _UNGUARDED, more)


def files_app(home: Home, keys: Keys, wallet: Wallet) -> App:
    """What the owner may do while no node runs."""
    return application(_owner_routes(home, keys, wallet), _UNGUARDED)


def _routes(node: Node) -> tuple[Route, ...]:
    """What both faces have beyond the gateway's own."""
    return (
        *deploy_routes(node),
        *batch_routes(node),
        *metrics_routes(node),
        *peers_routes(node),
        *receipts_routes(node.wallet),
        wallet_route(node.wallet),
        *webhook_routes(node.courier),
    )


def _owner_routes(home: Home, keys: Keys, wallet: Wallet) -> tuple[Route, ...]:
    return owner_routes(keys, partial(back_up, home, wallet.journal), wallet)
