"""Growth sites of small nets, against the truth: edits keep the function, costs are those of the net built wider."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from growkit.errors import GrowthRefused, ModelError
from growkit.graph import GrowthSite, LiteralChange, Sites, find_sites, rule


class LoopMLP(nn.Module):
    def __init__(self, widths: tuple[int, ...] = (6, 8, 7, 3)):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(widths))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            x = F.gelu(layer(x))
        return self.layers[-1](x)


class SmallVGG(nn.Module):
    def __init__(self, widths: tuple[int, int, int] = (4, 6, 10)):
        super().__init__()
        first, second, hidden = widths
        self.features = nn.Sequential(
            nn.Conv2d(3, first, 3, padding=1),
            nn.BatchNorm2d(first),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),
            nn.Conv2d(first, second, 3, padding=1),
            nn.BatchNorm2d(second),
            nn.ReLU(),
            nn.Conv2d(second, second, 3, padding=1),
        )
        self.classifier = nn.Sequential(nn.Linear(second * 4, hidden), nn.ReLU(), nn.Dropout(), nn.Linear(hidden, 5))

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(F.max_pool2d(F.relu(self.features(x)), 2).flatten(1))


class Block(nn.Module):
    """A pre-activation block with a projection shortcut where the width changes."""

    def __init__(self, fan_in: int, fan_out: int):
        super().__init__()
        self.norm1, self.conv1 = nn.BatchNorm2d(fan_in), nn.Conv2d(fan_in, fan_out, 3, padding=1, bias=False)
        self.norm2, self.conv2 = nn.BatchNorm2d(fan_out), nn.Conv2d(fan_out, fan_out, 3, padding=1, bias=False)
        self.shortcut = nn.Conv2d(fan_in, fan_out, 1, bias=False) if fan_in != fan_out else None

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.norm1(x))
        out = self.conv2(F.relu(self.norm2(self.conv1(h))))
        return out + (x if self.shortcut is None else self.shortcut(h))


class SmallWRN(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1, bias=False)
        self.blocks = nn.Sequential(Block(4, 6), Block(6, 6))
        self.norm, self.head = nn.BatchNorm2d(6), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.norm(self.blocks(self.stem(x)))).mean((2, 3)))


class Grouped(nn.Module):
    """A depthwise and a grouped convolution, with squeeze and excitation."""

    def __init__(self) -> None:
        super().__init__()
        self.expand, self.depthwise = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.squeeze, self.excite = nn.Linear(8, 2), nn.Linear(2, 8)
        self.reduce, self.grouped, self.head = nn.Conv2d(8, 6, 1), nn.Conv2d(6, 9, 3, groups=3), nn.Linear(9, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu6(self.depthwise(F.relu6(self.expand(x))))
        gate = torch.sigmoid(self.excite(F.relu(self.squeeze(x.mean((2, 3))))))
        x = F.relu(self.grouped(F.relu(self.reduce(x * gate[:, :, None, None]))))
        return self.head(F.adaptive_avg_pool2d(x, 1).flatten(1))


class Tied(nn.Module):
    """Embedding and head share a weight; one block runs twice."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.up, self.down = nn.Embedding(11, 6), nn.Linear(6, 8), nn.Linear(8, 6)
        self.head = nn.Linear(6, 11, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        for _ in range(2):
            x = x + self.down(F.silu(self.up(x)))
        return self.head(x)


class RawParameters(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.kernel, self.shift = nn.Parameter(torch.randn(4, 3, 3, 3)), nn.Parameter(torch.zeros(4))
        self.gain, self.mix = nn.Parameter(torch.ones(1, 4, 1, 1)), nn.Parameter(torch.randn(4, 6))
        self.scale, self.out = nn.Parameter(torch.ones(5, 1)), nn.Parameter(torch.randn(5, 6))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(F.conv2d(x, self.kernel, self.shift)) * self.gain
        return torch.einsum("bi,oi->bo", F.relu(x.mean((2, 3)) @ self.mix), self.out * self.scale)


class Branches(nn.Module):
    """Concatenation, equal chunks and a view with positions."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 3, 1)
        self.both, self.head = nn.Conv2d(7, 8, 1), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([F.relu(self.left(x)), self.right(x)], dim=1)
        value, gate = self.both(x).chunk(2, dim=1)
        return self.head(F.adaptive_avg_pool2d(value * gate.sigmoid(), 2).flatten(1))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(3, 4, num_layers=2, batch_first=True, bidirectional=True), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(x)[0][:, -1])


class Auxiliary(nn.Module):
    """The auxiliary head runs in train mode only."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head, self.side = nn.Linear(6, 8), nn.Linear(8, 3), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        x = F.relu(self.body(x))
        return (self.head(x), self.side(x)) if self.training else (self.head(x),)


class Refused(nn.Module):
    """Widths that may not grow, for four reasons."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.b, self.c = nn.Linear(6, 8), nn.LayerNorm(8), nn.Linear(8, 7), nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.b(self.norm(torch.tanh(self.a(x))))
        x = torch.fft.fft(x).real  # no rule for this one
        return self.c(x)


class BranchOnValue(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        if x.mean().item() > 0:
            x = 2 * x
        return self.b(F.relu(self.a(x)))


def vector() -> Tensor:
    return torch.randn(3, 6)


def image() -> Tensor:
    return torch.randn(2, 3, 8, 8)


CASES: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor]]] = {
    "mlp": (LoopMLP, vector),
    "vgg": (SmallVGG, image),
    "wrn": (SmallWRN, image),
    "grouped": (Grouped, image),
    "tied": (Tied, lambda: torch.randint(0, 11, (2, 7))),
    "raw": (RawParameters, image),
    "branches": (Branches, image),
    "recurrent": (Recurrent, lambda: torch.randn(2, 4, 3)),
    "auxiliary": (Auxiliary, vector),
    "refused": (Refused, vector),
}

GROWABLE = [name for name in CASES if name != "refused"]


@pytest.fixture(scope="module")
def traced() -> Callable[[str], tuple[nn.Module, Tensor, Sites]]:
    """Each net, traced once, with every weight and statistic perturbed so that no check is empty."""
    known: dict[str, tuple[nn.Module, Tensor, Sites]] = {}

    def get(name: str) -> tuple[nn.Module, Tensor, Sites]:
        if name not in known:
            torch.manual_seed(0)
            model, example = CASES[name][0](), CASES[name][1]()
            for tensor in [*model.parameters(), *model.buffers()]:
                if tensor.is_floating_point():
                    tensor.data += 0.1 * torch.rand_like(tensor)
            known[name] = model, example, find_sites(model, example)
        return known[name]

    return get


def widened(model: nn.Module, site: GrowthSite, num_new: int, *, silent: bool = True) -> nn.Module:
    """A copy of the model after the site's edits: random new entries, zeros along consumer dimensions if silent."""
    model = copy.deepcopy(model)
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    for edit in site.tensor_edits(num_new):
        tensor = tensors[edit.names[0]]
        new, is_new, is_silent = tensor.data, torch.tensor(False), torch.tensor(False)
        for dim, index_map in enumerate(edit.index_maps):
            if index_map is None:
                continue
            old = torch.from_numpy(index_map)
            new = new.index_select(dim, old.clamp(min=0))
            here = (old < 0).view([-1 if axis == dim else 1 for axis in range(tensor.dim())])
            is_new = is_new | here
            is_silent = is_silent | here if silent and dim in edit.consumer_dims else is_silent
        fill = torch.full_like(new, edit.neutral) if edit.pass_through else 0.5 + torch.rand_like(new)
        tensor.data = torch.where(is_silent, 0.0, torch.where(is_new, fill, new)).contiguous()
    change_attributes(model, site.literal_changes(num_new))
    return model


def change_attributes(model: nn.Module, changes: tuple[LiteralChange, ...]) -> None:
    for change in changes:
        owner = model.get_submodule(change.owners[0])
        if isinstance(owner, nn.LSTM):
            owner.hidden_size = change.new
        elif isinstance(owner, nn.Conv2d):
            owner.groups = change.new


def flops_of(model: nn.Module, example: Tensor) -> int:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.eval()(example[:1])
    return counter.get_total_flops()


def outputs(model: nn.Module, example: Tensor) -> Tensor:
    with torch.no_grad():
        out = model.eval()(example)
    return out[0] if isinstance(out, tuple) else out


def member_names(members) -> set[str]:
    return {member.names[0] for member in members}


@pytest.mark.parametrize("name", GROWABLE)
def test_growing_any_site_keeps_the_function(traced, name):
    model, example, sites = traced(name)
    assert len(sites) > 0
    for site in sites:
        change = outputs(widened(model, site, 2), example) - outputs(model, example)
        assert change.abs().max() < 1e-5, site
        control = outputs(widened(model, site, 2, silent=False), example) - outputs(model, example)
        assert control.abs().max() > 1e-3, site


@pytest.mark.parametrize("name", GROWABLE)
def test_a_grown_net_runs_in_train_mode(traced, name):
    model, example, sites = traced(name)
    for site in sites:
        widened(model, site, 1).train()(example)


@pytest.mark.parametrize("name", [name for name in GROWABLE if name != "recurrent"])
def test_flops_are_those_of_the_flop_counter(traced, name):
    model, example, sites = traced(name)
    assert sites.graph.flops() == flops_of(model, example)


@pytest.mark.parametrize("name", [name for name in GROWABLE if name != "recurrent"])
def test_the_cost_of_a_unit_is_that_of_the_wider_net(traced, name):
    model, example, sites = traced(name)
    for site in sites:
        wider = widened(model, site, 1)
        params = sum(parameter.numel() for parameter in wider.parameters())
        assert site.params_per_unit == params - sum(parameter.numel() for parameter in model.parameters()), site
        assert site.flops_per_unit == flops_of(wider, example) - flops_of(model, example), site


@pytest.mark.parametrize(
    ("seed", "wider", "sizes"),
    [
        (LoopMLP(), LoopMLP((6, 12, 9, 3)), {"layers.0": 12, "layers.1": 9}),
        (SmallVGG(), SmallVGG((7, 9, 13)), {"features.0": 7, "features.4": 9, "features.7": 9, "classifier.0": 13}),
    ],
    ids=["mlp", "vgg"],
)
def test_hypothetical_sizes_cost_what_a_net_built_that_way_costs(seed, wider, sizes):
    example = vector() if isinstance(seed, LoopMLP) else image()
    graph = find_sites(seed, example).graph
    assert graph.params(sizes) == sum(parameter.numel() for parameter in wider.parameters())
    assert graph.flops(sizes) == flops_of(wider, example)


def test_hypothetical_sizes_must_name_sites(traced):
    with pytest.raises(ModelError, match=r"must name sites.*'nowhere'"):
        traced("mlp")[2].graph.params({"nowhere": 3})


def test_a_loop_makes_one_site_per_hidden_layer_in_order(traced):
    sites = traced("mlp")[2]
    assert [(site.name, site.width) for site in sites] == [("layers.0", 8), ("layers.1", 7)]
    assert {(member.names[0], member.dim, member.role) for member in sites["layers.0"].members} == {
        ("layers.0.weight", 0, "producer"),
        ("layers.0.bias", 0, "producer"),
        ("layers.1.weight", 1, "consumer"),
    }
    assert sites[0].location.startswith(__file__)


def test_a_plain_chain_names_its_two_weights_and_what_stands_between(traced):
    chain = traced("mlp")[2]["layers.0"].chain
    assert (chain.producer, chain.consumer, chain.between) == ("layers.0.weight", "layers.1.weight", ("gelu",))
    sites = traced("vgg")[2]
    assert sites["features.4"].chain.between == ("batch_norm", "relu")
    assert sites["classifier.0"].chain.between == ("relu", "dropout")
    assert sites["features.0"].chain is None, "pooling stands between"
    assert sites["features.7"].chain is None, "flatten stands between"


def test_norm_tensors_pass_through_with_their_neutral_fill(traced):
    site = traced("vgg")[2]["features.0"]
    fills = {edit.names[0]: edit.neutral for edit in site.tensor_edits(1) if edit.pass_through}
    norm = "features.1."
    assert fills == {norm + "weight": 1.0, norm + "bias": 0.0, norm + "running_mean": 0.0, norm + "running_var": 1.0}


def test_flatten_gives_every_channel_its_positions(traced):
    site = traced("vgg")[2]["features.7"]
    edit = next(edit for edit in site.tensor_edits(2) if edit.names[0] == "classifier.0.weight")
    assert edit.consumer_dims == (1,)
    assert edit.index_maps[0] is None
    assert edit.index_maps[1].tolist() == [*range(6 * 4), *[-1] * 8]


def test_concatenation_puts_new_units_at_the_end_of_their_branch(traced):
    site = traced("branches")[2]["left"]
    edit = next(edit for edit in site.tensor_edits(1) if edit.names[0] == "both.weight")
    assert edit.index_maps[1].tolist() == [0, 1, 2, 3, -1, 4, 5, 6]


def test_equal_chunks_grow_together(traced):
    site = traced("branches")[2]["both"]
    edit = next(edit for edit in site.tensor_edits(1) if edit.names[0] == "both.weight")
    assert (site.width, edit.index_maps[0].tolist()) == (4, [0, 1, 2, 3, -1, 4, 5, 6, 7, -1])


def test_a_residual_stream_is_one_site_with_all_its_writers_and_readers(traced):
    stream = traced("wrn")[2]["blocks.0.conv2"]
    assert member_names(stream.producers) == {
        "blocks.0.conv2.weight",
        "blocks.0.shortcut.weight",
        "blocks.1.conv2.weight",
    }
    assert member_names(stream.consumers) == {"blocks.1.conv1.weight", "head.weight"}
    assert stream.chain is None
    assert [site.name for site in traced("wrn")[2]] == ["stem", "blocks.0.conv1", "blocks.0.conv2", "blocks.1.conv1"]


def test_a_depthwise_kernel_passes_units_on_and_its_groups_follow(traced):
    site = traced("grouped")[2]["expand"]
    roles = {member.names[0]: member.role for member in site.members}
    assert roles["depthwise.weight"] == "pass_through"
    assert member_names(site.consumers) == {"reduce.weight", "squeeze.weight"}
    (change,) = site.literal_changes(3)
    assert (change.op, change.old, change.new, change.owners) == ("conv2d", 8, 11, ("depthwise", ""))


def test_groups_and_their_width_are_separate_sites(traced):
    sites = traced("grouped")[2]
    assert {(site.name, site.width) for site in sites if site.name.startswith(("reduce", "grouped"))} == {
        ("reduce", 3),
        ("reduce#2", 2),
        ("grouped", 3),
    }


def test_tied_weights_are_one_tensor_with_all_its_names(traced):
    site = traced("tied")[2]["embed"]
    assert ("embed.weight", "head.weight") in {member.names for member in site.members}
    names = [edit.names for edit in site.tensor_edits(1)]
    assert len(names) == len(set(names)) == 4


def test_raw_parameters_are_sites_under_their_own_names(traced):
    sites = traced("raw")[2]
    assert [site.name for site in sites] == ["kernel", "mix"]
    assert {member.names[0]: member.role for member in sites["kernel"].members}["gain"] == "pass_through"


def test_a_recurrent_layer_silences_the_next_step_too(traced):
    site = traced("recurrent")[2]["lstm"]
    consumers = member_names(site.consumers)
    assert {"lstm.weight_hh_l0", "lstm.weight_hh_l1_reverse", "lstm.weight_ih_l1", "head.weight"} <= consumers


def test_a_head_that_runs_in_train_mode_only_is_seen(traced):
    site = traced("auxiliary")[2]["body"]
    assert member_names(site.consumers) == {"head.weight", "side.weight"}
    assert site.chain is None


def test_every_refusal_says_why_and_where(traced):
    refusals = {refusal.name: refusal for refusal in traced("refused")[2].refusals}
    reasons = {name: refusal.reason for name, refusal in refusals.items()}
    assert len(traced("refused")[2]) == 0
    assert reasons["a"] == "is written by tanh, which cannot be centred, and read by a norm"
    assert reasons["b"] == "is transformed by fft_fft"
    assert reasons["c"] == "is the model's output"
    assert reasons["a.weight[1]"] == "is the model's input"
    file, _, line = refusals["b"].location.rpartition(":")
    assert "no rule for this one" in Path(file).read_text().splitlines()[int(line) - 1]


class SlidOver(nn.Module):
    """The middle width is treated as positions by a pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 8), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(F.max_pool1d(self.a(x)[:, None], 2)[:, 0])


class PickedFrom(nn.Module):
    """A tensor of indices with a width of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 3)
        self.register_buffer("table", torch.arange(5.0))

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.table[self.a(x).long().clamp(0, 4)])


