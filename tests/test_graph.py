"""The growth sites of a module, and how its tensors change."""

from __future__ import annotations

import graph_cases
import pytest
import torch
from graph_cases import GROWABLE, LoopMLP, OwnBuffer, member_names, outputs, traced, vector, widened
from torch import Tensor

from growkit.graph import find_sites, rule


@pytest.mark.parametrize("name", GROWABLE)
def test_growing_any_site_keeps_the_function(name):
    model, example, sites = traced(name)
    assert len(sites) > 0
    for site in sites:
        change = outputs(widened(model, site, 2), example) - outputs(model, example)
        assert change.abs().max() < 1e-5, site
        control = outputs(widened(model, site, 2, silent=False), example) - outputs(model, example)
        assert control.abs().max() > 1e-3, site


@pytest.mark.parametrize("name", GROWABLE)
def test_a_grown_net_runs_in_train_mode(name):
    model, example, sites = traced(name)
    for site in sites:
        widened(model, site, 1).train()(example)


def test_a_loop_makes_one_site_per_hidden_layer_in_order():
    sites = traced("mlp")[2]
    assert [(site.name, site.width) for site in sites] == [("layers.0", 8), ("layers.1", 7)]
    assert {(member.names[0], member.dim, member.role) for member in sites["layers.0"].members} == {
        ("layers.0.weight", 0, "producer"),
        ("layers.0.bias", 0, "producer"),
        ("layers.1.weight", 1, "consumer"),
    }
    assert sites[0].location.startswith(graph_cases.__file__)


def test_a_plain_chain_names_its_two_weights_and_what_stands_between():
    chain = traced("mlp")[2]["layers.0"].chain
    assert (chain.producer, chain.consumer, chain.between) == ("layers.0.weight", "layers.1.weight", ("gelu",))
    sites = traced("vgg")[2]
    assert sites["features.4"].chain.between == ("batch_norm", "relu")
    assert sites["classifier.0"].chain.between == ("relu", "dropout")
    assert sites["features.0"].chain is None, "pooling stands between"
    assert sites["features.7"].chain is None, "flatten stands between"


def test_norm_tensors_pass_through_with_their_neutral_fill():
    site = traced("vgg")[2]["features.0"]
    fills = {edit.names[0]: edit.neutral for edit in site.tensor_edits(1) if edit.pass_through}
    norm = "features.1."
    assert fills == {norm + "weight": 1.0, norm + "bias": 0.0, norm + "running_mean": 0.0, norm + "running_var": 1.0}


def test_flatten_gives_every_channel_its_positions():
    site = traced("vgg")[2]["features.7"]
    edit = next(edit for edit in site.tensor_edits(2) if edit.names[0] == "classifier.0.weight")
    assert edit.consumer_dims == (1,)
    assert edit.index_maps[0] is None
    assert edit.index_maps[1].tolist() == [*range(6 * 4), *[-1] * 8]


def test_concatenation_puts_new_units_at_the_end_of_their_branch():
    site = traced("branches")[2]["left"]
    edit = next(edit for edit in site.tensor_edits(1) if edit.names[0] == "both.weight")
    assert edit.index_maps[1].tolist() == [0, 1, 2, 3, -1, 4, 5, 6]


def test_equal_chunks_grow_together():
    site = traced("branches")[2]["both"]
    edit = next(edit for edit in site.tensor_edits(1) if edit.names[0] == "both.weight")
    assert (site.width, edit.index_maps[0].tolist()) == (4, [0, 1, 2, 3, -1, 4, 5, 6, 7, -1])


def test_a_residual_stream_is_one_site_with_all_its_writers_and_readers():
    stream = traced("wrn")[2]["blocks.0.conv2"]
    assert member_names(stream.producers) == {
        "blocks.0.conv2.weight",
        "blocks.0.shortcut.weight",
        "blocks.1.conv2.weight",
    }
    assert member_names(stream.consumers) == {"blocks.1.conv1.weight", "head.weight"}
    assert stream.chain is None
    assert [site.name for site in traced("wrn")[2]] == ["stem", "blocks.0.conv1", "blocks.0.conv2", "blocks.1.conv1"]


def test_a_depthwise_kernel_passes_units_on_and_its_groups_follow():
    site = traced("grouped")[2]["expand"]
    roles = {member.names[0]: member.role for member in site.members}
    assert roles["depthwise.weight"] == "pass_through"
    assert member_names(site.consumers) == {"reduce.weight", "squeeze.weight"}
    (change,) = site.literal_changes(3)
    assert (change.op, change.old, change.new, change.owners) == ("conv2d", 8, 11, ("depthwise", ""))


def test_groups_and_their_width_are_separate_sites():
    sites = traced("grouped")[2]
    assert {(site.name, site.width) for site in sites if site.name.startswith(("reduce", "grouped"))} == {
        ("reduce", 3),
        ("reduce#2", 2),
        ("grouped", 3),
    }


def test_tied_weights_are_one_tensor_with_all_its_names():
    site = traced("tied")[2]["embed"]
    assert ("embed.weight", "head.weight") in {member.names for member in site.members}
    names = [edit.names for edit in site.tensor_edits(1)]
    assert len(names) == len(set(names)) == 4


def test_raw_parameters_are_sites_under_their_own_names():
    sites = traced("raw")[2]
    assert [site.name for site in sites] == ["kernel", "mix"]
    assert {member.names[0]: member.role for member in sites["kernel"].members}["gain"] == "pass_through"


def test_a_recurrent_layer_silences_the_next_step_too():
    site = traced("recurrent")[2]["lstm"]
    consumers = member_names(site.consumers)
    assert {"lstm.weight_hh_l0", "lstm.weight_hh_l1_reverse", "lstm.weight_ih_l1", "head.weight"} <= consumers


def test_a_head_that_runs_in_train_mode_only_is_seen():
    site = traced("auxiliary")[2]["body"]
    assert member_names(site.consumers) == {"head.weight", "side.weight"}
    assert site.chain is None


def test_a_site_stays_valid_after_an_edit():
    sites = find_sites(LoopMLP(), vector())
    site = sites["layers.0"]
    site.resize(11)
    assert (site.width, site.seed_width) == (11, 8)
    assert sites["layers.1"].params_per_unit == 11 + 1 + 3
    edit = next(edit for edit in site.tensor_edits(2) if edit.names[0] == "layers.0.weight")
    assert edit.index_maps[0].tolist() == [*range(11), -1, -1]


def test_the_graph_is_a_networkx_graph_with_shapes():
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
