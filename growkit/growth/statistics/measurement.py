"""What initializers may know: the facts of growth batches, each measured once and only if asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from growkit.device import exact_arithmetic
from growkit.errors import TrainingError
from growkit.graph import GrowthSite, copy_of
from growkit.growth.statistics.fan_map import FanMap, measure_fan_map
from growkit.growth.statistics.gradient import GradientMatrix, check_pair, gradient_matrix
from growkit.growth.statistics.layout import unit_layout
from growkit.growth.statistics.operator import GradientOperator
from growkit.growth.statistics.tap import Call, Tap, differentiate
from growkit.rng import isolated
from growkit.surgery import Extension, Growth, Inputs, function_change, grow, lookup, observe, untouched

__all__ = ["ActivationFacts", "Loss", "Measurement"]

Loss = Callable[[Any, Tensor], Tensor]

PROBED = 8  # samples on which it is looked at what stands between two layers: it does the same to all
FEWEST = 32  # samples of a part of a batch that stands for all of it


@dataclass(frozen=True)
class ActivationFacts:
    """What stands between producer and consumer does to a unit whose pre-activation is 0.

    Attributes:
        value: largest |f(0)|, in eval or train mode.
        slope: |f'(0)| in eval mode, the share of a gradient that passes.
        has_norm: a BatchNorm stands there.
    """

    value: float
    slope: float
    has_norm: bool


@dataclass(eq=False)
class _Question:
    """What is the gradient of the zero fan-out of units with this fan-in?"""

    site: GrowthSite
    values: Mapping[tuple[str, int], Tensor]
    count: int
    share: int = 1
    answer: Tensor | None = None

    @property
    def names(self) -> set[str]:
        """The tensors that change with the site."""
        return {name for record, _ in self.site.uses for name in record.names}


@dataclass
class Measurement:
    """Facts of one or several growth batches about a model that is left as it was.

    Gradients are those of the mean loss over the batches; what stands between two layers is looked at on the first.

    Attributes:
        model: the model before the event.
        loss: data loss of (outputs, targets).
        inputs: of the growth batch.
        targets: of the growth batch.
        sites: the sites of the coming event; all are measured by one forward and one backward pass for each batch.
        more: inputs and targets of further growth batches of the same size.
        forwards: passes over one batch made so far, a backward pass counted as two, for the FLOPs ledger.
    """

    model: nn.Module
    loss: Loss
    inputs: Inputs
    targets: Tensor
    sites: tuple[GrowthSite, ...]
    more: tuple[tuple[Inputs, Tensor], ...] = ()
    forwards: float = 0.0
    _calls: list[dict[str, Call]] | None = field(default=None, init=False, repr=False)
    _square: float | None = field(default=None, init=False, repr=False)
    _questions: list[_Question] = field(default_factory=list, init=False, repr=False)
    _activations: dict[str, ActivationFacts] | None = field(default=None, init=False, repr=False)

    def tensor(self, name: str) -> Tensor:
        """The present values of a parameter."""
        return self.model.get_parameter(name).detach()

    def bias_of(self, site: GrowthSite) -> str | None:
        """The name of the producer's bias in a chain; None where it has none."""
        assert site.chain is not None
        bias = self._all_calls()[0][site.chain.producer].bias
        return next((name for name, p in self.model.named_parameters() if p is bias), None)

    def gradient_matrix(self, site: GrowthSite) -> GradientMatrix:
        """The gradient matrix of a chain site, of the mean loss over the batches; see `gradient_matrix`.

        Raises:
            TrainingError: it is not finite.
        """
        first, *others = self.gradient_matrices(site)
        if not others:
            return first
        matrices = torch.stack([first.matrix, *(one.matrix for one in others)])
        return replace(first, matrix=matrices.mean(0))

    def gradient_square(self) -> float:
        """Squared norm of the gradient of all present parameters, of the mean loss over the batches.

        Where it is wanted it is asked for first: the gradient matrices then need no passes of their own.
        """
        if self._square is None:
            self._calls, gradients = self._passes(list(self.model.parameters()))
            self._square = float(sum(one.abs().square().sum() for one in gradients))
        return self._square

    def gradient_operator(self, site: GrowthSite) -> GradientOperator:
        """The same matrix by its products, for sizes whose entries nobody wants to see.

        Raises:
            TrainingError: it is not finite.
            GrowthRefused: the loss does not depend on the layer, or the two layers are of different kinds.
        """
        assert site.chain is not None
        producer, consumer = site.chain.producer, site.chain.consumer
        made, read = self.tensor(producer), self.tensor(consumer)
        pairs = [(calls[producer], calls[consumer]) for calls in self._all_calls()]
        for first, second in pairs:
            check_pair(first, second)
            assert second.output_gradient is not None
            _check_finite(second.output_gradient, site)
            _check_finite(first.input, site)
        return GradientOperator(
            pairs,
            tuple(made.shape[1:]),
            (read.shape[0], *read.shape[2:]),
            centre="batch_norm" in site.chain.between,
        )

    def gradient_matrices(self, site: GrowthSite) -> list[GradientMatrix]:
        """The gradient matrix of a chain site for each batch.

        Raises:
            TrainingError: one is not finite.
        """
        assert site.chain is not None
        producer, consumer = site.chain.producer, site.chain.consumer
        found = [
            gradient_matrix(
                calls[producer],
                calls[consumer],
                self.tensor(producer),
                self.tensor(consumer),
                centre="batch_norm" in site.chain.between,
            )
            for calls in self._all_calls()
        ]
        for one in found:
            _check_finite(one.matrix, site)
        return found

    def activation(self, site: GrowthSite) -> ActivationFacts:
        """f(0) and f'(0) of what stands between producer and consumer of a chain site."""
        if self._activations is None:
            self._activations = self._probe_activations([s for s in self.sites if s.chain is not None])
        return self._activations[site.name]

    def fan_map(self, site: GrowthSite, shift: float = 0.0, probes: Tensor | None = None) -> FanMap:
        """The gradient matrix of any site, through whatever stands between, or its products; see `measure_fan_map`.

        Raises:
            TrainingError: it is not finite.
            GrowthRefused: its units cannot be probed.
        """
        found = measure_fan_map(self.model, site, self._gradients, shift, probes)
        _check_finite(found.matrix, site)
        return found

    def silence(self, site: GrowthSite) -> float:
        """By how much a unit of zero fan-in changes the outputs, relative to their size: 0 where f(0) = 0."""
        model, layout, inputs = copy_of(self.model), unit_layout(site, 1), self.inputs.at_most(PROBED)
        before = observe(model, inputs)
        edit = grow(model, [Growth(site, 1)])
        try:
            with torch.no_grad():
                for part in layout.filters:
                    part.write(model.get_parameter(part.name), part.identity())
                for part in layout.fan_out:
                    part.write(model.get_parameter(part.name), torch.ones(()))
            self._count_probe(4)
            return function_change(before, observe(model, inputs)).worst
        finally:
            edit.undo()

    def response(self, site: GrowthSite, values: Mapping[tuple[str, int], Tensor], count: int) -> Tensor:
        """Gradient norms of the zero fan-out of `count` units with the given fan-in, measured on a copy: [count]."""
        return self.ask_response(site, values, count)()

    def ask_response(
        self, site: GrowthSite, values: Mapping[tuple[str, int], Tensor], count: int
    ) -> Callable[[], Tensor]:
        """`response` for later: what is returned measures all that was asked before it is called."""
        gradients = self.ask_gradients(site, values, count)
        return lambda: gradients().norm(dim=1)

    def ask_gradients(
        self, site: GrowthSite, values: Mapping[tuple[str, int], Tensor], count: int, share: int = 1
    ) -> Callable[[], Tensor]:
        """Gradients of that fan-out, in the order of `unit_layout`, likewise for later: [count, entries].

        Units of zero fan-out change nothing for each other, so that sites without a common tensor share a pass.

        Args:
            site: that gets the units.
            values: of their fan-in, by tensor and dimension.
            count: of units.
            share: of the samples of each batch, one in so many, but not fewer than FEWEST: enough where only the larger
                of two gradients is asked for.
        """
        question = _Question(site, values, count, share)
        self._questions.append(question)

        def answer() -> Tensor:
            if question.answer is None:
                self._answer()
            assert question.answer is not None
            return question.answer

        return answer

    def _answer(self) -> None:
        """Answer all questions, in as few passes as sites can share."""
        while self._questions:
            now, names = [], set[str]()
            share = self._questions[0].share
            for question in self._questions:
                if question.share == share and names.isdisjoint(question.names):
                    now.append(question)
                    names |= question.names
            self._questions = [question for question in self._questions if question not in now]
            model, layouts = copy_of(self.model), [unit_layout(one.site, one.count) for one in now]
            edit = grow(model, [Growth(one.site, one.count, Extension(one.values)) for one in now])
            try:
                gradients = self._gradients(model, [part.name for layout in layouts for part in layout.fan_out], share)
            finally:
                edit.undo()
            for question, layout in zip(now, layouts, strict=True):
                found = [part.read(gradients[part.name]) for part in layout.fan_out]
                question.answer = torch.cat(found, 1)

    def _count_probe(self, passes: int) -> None:
        self.forwards += passes * min(PROBED, len(self.targets)) / len(self.targets)

    def _all_calls(self) -> list[dict[str, Call]]:
        if self._calls is None:
            self._calls, _ = self._passes([])
        return self._calls

    @property
    def batches(self) -> list[tuple[Inputs, Tensor]]:
        """Inputs and targets of all growth batches."""
        return [(self.inputs, self.targets), *self.more]

    def _passes(self, parameters: Sequence[nn.Parameter]) -> tuple[list[dict[str, Call]], list[Tensor]]:
        """What the layers at the sites saw, batch by batch, and the gradients of parameters of the mean loss."""
        names = {name for site in self.sites if site.chain for name in (site.chain.producer, site.chain.consumer)}
        passes = [self._pass(self.model, batch, parameters, names) for batch in self.batches]
        return [calls for calls, _ in passes], _means([gradients for _, gradients in passes])

    def _gradients(self, model: nn.Module, names: Sequence[str], share: int = 1) -> dict[str, Tensor]:
        """Gradients of parameters, of the mean loss over the batches or a share of each, in a copy of the model."""
        names = list(dict.fromkeys(names))  # a unit may have several places in one tensor
        parameters = [model.get_parameter(name) for name in names]
        found = _means([self._pass(model, _part(batch, share), parameters)[1] for batch in self.batches])
        return dict(zip(names, found, strict=True))

    def _pass(
        self,
        model: nn.Module,
        batch: tuple[Inputs, Tensor],
        parameters: Sequence[nn.Parameter],
        watched: Iterable[str] = (),
    ) -> tuple[dict[str, Call], list[Tensor]]:
        """One batch forward, and backward as far as these parameters and the outputs of watched layers need it."""
        weights, (inputs, targets) = {id(model.get_parameter(name)): name for name in watched}, batch
        # without the gradients of weights it is less, and the gradient matrices are about as much
        self.forwards += 3 * len(targets) / len(self.targets)
        with untouched(model), exact_arithmetic(), isolated(0), torch.enable_grad():
            model.train()
            with Tap(weights) as tap:
                outputs = model(*inputs.args, **(inputs.kwargs or {}))
            gradients = differentiate(self.loss(outputs, targets), model, parameters, list(tap.calls.values()))
        for call in tap.calls.values():
            call.input, call.output, call.edge = call.input.detach(), call.output.detach(), None
        return tap.calls, gradients

    def _probe_activations(self, sites: list[GrowthSite]) -> dict[str, ActivationFacts]:
        """Widen a copy by one silent unit per site and watch what becomes of its zero pre-activation."""
        self._count_probe(3)
        model = copy_of(self.model)
        edit = grow(model, [Growth(site, 1) for site in sites])
        try:
            names = {name for site in sites if site.chain for name in (site.chain.producer, site.chain.consumer)}
            weights = {id(lookup(model, name, "parameter")): name for name in names}
            calls = self._listen(model, weights, training=False)
            # before the train-mode pass moves the running statistics that this backward pass needs
            slopes = {site.name: _slope(model, calls, site) for site in sites}
            values = {site.name: _largest(calls, site) for site in sites}
            calls = self._listen(model, weights, training=True)
            return {
                site.name: ActivationFacts(
                    value=max(values[site.name], _largest(calls, site)),
                    slope=slopes[site.name],
                    has_norm=site.chain is not None and "batch_norm" in site.chain.between,
                )
                for site in sites
            }
        finally:
            edit.undo()

    def _listen(self, model: nn.Module, weights: dict[int, str], *, training: bool) -> dict[str, Call]:
        with exact_arithmetic(), isolated(0), torch.enable_grad(), Tap(weights) as tap:
            model.train(training)
            inputs = self.inputs.at_most(PROBED)
            model(*inputs.args, **(inputs.kwargs or {}))
        return tap.calls