class OwnBuffer(LoopMLP):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mask", torch.linspace(0.5, 1.0, 8))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers[2](self.layers[1](self.layers[0](x) * self.mask))


@pytest.mark.parametrize(
    ("model", "name", "reason"),
    [
        (SlidOver(), "a", "is slid over as if it were positions"),
        (PickedFrom(), "a", "has single entries picked from it"),
        (OwnBuffer(), "layers.0", "is the width of the buffer 'mask'"),
    ],
    ids=["slid_over", "picked_from", "buffer"],
)
def test_a_width_with_another_reader_than_a_weight_is_refused(model, name, reason):
    sites = find_sites(model, vector())
    assert name not in {site.name for site in sites}
    assert next(refusal.reason for refusal in sites.refusals if refusal.name == name).startswith(reason)


def test_kernel_and_spatial_sizes_are_not_listed(traced):
    assert {refusal.name for refusal in traced("vgg")[2].refusals} == {"classifier.3", "features.0.weight[1]"}


def test_asking_for_a_refused_or_unknown_site_explains(traced):
    with pytest.raises(GrowthRefused, match=r"'a' \(width 8\) may not grow: it is written by tanh.*test_graph.py:\d+"):
        traced("refused")[2]["a"]
    with pytest.raises(ModelError, match=r"No growth site is named 'layer.0'; did you mean 'layers.0'"):
        traced("mlp")[2]["layer.0"]


