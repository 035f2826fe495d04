"""What would run where for a model, with the workers that answered."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType

from layermesh.coordinator.planning.machines import Links, Machine
from layermesh.coordinator.planning.mesh_plan import MeshPlan, predict_mesh
from layermesh.coordinator.planning.model_cost import ModelCost
from layermesh.coordinator.planning.patching import WORTH, Placed, patch_mesh
from layermesh.coordinator.planning.planner import plan_mesh
from layermesh.coordinator.planning.running import Running, running_parts, spread_evenly
from layermesh.coordinator.planning.what_if import imagine
from layermesh.coordinator.registry import Peer
from layermesh.local import WORKER_NAME, LocalModel
from layermesh.model_cost import model_cost
from layermesh.shared.addresses import is_loopback, parse_address
from layermesh.shared.errors import BudgetError
from layermesh.shared.interfaces import machine_addresses
from layermesh.shared.library.home import home
from layermesh.shared.machine_profile import MachineProfile
from layermesh.shared.model.packed_layer import PackedLayer
from layermesh.shared.profile_wire import profile_from_proto
from layermesh.shared.quant.native.kernel import DTYPES
from layermesh.shared.spans import LayerSpan
from layermesh.worker.measuring import profile_machine
from layermesh.worker.profile_cache import ProfileCache

LEAST_SLOWDOWN, MOST_SLOWDOWN = 0.05, 100.0
# Of Python and small kernels for each layer, where no run has shown better; for many packed ones there is one call of ours.
PACKED_LAYER_SECONDS, LEAN_LAYER_SECONDS, LAYER_SECONDS = 0.02e-3, 0.5e-3, 1.2e-3


class Planning:
    """Plans for `local`; with `spread` every worker gets a part, even where fewer would be faster."""

    def __init__(self, local: LocalModel, *, spread: bool) -> None:
        self._local = local
        self._spread = spread

    def plan(
        self,
        peers: Sequence[Peer],
        what_if: Sequence[str] = (),
        mine: Collection[str] = (),
        caps: Mapping[str, int] = MappingProxyType({}),
    ) -> MeshPlan:
        """Return what would run on `peers`, on the machines of `what_if` and here; what others run already is joined.

        `mine` are the ids of workers that run a route of this process now, `caps` the most bytes that some may be given.
        Raises BudgetError where no division fits, UsageError for a machine that nobody can imagine.
        """
        cost = model_cost(self._local)
        own = self._own_machine(peers, cost)
        imagined = [imagine(text, number + 1, own) for number, text in enumerate(what_if)]
        workers = [*(_capped(self._machine(peer, own), peer, caps) for peer in peers), *(machine for machine, _ in imagined)]
        near = {peer.name: peer.link for peer in peers} | {machine.name: link for machine, link in imagined}
        links = Links(near)
        if self._spread:
            return _predict_spread(cost, workers, own, links, {peer.name for peer in peers if peer.described.worker_id in caps})
        running = running_parts(self._running(peers, mine), workers, own, len(cost.layers))
        if running:
            try:
                return predict_mesh(cost, running, links)
            except BudgetError:
                pass  # they are somebody else's, and this machine cannot do its part
        return plan_mesh(cost, [*workers, own], links)

    def patch(
        self, peers: Sequence[Peer], placed: Sequence[Placed], caps: Mapping[str, int], best: MeshPlan
    ) -> MeshPlan | None:
        """Return `placed` with the layers of whoever is not among `peers` given to one of those who are; None: not worth it.

        `best` is what there would be without regard for what everybody has now.
        """
        cost = model_cost(self._local)
        own = self._own_machine(peers, cost)
        machines = [*(_capped(self._machine(peer, own), peer, caps) for peer in peers), own]
        plan = patch_mesh(cost, placed, machines, Links({peer.name: peer.link for peer in peers}))
        return plan if plan is not None and plan.seconds_per_token <= WORTH * best.seconds_per_token else None

    def _running(self, peers: Sequence[Peer], mine: Collection[str]) -> dict[str, Running]:
        """Which parts of this model, as it is run here, others use on the workers."""
        key = self._local.stage_key(LayerSpan(0, 1), has_head=False)
        return {
            peer.name: Running(LayerSpan(one.key.start, one.key.end), one.key.has_head)
            for peer in peers
            for one in peer.described.running
            if one.num_routes > (peer.described.worker_id in mine)
            and (one.key.fingerprint, one.key.dtype, one.key.fast_path) == (key.fingerprint, key.dtype, key.fast_path)
        }

    def _machine(self, peer: Peer, own: Machine) -> Machine:
        """The worker as the planner sees it; what real runs have shown here stands in for what they have not there."""
        profile, slowdown = (
            profile_from_proto(peer.described.profile),
            peer.described.slowdown.get(self._local.manifest.fingerprint),
        )
        if slowdown is None:
            return replace(own, name=peer.name, profile=profile, is_coordinator=False)
        return Machine(peer.name, profile, 0.0, min(max(slowdown, LEAST_SLOWDOWN), MOST_SLOWDOWN))

    def _own_machine(self, peers: Sequence[Peer], cost: ModelCost) -> Machine:
        profile = self._own_profile(peers, cost)
        slowdown = ProfileCache().slowdown(self._local.manifest.fingerprint, cost.form, profile)
        seconds = self._layer_seconds() if slowdown == 1.0 else 0.0
        return Machine(WORKER_NAME, profile, seconds, slowdown, is_coordinator=True)

    def _layer_seconds(self) -> float:
        if not self._local.fast_path:
            return LAYER_SECONDS
        in_one_call = self._local.device.type == "cpu" and self._local.dtype in DTYPES
        are_packed = all(isinstance(layer, PackedLayer) for layer in self._local.definition.layers)
        return PACKED_LAYER_SECONDS if in_one_call and are_packed else LEAN_LAYER_SECONDS

    def _own_profile(self, peers: Sequence[Peer], cost: ModelCost) -> MachineProfile:
        """What this machine has; next to a worker on the same machine it only has room for the head."""
        profile = profile_machine(
            self._local.device, home(), self._local.budget.device_bytes, self._local.budget.host_bytes, ProfileCache()
        )
        budget_is_given = self._local.host_budget_bytes is not None or self._local.device_budget_bytes is not None
        if budget_is_given or not any(map(_is_here, peers)):
            return profile
        return replace(profile, device_bytes=min(profile.device_bytes, cost.base_bytes + cost.head.loaded_bytes))


def _is_here(peer: Peer) -> bool:
    """Whether it is a worker on this very machine."""
    host = parse_address(peer.client.address)[0]
    return is_loopback(peer.client.address) or host in machine_addresses()


def _capped(machine: Machine, peer: Peer, caps: Mapping[str, int]) -> Machine:
    """Return the machine with no more memory than has turned out to be there."""
    profile = machine.profile
    cap = caps.get(peer.described.worker_id, profile.device_bytes)
    return replace(machine, profile=replace(profile, device_bytes=min(profile.device_bytes, cap)))


def _predict_spread(
    cost: ModelCost, workers: Sequence[Machine], own: Machine, links: Links, capped: Collection[str]
) -> MeshPlan:
    """Give everybody a part; where that does not fit, not to those of whom less memory is there than they said."""
    parts = spread_evenly(workers, own, len(cost.layers))
    for tried in (parts, parts[:-1]):  # the last worker has the head where this machine has no room for it
        try:
            return predict_mesh(cost, tried, links)
        except BudgetError:
            if tried is not parts and not capped:
                raise
    return plan_mesh(cost, [*(worker for worker in workers if worker.name not in capped), own], links)
