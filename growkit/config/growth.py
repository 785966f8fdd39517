"""Settings of growth: the four questions, and how new units begin."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from growkit.config.after_growth import AfterGrowthSettings
from growkit.config.base import BY_NAME, Settings, named
from growkit.config.depth import DepthSettings, Mode, misfit
from growkit.config.policies import (
    AllSitesSettings,
    AnyAllocator,
    AnySelector,
    AnyTrigger,
    BudgetPacedSettings,
    BudgetSettings,
    FixedSettings,
    FractionOfSeedSettings,
    MarginalGainSettings,
    NeverSettings,
    PeriodicSettings,
    RoundRobinSettings,
    TrialSettings,
    has_set_times,
)

__all__ = [
    "AfterGrowthSettings",
    "AllSitesSettings",
    "AnyAllocator",
    "AnyInitializer",
    "AnySelector",
    "AnyTrigger",
    "BudgetSettings",
    "DepthSettings",
    "FireflySettings",
    "FixedSettings",
    "FractionOfSeedSettings",
    "GradMaxInverseSettings",
    "GradMaxOptSettings",
    "GradMaxSettings",
    "GrowthSettings",
    "InitializerSettings",
    "Net2WiderSettings",
    "NeverSettings",
    "NormSettings",
    "PeriodicSettings",
    "RandomPositiveSettings",
    "RandomSettings",
    "RoundRobinSettings",
    "SplittingSettings",
    "TinySettings",
    "TrialSettings",
    "VarianceTransferSettings",
    "ZeroSettings",
]

Positive = Annotated[float, Field(gt=0.0)]


Form = Literal["auto", "zero_fan_in", "zero_fan_out"]

AUTO_BUDGETS = ("params", "flops", "latency_ms", "accuracy")


BatchSize = Annotated[int, Field(ge=1)]


class NormSettings(Settings):
    """How long new slices are.

    scale: norm of a new slice, relative to the mean norm of the existing slices of the same tensor (norm: mean) or
    absolute (norm: fixed).
    """

    scale: Positive = 1.0
    norm: Literal["mean", "fixed"] = "mean"


class InitializerSettings(NormSettings):
    """What the initializers share that leave one side of the new units zero.

    form: which side of the new units is zero, so that the function is kept. `auto` takes the initializer's own form
    where the site allows it, else the other one, and every growth event records which and why.
    """

    form: Form = "auto"


class GradMaxSettings(InitializerSettings):
    """GradMax (Evci et al., ICLR 2022): the new fan-out maximises the gradient norm of the new, zero fan-in.

    Of the two signs of every new fan-out, which have the same gradient norm, the one whose unit lowers the loss more.
    scale 0.5 and mean norm are the released CIFAR and ImageNet settings. batch_size: samples of the one batch the
    gradient matrix is measured on. beyond_rank: what fills units beyond the rank of that matrix (the event says how
    many).
    """

    name: Literal["gradmax"] = "gradmax"
    scale: Positive = 0.5
    batch_size: BatchSize = 128
    beyond_rank: Literal["random", "error"] = "random"


class GradMaxInverseSettings(GradMaxSettings):
    """GradMax with the other side zero: fan-in from the top right singular vectors, zero fan-out.

    The form of the best row of Table 2 in Evci et al. (ICLR 2022), which serves every activation; there it was found by
    optimisation (see gradmax_opt), here by the measured response to the singular vectors with both signs.
    """

    name: Literal["gradmax_inverse"] = "gradmax_inverse"  # type: ignore[assignment]
    form: Literal["auto", "zero_fan_out"] = "auto"  # type: ignore[assignment]


class GradMaxOptSettings(InitializerSettings):
    """GradMax by direct optimisation (Evci et al., ICLR 2022): gradient ascent on the norm of the zero side's gradient.

    For any loss, activation and graph; the other side starts Gaussian and is put back to its norm after every step.
    steps: of Adam. lr: how far a step moves a weight, relative to the root mean square of the new weights (the released
    code takes Keras's 1e-3, which is absolute). batch_size: samples of the one batch the gradient is measured on.
    """

    name: Literal["gradmax_opt"] = "gradmax_opt"
    scale: Positive = 0.5
    steps: Annotated[int, Field(ge=1)] = 100
    lr: Positive = 0.1
    batch_size: BatchSize = 128


class RandomSettings(InitializerSettings):
    """Gaussian directions on one side, zero on the other: the fair baseline of GradMax."""

    name: Literal["random"] = "random"
    scale: Positive = 0.5


class RandomPositiveSettings(InitializerSettings):
    """Directions from U[0, 1) on one side, zero on the other: "Random" of the code released with GradMax.

    Its slices all point into one corner, which makes it a weaker baseline than `random`; it is here to compare with
    published numbers.
    """

    name: Literal["random_positive"] = "random_positive"
    scale: Positive = 0.5


class ZeroSettings(InitializerSettings):
    """Zero fan-out, Gaussian fan-in: the plain function-preserving widening."""

    name: Literal["zero"] = "zero"
    form: Literal["auto", "zero_fan_out"] = "auto"  # type: ignore[assignment]


class VarianceTransferSettings(NormSettings):
    """Variance transfer (Yuan, Savarese and Maire, NeurIPS 2023): pairs of random units that cancel, weights rescaled.

    New units come in pairs of equal fan-in and opposite fan-out, so that any function is kept. With r the old width by
    the new one to the power `exponent`, the fan-out of old units is multiplied by r where the units themselves can be
    divided by it, and new fan-outs are drawn r times as long; every event says what was rescaled.
    exponent: 1 is the published rule, for a standard deviation that falls with the fan-in; 0.5 keeps a variance of 1 by
    fan-in; 0 rescales nothing.
    """

    name: Literal["variance_transfer"] = "variance_transfer"
    exponent: Annotated[float, Field(ge=0.0, le=1.0)] = 1.0


class Net2WiderSettings(Settings):
    """Net2WiderNet (Chen, Goodfellow and Shlens, ICLR 2016): new units are copies, their readers are shared out.

    noise: how far the shares of the copies of one unit lie apart, relative to their mean; they add up to 1, so that the
    function is kept whatever it is, and copies that are read differently learn differently. With 0 every copy gets the
    same share, and copies stay equal for ever unless dropout parts them.
    batch_size: samples of the one batch that shows which units learn; others are not copied.
    """

    name: Literal["net2wider"] = "net2wider"
    noise: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.1
    batch_size: BatchSize = 128


class FireflySettings(NormSettings):
    """Firefly in the simplified form of Evci et al. (ICLR 2022): both sides of the new units lower the loss at once.

    Gradient descent on the loss of one batch, both sides put back to their norms after every step; neither units to
    split nor a pool of candidates, as in Wu et al. (NeurIPS 2020), are tried. The function changes, by design; every
    site is moved as if it grew alone, and changes of many sites add up: best with `where: round_robin`.
    epsilon: norm of a new fan-in, as `scale` is that of a new fan-out. The released configuration has 0, which leaves
    nothing to optimise, and the paper's value is unknown; hence > 0.
    steps: of Adam. lr: how far a step moves a weight, relative to the root mean square of its slice.
    batch_size: samples of the one batch whose loss is lowered.
    """

    name: Literal["firefly"] = "firefly"
    scale: Positive = 0.5
    epsilon: Positive = 0.5
    steps: Annotated[int, Field(ge=1)] = 100
    lr: Positive = 0.1
    batch_size: BatchSize = 128


class SplittingSettings(Settings):
    """Splitting steepest descent (Liu, Wu and Wang, NeurIPS 2019): a unit becomes two, an epsilon to either side.

    The units with the lowest eigenvalues of their splitting matrix are split along its eigenvector, with half of the
    fan-out each. The function changes by the order of epsilon squared, by design. Needs an activation that curves:
    between corners torch's ReLU does not.
    epsilon: length of a step, relative to the mean norm of the fan-ins.
    beyond_negative: what becomes of units that would gain nothing, where fewer than asked for have a negative
    eigenvalue: split all the same (the event says how many), or an error.
    batch_size: samples of the one batch the matrices are measured on.
    """

    name: Literal["splitting"] = "splitting"
    epsilon: Positive = 0.05
    beyond_negative: Literal["split", "error"] = "split"
    batch_size: BatchSize = 128


class TinySettings(Settings):
    """TINY (Verbockhaven et al., TMLR 2024): units that give the layer behind what its own weights cannot.

    From the decomposition of S^(-1/2) N; how strong they are is found by a line search on the loss of the batch. The
    function changes, by design; every site is measured as if it grew alone, and changes of many sites add up: best with
    `where: round_robin`.
    beyond_rank: what fills units beyond the rank of that matrix: random, a Gaussian fan-in and zero fan-out (the event
    says how many), or an error. batch_size: samples of the one batch that is measured.
    """

    name: Literal["tiny"] = "tiny"
    beyond_rank: Literal["random", "error"] = "random"
    batch_size: BatchSize = 128


AnyInitializer = Annotated[
    GradMaxSettings
    | GradMaxInverseSettings
    | GradMaxOptSettings
    | RandomSettings
    | RandomPositiveSettings
    | ZeroSettings
    | VarianceTransferSettings
    | Net2WiderSettings
    | FireflySettings
    | SplittingSettings
    | TinySettings,
    BY_NAME,
    named("gradmax"),
]


def _is_multiple(target: float) -> float:
    if target < 1.0:
        raise ValueError(f"must be >= 1 (a multiple of the seed width), got {target:g}")
    if target > 1000.0:
        raise ValueError(f"must be <= 1000 (a multiple of the seed width), got {target:g}")
    return target


Multiple = Annotated[float, AfterValidator(_is_multiple), Field(json_schema_extra={"minimum": 1})]


def _named(value: Any, chosen: Any) -> Any:
    """What was given, of the kind that was chosen where it does not say which one it is of."""
    if not isinstance(value, dict) or "name" in value or not isinstance(chosen, dict):
        return value
    return {"name": chosen["name"], **value}


def _but_for_the_batch(initializer: Settings) -> dict[str, Any]:
    """The settings of an initializer that are its own: the growth batch is the event's."""
    return initializer.model_dump(exclude={"batch_size"})


class GrowthSettings(Settings):
    """The four questions, and the limits.

    mode: what grows: the width of sites, the depth of places, or both (each event widens sites or deepens places, never
    both at once). depth: how it grows in depth, for the last two.
    policy: `auto` needs no answer but a budget (params, flops, latency_ms or accuracy), and fills in what is not given:
    when: progress_guard around spread, where: all, how_many: marginal_gain, initializer: gradmax_inverse, target: null.
    when: the trigger. where: the sites of an event. how_many: units a site gets. initializer: how they start.
    target: each site's final width: a multiple of its seed width, or null, as wide as budget.params or budget.flops let
    it alone become (16 times its seed width where there is neither), or widths by pattern of site names, in channels of
    what is named also where a unit is a head; sites that grow by whole copies of their units only take as many copies
    as fit into a multiple, and refuse a width between two. sites: patterns of the sites that may grow. fallback: what
    initialises sites the initializer cannot serve, another one; null refuses them.
    tolerance: largest relative change of the outputs (fp32) that an event may cause; under initializers that change the
    function by design (firefly, splitting, tiny) the change with silent new units, before those are given their values.
    trial: whether an event is first tried for some steps, and undone where it does not pay; null lets all stand.
    optimizer: what becomes of the optimizer after an event.
    """

    mode: Mode = "width"
    policy: Literal["auto"] | None = None
    when: AnyTrigger = PeriodicSettings()
    where: AnySelector = AllSitesSettings()
    how_many: AnyAllocator = FractionOfSeedSettings()
    initializer: AnyInitializer = GradMaxSettings()
    fallback: AnyInitializer | None = None
    target: Multiple | dict[str, Annotated[int, Field(ge=1)]] | None = 4.0
    sites: Annotated[tuple[str, ...], Field(strict=False, min_length=1)] = ("*",)
    depth: DepthSettings = DepthSettings()
    budget: BudgetSettings = BudgetSettings()
    tolerance: Positive = 1e-5
    trial: TrialSettings | None = None
    optimizer: AfterGrowthSettings = AfterGrowthSettings()

    @model_validator(mode="before")
    @classmethod
    def _auto(cls, values: Any) -> Any:
        if not isinstance(values, dict) or values.get("policy") != "auto":
            return values
        budget = values.get("budget")
        given = {key for key, limit in budget.items() if limit is not None} if isinstance(budget, dict) else set()
        if isinstance(budget, BudgetSettings):
            given = {key for key, limit in budget if limit is not None}
        if not given & set(AUTO_BUDGETS):
            raise ValueError(f"policy: auto needs a budget: set one of budget.{', budget.'.join(AUTO_BUDGETS)}")
        of = "params" if "params" in given else "flops"
        chosen = {
            "when": {"name": "progress_guard"},
            "where": {"name": "all"},
            "how_many": {"name": "marginal_gain", "of": of},
            "initializer": {"name": "gradmax_inverse"},
            "target": None,
        }
        return chosen | {key: _named(value, chosen.get(key)) for key, value in values.items()}

    @model_validator(mode="after")
    def _settings_fit_the_mode(self) -> Self:
        if (problem := misfit(self)) is not None:
            raise ValueError(problem)
        return self

    @model_validator(mode="after")
    def _pace_has_a_budget_and_an_end(self) -> Self:
        pace = self.how_many
        if not isinstance(pace, BudgetPacedSettings | MarginalGainSettings):
            return self
        if isinstance(pace, BudgetPacedSettings) and getattr(self.budget, pace.of) is None:
            raise ValueError(f"how_many: budget_paced needs a budget to keep pace with; set budget.{pace.of}")
        if pace.events is None and not has_set_times(self.when):
            raise ValueError(
                f"how_many.events: {pace.name} must be told how many events there will be where when: "
                f"{self.when.name} depends on training; set how_many: {{name: {pace.name}, events: ...}}"
            )
        return self

    @model_validator(mode="after")
    def _nothing_is_ignored(self) -> Self:
        pace = self.how_many
        if isinstance(pace, MarginalGainSettings) and pace.ratio != MarginalGainSettings().ratio:
            if (limit := getattr(self.budget, pace.of)) is not None:
                raise ValueError(
                    f"how_many.ratio: is for growth without a budget.{pace.of}, whose parts are the pace; got "
                    f"ratio {pace.ratio:g} with budget.{pace.of} {limit:,}; leave out one of them"
                )
        if self.fallback is not None and _but_for_the_batch(self.fallback) == _but_for_the_batch(self.initializer):
            raise ValueError(
                f"fallback: must be another one than initializer, where that cannot serve, got {self.initializer.name} "
                "with the same settings for both; leave it out, or name another"
            )
        first, second = (getattr(one, "batch_size", None) for one in (self.initializer, self.fallback))
        default = None if second is None else type(self.fallback)().batch_size  # type: ignore[union-attr, misc]
        if second is not None and second not in (default, first):
            raise ValueError(
                f"fallback.batch_size: an event has one growth batch, that of initializer {self.initializer.name} "
                f"({'train.batch_size' if first is None else first}), got {second}; leave it out"
            )
        return self