def test_a_site_stays_valid_after_an_edit(traced):
    sites = find_sites(LoopMLP(), vector())
    site = sites["layers.0"]
    site.resize(11)
    assert (site.width, site.seed_width) == (11, 8)
    assert sites["layers.1"].params_per_unit == 11 + 1 + 3
    edit = next(edit for edit in site.tensor_edits(2) if edit.names[0] == "layers.0.weight")
    assert edit.index_maps[0].tolist() == [*range(11), -1, -1]


def test_growing_by_nothing_is_refused(traced):
    with pytest.raises(GrowthRefused, match="at least one unit, got num_new=0"):
        traced("mlp")[2][0].tensor_edits(0)


def test_tracing_leaves_the_module_as_it_was():
    model, example = SmallVGG(), image()
    model.train()
    model.features[1].eval()
    model.classifier[0].weight.grad = torch.ones_like(model.classifier[0].weight)
    before, modes = copy.deepcopy(model.state_dict()), [module.training for module in model.modules()]
    state, attributes = torch.get_rng_state(), [set(vars(module)) for module in model.modules()]
    find_sites(model, example)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert [module.training for module in model.modules()] == modes
    assert [set(vars(module)) for module in model.modules()] == attributes
    assert torch.equal(torch.get_rng_state(), state)
    assert model.classifier[0].weight.grad.sum() == model.classifier[0].weight.numel()