def _part(batch: tuple[Inputs, Tensor], share: int) -> tuple[Inputs, Tensor]:
    """The first samples of a batch, one in `share` but not fewer than FEWEST."""
    inputs, targets = batch
    samples = max(FEWEST, -(-len(targets) // share))
    return batch if share == 1 or samples >= len(targets) else (inputs.at_most(samples), targets[:samples])


def _means(batches: Sequence[Sequence[Tensor]]) -> list[Tensor]:
    return [torch.stack(several).mean(0) if several[1:] else several[0] for several in zip(*batches, strict=True)]


def _check_finite(matrix: Tensor, site: GrowthSite) -> None:
    # a sum of finite entries costs a tenth of looking at each, and is finite unless it overflows
    if not bool(matrix.sum().isfinite()) and not bool(matrix.isfinite().all()):
        raise TrainingError(
            f"the gradient at {site.name} must be finite to grow there, got inf or NaN on the growth batch; "
            "lower the learning rate"
        )


def _newest_unit(calls: dict[str, Call], site: GrowthSite) -> Tensor:
    """What the consumer of a chain reads of the last unit."""
    assert site.chain is not None
    consumer = calls[site.chain.consumer]
    return consumer.input.select(1 if consumer.stride else -1, -1)


def _largest(calls: dict[str, Call], site: GrowthSite) -> float:
    return float(_newest_unit(calls, site).detach().abs().max())


def _slope(model: nn.Module, calls: dict[str, Call], site: GrowthSite) -> float:
    assert site.chain is not None
    producer = calls[site.chain.producer]
    # Through the producer's weight, so that the hook behind it fires: an in-place activation has overwritten the output
    # tensor itself, whose gradient is the one after the activation.
    torch.autograd.grad(
        _newest_unit(calls, site).sum(), model.get_parameter(site.chain.producer), retain_graph=True, allow_unused=True
    )
    gradient = producer.output_gradient
    return 0.0 if gradient is None else float(gradient.select(1 if producer.stride else -1, -1).abs().max())