def test_a_branch_on_values_is_followed_and_said(capfd):
    sites = find_sites(BranchOnValue(), vector())
    assert sites.graph.path_specialised
    assert [site.name for site in sites] == ["a"]
    assert capfd.readouterr() == ("", "")


def test_keyword_arguments_are_an_example():
    class TwoInputs(LoopMLP):
        def forward(self, *, left: Tensor, right: Tensor) -> Tensor:
            return super().forward(left + right)

    assert len(find_sites(TwoInputs(), {"left": vector(), "right": vector()})) == 2


def test_a_module_that_cannot_run_is_an_error_with_its_place():
    class Broken(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise ValueError("a bug of the user")

    with pytest.raises(
        ModelError, match=r"Broken cannot be traced in train mode: .*a bug of the user.*test_graph.py:\d+"
    ):
        find_sites(Broken(), vector())


def test_an_example_must_be_a_tensor_a_tuple_or_a_dictionary():
    with pytest.raises(ModelError, match="got list"):
        find_sites(LoopMLP(), [vector()])


def test_the_graph_is_a_networkx_graph_with_shapes(traced):
    graph = traced("mlp")[2].to_networkx()
    kinds = [data["kind"] for _, data in graph.nodes(data=True)]
    assert (kinds.count("parameter"), kinds.count("op"), kinds.count("input")) == (6, 5, 1)
    assert graph.edges["linear", "gelu"]["shape"] == (3, 8)


def test_a_user_can_give_a_rule_for_an_own_operation():
    @torch.library.custom_op("growkit_tests::mirror", mutates_args=())
    def mirror(x: Tensor) -> Tensor:
        return -x

    mirror.register_fake(torch.empty_like)

    class Mirrored(LoopMLP):
        def forward(self, x: Tensor) -> Tensor:
            return self.layers[2](self.layers[1](mirror(self.layers[0](x))))

    assert find_sites(Mirrored(), vector())[0].name == "layers.1"
    rule("growkit_tests::mirror")(lambda ctx, call: ctx.dims(call.first))
    assert find_sites(Mirrored(), vector())[0].name == "layers.0"


def test_a_buffer_whose_entries_are_all_equal_grows_with_that_value():
    model = OwnBuffer()
    model.mask.fill_(0.5)
    site = find_sites(model, vector())["layers.0"]
    edit = next(edit for edit in site.tensor_edits(2) if edit.names == ("mask",))
    assert (edit.pass_through, edit.neutral) == (True, 0.5)


def test_parameters_that_share_their_memory_are_refused():
    model = LoopMLP()
    model.layers[2].weight.data = model.layers[2].weight.data.clone()
    assert "layers.0" in {site.name for site in find_sites(model, vector())}
    twin = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 6))
    twin[2].weight.data = twin[0].weight.data.t()
    sites = find_sites(twin, vector())
    assert len(sites) == 0
    assert "shares its memory with" in next(one.reason for one in sites.refusals if one.width == 8)
