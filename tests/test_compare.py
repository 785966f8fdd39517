"""Comparisons from arguments to tables: arms on shared seeds, matched, tuned, resumed, and what is said of failures."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import pytest
from compare_cases import TINY, InProcess, compared, in_process
from matplotlib.figure import Figure

from growkit.assembly import assemble
from growkit.compare.arms import differing, read_arms
from growkit.compare.baselines import derive
from growkit.compare.curves import _common
from growkit.config import load_config
from growkit.errors import TrainingError, UserInputError
from growkit.growth.controller import GrowthController

Write = Callable[[str], Path]


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch, write: Write) -> InProcess:
    """Runs of this process; c.yaml in the working folder is the tiny one."""
    write(TINY)
    return in_process(monkeypatch)


RANDOM = "random=c.yaml growth.initializer=random"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a comparison of two arms on the seeds 0, 3 and 7."""
    folder = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        (folder / "c.yaml").write_text(TINY)
        in_process(patch)
        compared(folder, "c.yaml", RANDOM, seeds="0,3,7")
    return folder / "out"


@pytest.fixture
def stored(runs: InProcess, finished: Path, tmp_path: Path) -> Path:
    """A copy of it, to be changed, in the working folder."""
    return shutil.copytree(finished, tmp_path / "out", symlinks=True)


def only(folder: Path, pattern: str) -> Path:
    """The one file that fits."""
    (path,) = folder.glob(pattern)
    return path


def table(path: Path) -> list[dict[str, str]]:
    """The lines of a CSV file."""
    return list(csv.DictReader(path.read_text().splitlines()))


def change(path: Path, **values: object) -> None:
    """Give entries of a JSON file other values; dots in names are written as two underscores."""
    content = json.loads(path.read_text())
    for name, value in values.items():
        node = content
        *above, last = name.split("__")
        for key in above:
            node = node[key]
        node[last] = value
    path.write_text(json.dumps(content))


def test_arms_are_compared_seed_by_seed(stored: Path, runs: InProcess, tmp_path: Path):
    result = compared(tmp_path, "c.yaml", RANDOM, seeds="0,3,7")
    assert runs.made == []  # all of it is there
    ours, theirs = result["arms"]["random"], result["arms"]["c"]
    by_seed = {run["seed"]: run["value"] for run in ours["runs"]}
    assert list(by_seed) == [0, 3, 7]
    written = [json.loads(path.read_text()) for path in stored.glob("random/*/2*/result.json")]
    assert {one["seed"]: one["test"]["accuracy"] for one in written} == by_seed
    assert ours["mean"] == pytest.approx(fmean(by_seed.values()))
    assert ours["deviation"] == pytest.approx(stdev(by_seed.values()))
    base = {run["seed"]: run["value"] for run in theirs["runs"]}
    assert ours["difference"]["by_seed"] == {seed: by_seed[seed] - base[seed] for seed in base}
    assert theirs["difference"] is None


def test_what_is_kept_says_how_it_was_made(runs: InProcess, tmp_path: Path):
    result = compared(tmp_path, "c.yaml", RANDOM, "train.epochs=1", seeds="1")
    page = (tmp_path / "out/compare.md").read_text()
    assert "one seed: there are no deviations and no intervals" in page
    assert "c.yaml train.epochs=1 growth.initializer=random" in page and "torch 2." in page
    assert (tmp_path / "out/compare.png").read_bytes().startswith(b"\x89PNG")
    kept = json.loads((tmp_path / "out/compare.json").read_text())
    assert kept["seeds"] == [0] and kept["environment"]["packages"]["torch"]
    assert kept["arms"][1]["verdict"] == "one pair, no interval"
    folder = tmp_path / "out" / result["arms"]["c"]["runs"][0]["folder"]
    assert load_config(folder / "config.yaml").train.epochs == 1


@pytest.mark.parametrize(("seeds", "told"), [("2", "range of the seeds"), ("3", "95% interval")])
def test_bars_of_two_seeds_end_at_the_seeds_and_a_title_says_what_bars_are(
    runs: InProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seeds: str, told: str
):
    drawn: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *args, **given: drawn.append(figure))
    result = compared(tmp_path, "c.yaml", RANDOM, seeds=seeds)
    titled = {axes.get_title(): axes for axes in drawn[-1].axes}
    (metric,) = [axes for title, axes in titled.items() if title.startswith("on the way: mean and " + told)]
    (ends,) = [axes for title, axes in titled.items() if title.startswith("at the end")]
    for place, arm in enumerate(reversed(result["arms"].values())):
        values = [run["value"] for run in arm["runs"]]
        half = arm["half_interval"]
        extent = [min(values), max(values)] if seeds == "2" else [arm["mean"] - half, arm["mean"] + half]
        (bar,) = [bar for bar in _bars(ends) if bar[0][1] == place]
        assert [end[0] for end in bar] == pytest.approx(extent)
    low, high = metric.get_ylim()
    assert seeds != "2" or all(low <= end[1] <= high for bar in _bars(metric) for end in bar)


def _bars(axes: Any) -> list[Any]:
    """The two ends [x, y] of every error bar."""
    return [bar for one in axes.containers for lines in one.lines[2] for bar in lines.get_segments()]


def test_random_growth_has_no_fallback_that_is_random_too(runs: InProcess, tmp_path: Path):
    result = compared(tmp_path, "c.yaml growth.fallback=random", baselines="random", seeds="1")
    assert not any(run["failure"] for arm in result["arms"].values() for run in arm["runs"])
    assert [made.growth.fallback is None for made in runs.made] == [False, True]


def test_a_plan_foresees_the_training_flops_of_any_number_of_steps(runs: InProcess, tmp_path: Path):
    compared(tmp_path, "steps7=c.yaml train.steps=7", "steps11=c.yaml train.steps=11", match="none", seeds="1")
    parts = assemble(load_config("c.yaml"), writes=False)
    for steps in (7, 11):
        result = json.loads(only(tmp_path, f"out/steps{steps}/0/2*/result.json").read_text())
        assert result["steps"] == steps
        assert parts.outlook.flops(steps) == result["train_flops"] == result["planned_train_flops"]


def test_baselines_cost_what_the_growing_arm_costs(runs: InProcess, tmp_path: Path):
    result = compared(tmp_path, "c.yaml", "train.epochs=20", baselines="small,random,uniform", seeds="1")
    costs = {name: arm["costs"] for name, arm in result["arms"].items()}
    seed = assemble(load_config("c.yaml"), writes=False).controller.sites.graph.params()
    assert costs["small"]["params"] == seed < costs["c"]["params"] == costs["random"]["params"]
    assert costs["uniform"]["params"] == costs["c"]["params"]
    assert [costs[name]["events"] for name in ("c", "small", "random", "uniform")] == [1, 0, 1, 1]
    assert costs["small"]["steps"] > costs["random"]["steps"] == costs["c"]["steps"] > costs["uniform"]["steps"]
    for name in ("small", "random", "uniform"):
        assert costs[name]["train_flops"] == pytest.approx(costs["c"]["train_flops"], rel=0.01)


def test_the_big_baseline_is_the_full_network_without_growth(write: Write):
    write("model: {name: wrn, block_width: 0.25}\ngrowth: {target: {'blocks.0.conv1': 8}}\n")
    (big,) = derive(["big"], read_arms(["c.yaml"]))
    full = big.config.model.model_dump()
    assert full["block_width"] == 1.0
    assert big.config.growth.when.name == "never" and big.config.growth.target == 1.0
    assert big.config.train == read_arms(["c.yaml"])[0].config.train


def test_the_random_baseline_keeps_all_but_the_initializer(write: Write):
    write("growth: {initializer: {name: gradmax, scale: 0.7, form: zero_fan_out}}\n")
    (grower,) = read_arms(["c.yaml"])
    (random,) = derive(["random"], [grower])
    changed = {key for key, _, _ in differing(random.config, grower.config)}
    assert changed == {f"growth.initializer.{key}" for key in ("name", "batch_size", "beyond_rank")}


def test_the_uniform_baseline_keeps_all_but_when_and_how_many(write: Write):
    after = "{part_rates: norm_ratio, rewarm_steps: 5}"
    write(f"growth: {{initializer: variance_transfer, optimizer: {after}, sites: ['*1']}}\n")
    (grower,) = read_arms(["c.yaml"])
    (uniform,) = derive(["uniform"], [grower])
    changed = {key.split(".")[1] for key, _, _ in differing(uniform.config, grower.config)}
    assert changed == {"when", "how_many", "target"}


def test_steps_are_matched_where_that_is_asked_for(runs: InProcess, tmp_path: Path):
    result = compared(tmp_path, "c.yaml", "wide=c.yaml train.epochs=1 model.hidden=[8]", match="steps", seeds="1")
    assert [arm["costs"]["steps"] for arm in result["arms"].values()] == [8, 8]


def test_arms_shorter_than_their_growth_are_told(runs: InProcess, tmp_path: Path):
    wide = "wide=c.yaml model.hidden=[64] growth.when.start=2 train.epochs=3"
    result = compared(tmp_path, "c.yaml", wide, seeds="1")
    assert any(note.startswith("wide: ") and "leave out 1 of its growth events" in note for note in result["notes"])


@pytest.fixture
def unforeseen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Growth of GradMax depends on training, as far as anyone knows beforehand."""
    known = GrowthController.plan
    monkeypatch.setattr(
        GrowthController,
        "plan",
        lambda self, clock: None if self.settings.initializer.name == "gradmax" else known(self, clock),
    )


@pytest.mark.usefixtures("unforeseen")
def test_an_arm_whose_cost_depends_on_training_runs_first_and_is_matched(runs: InProcess, tmp_path: Path):
    small = "small=c.yaml growth.when=never growth.initializer=random"
    result = compared(tmp_path, small, "auto=c.yaml", "train.epochs=20", baselines="uniform,random")
    names = [Path(config.run.root).name for config in runs.made]
    assert names[:2] == ["auto", "auto"] and set(names[2:]) == {"small", "uniform", "random"}
    assert result["matched_to"] == "auto"
    costs = {name: arm["costs"] for name, arm in result["arms"].items()}
    assert costs["small"]["train_flops"] == pytest.approx(costs["auto"]["train_flops"], rel=0.01)
    assert costs["uniform"]["params"] == costs["auto"]["params"]


@pytest.mark.usefixtures("unforeseen")
def test_what_follows_an_arm_that_failed_has_failed(runs: InProcess, tmp_path: Path):
    small = "small=c.yaml growth.when=never growth.initializer=random"
    with pytest.raises(TrainingError, match="2 of 2 runs failed"):
        compared(tmp_path, "auto=c.yaml train.optimizer.lr=1e30", small, seeds="1")
    (failed, follower) = json.loads((tmp_path / "out/compare.json").read_text())["arms"]
    assert failed["runs"][0]["failure"].startswith("the training loss must stay finite")
    assert follower["runs"][0]["failure"] == "auto, which it follows, failed on this seed"


@pytest.mark.usefixtures("unforeseen")
def test_two_arms_whose_cost_depends_on_training_are_not_called_matched(runs: InProcess, tmp_path: Path):
    result = compared(tmp_path, "c.yaml", "longer=c.yaml train.epochs=3", seeds="1")
    assert "longer: growth depends on training, so its FLOPs cannot be matched" in result["notes"][0]
    assert any("the two are not at equal cost" in note for note in result["notes"])


@pytest.mark.usefixtures("unforeseen")
def test_two_such_arms_are_matched_where_flops_end_them(runs: InProcess, tmp_path: Path):
    result = compared(
        tmp_path,
        "c.yaml",
        "wide=c.yaml model.hidden=[8]",
        "train.flops=5000000",
        baselines="small,uniform",
        seeds="1",
    )
    names = [Path(config.run.root).name for config in runs.made]
    assert names[0] == "c" and result["matched_to"] == "c"  # for uniform must know how wide it became
    costs = {name: arm["costs"] for name, arm in result["arms"].items()}
    assert costs["uniform"]["params"] == costs["c"]["params"]
    for cost in costs.values():
        assert cost["train_flops"] == pytest.approx(5_000_000, rel=0.05)
    assert not any("cannot be matched" in note for note in result["notes"])


@pytest.mark.usefixtures("unforeseen")
def test_steps_that_nobody_knows_cannot_be_matched(runs: InProcess, tmp_path: Path):
    with pytest.raises(
        UserInputError, match="--match steps needs to know those of c, but its growth depends on training"
    ):
        compared(tmp_path, "c.yaml train.flops=5000000", RANDOM, match="steps", seeds="1")


def test_steps_take_the_place_of_flops_where_they_are_matched(runs: InProcess, tmp_path: Path):
    result = compared(tmp_path, "c.yaml", "other=c.yaml train.flops=5000000", match="steps", seeds="1")
    assert [arm["costs"]["steps"] for arm in result["arms"].values()] == [8, 8]


def test_a_learning_rate_is_chosen_on_validate_with_seeds_of_its_own(runs: InProcess, tmp_path: Path):
    result = compared(tmp_path, "c.yaml", RANDOM, tune_lr="0.0001,0.2", tune_seeds=2, seeds="1")
    tuning = [config for config in runs.made if config.seed >= 1000]
    assert {config.seed for config in tuning} == {1000, 1001} and len(tuning) == 2 * 2 * 2
    for name in ("c", "random"):
        scores = {}
        for rate in (0.0001, 0.2):
            written = tmp_path.glob(f"out/{name}/lr-{rate:g}/*/2*/result.json")
            scores[rate] = fmean(json.loads(path.read_text())["validate"]["accuracy"] for path in written)
        chosen = result["arms"][name]["learning_rate"]
        assert {one["rate"]: one["mean"] for one in chosen["validate"]} == scores
        assert chosen["chosen"] == max(scores, key=lambda rate: scores[rate]) == 0.2
    assert [config.train.optimizer.lr for config in runs.made if config.seed == 0] == [0.2, 0.2]  # type: ignore[union-attr]
    assert "c: the chosen learning rate 0.2 is at the edge of the grid; widen it" in result["notes"]


def test_a_rate_that_diverges_is_out_of_the_choice(runs: InProcess, tmp_path: Path):
    target = "growth.target={'hidden.*': 6}"
    result = compared(tmp_path, "c.yaml", RANDOM, target, tune_lr="0.1,1e30", tune_seeds=1, seeds="1")
    assert result["arms"]["c"]["learning_rate"]["validate"][1] == {"rate": 1e30, "mean": None}
    assert any("learning rate 1e+30 was out of the choice" in note for note in result["notes"])


def test_the_rate_of_the_base_is_tuned_where_there_is_one(runs: InProcess, tmp_path: Path):
    sam = "sam=c.yaml train.optimizer={name: sam, base: {name: sgd}}"
    result = compared(tmp_path, "c.yaml", sam.replace("train", '"train') + '"', tune_lr="0.05", tune_seeds=1, seeds="1")
    assert result["arms"]["sam"]["learning_rate"]["chosen"] == 0.05
    assert [config.train.optimizer.base.lr for config in runs.made if "sam" in config.run.root] == [0.05, 0.05]  # type: ignore[union-attr]


def test_what_is_stored_is_not_run_again(stored: Path, runs: InProcess, tmp_path: Path):
    first = json.loads((stored / "compare.json").read_text())
    again = compared(tmp_path, "c.yaml", RANDOM, seeds="0,3,7,8")
    assert [config.seed for config in runs.made] == [8, 8]
    for arm in first["arms"]:
        assert again["arms"][arm["name"]]["runs"][:3] == arm["runs"]


def test_an_interrupt_keeps_what_is_done(runs: InProcess, tmp_path: Path):
    runs.die_after = 3
    with pytest.raises(KeyboardInterrupt):
        compared(tmp_path, "c.yaml", RANDOM)
    assert not (tmp_path / "out/compare.json").exists()
    runs.die_after = None
    compared(tmp_path, "c.yaml", RANDOM)
    assert len(runs.made) == 4


def test_an_unfinished_run_is_made_again(stored: Path, runs: InProcess, tmp_path: Path):
    before = json.loads((stored / "compare.json").read_text())["arms"][0]
    only(stored, "c/0/2*/result.json").unlink()
    again = compared(tmp_path, "c.yaml", RANDOM, seeds="0,3,7")["arms"]["c"]
    assert [config.seed for config in runs.made] == [0]
    assert again["runs"][0]["folder"] != before["runs"][0]["folder"]
    assert again["mean"] == before["mean"]


def test_a_stored_run_of_other_settings_is_an_error(stored: Path, runs: InProcess, tmp_path: Path):
    with pytest.raises(UserInputError, match=r"train.batch_size is 32 there and 16 here; choose another --out"):
        compared(tmp_path, "c.yaml", RANDOM, "train.batch_size=16", seeds="3")
    assert runs.made == []


def test_a_stored_run_of_other_versions_is_an_error(stored: Path, tmp_path: Path):
    change(only(stored, "c/0/2*/env.json"), packages__torch="1.0")
    with pytest.raises(UserInputError, match="torch was 1.0 and is 2"):
        compared(tmp_path, "c.yaml", RANDOM, seeds="1")


def test_a_stored_run_that_cannot_be_read_is_an_error(stored: Path, tmp_path: Path):
    only(stored, "c/0/2*/result.json").write_text("{")
    with pytest.raises(UserInputError, match="a stored run cannot be read: .*choose another --out, or remove"):
        compared(tmp_path, "c.yaml", RANDOM, seeds="1")


def test_runs_of_other_code_or_processors_are_told(stored: Path, tmp_path: Path):
    settings = stored / "c/0/settings.yaml"
    settings.write_text("# growkit 0123\n" + settings.read_text().partition("\n")[2])
    change(only(stored, "c/0/2*/env.json"), processor="abacus")
    notes = compared(tmp_path, "c.yaml", RANDOM, seeds="1")["notes"]
    assert "1 of the 2 runs were made by other code of growkit than is here now" in notes
    assert any(note.startswith("the runs were made with different processors: ") for note in notes)


def test_data_that_changed_between_the_runs_are_told(stored: Path, tmp_path: Path):
    change(only(stored, "c/0/2*/env.json"), data__fingerprint__inputs_sha256="0")
    notes = compared(tmp_path, "c.yaml", RANDOM, seeds="1")["notes"]
    assert "seed 0: the arms were not trained and tested on the same samples; the data changed between runs" in notes


def test_a_run_that_fails_is_told_and_left_out(runs: InProcess, tmp_path: Path):
    high = "high=c.yaml train.optimizer.lr=1e30"
    with pytest.raises(TrainingError, match="2 of 4 runs failed"):
        compared(tmp_path, "c.yaml", high)
    kept = json.loads((tmp_path / "out/compare.json").read_text())
    assert kept["arms"][1]["n"] == 0 and kept["arms"][1]["verdict"] == "no pair"
    assert any(note.startswith("high, seed 1: failed and left out: the training loss must") for note in kept["notes"])


def test_pairs_are_made_of_the_seeds_that_both_arms_finished(stored: Path, tmp_path: Path):
    change(only(stored, "random/3/2*/result.json"), test__accuracy=None)  # what strict JSON makes of NaN
    with pytest.raises(TrainingError, match="1 of 6 runs failed"):
        compared(tmp_path, "c.yaml", RANDOM, seeds="0,3,7")
    kept = json.loads((stored / "compare.json").read_text())
    assert kept["arms"][1]["n"] == 2 and list(kept["arms"][1]["difference"]["by_seed"]) == ["0", "7"]
    assert "random: paired over 2 of 3 seeds, seeds 0, 7" in kept["notes"]
    assert "random, seed 3: failed and left out: its test accuracy is no finite number" in kept["notes"]


def test_a_setting_may_take_the_seed_too(write: Write, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    split = "{test: 0.0, validate: 0.0, diagnose: 0.0, accept: 0.0}"
    write(
        TINY.replace(TINY.splitlines()[1], f"data: {{name: teacher, widths: [6, 4, 3], samples: 100, split: {split}}}")
    )
    runs = in_process(monkeypatch)
    result = compared(tmp_path, "c.yaml", RANDOM, split="train", also_seed=["data.teacher_seed"])
    assert {(config.seed, config.data.teacher_seed) for config in runs.made} == {(0, 0), (1, 1)}  # type: ignore[union-attr]
    assert (result["metric"], result["higher_is_better"]) == ("loss", False)


def test_curves_of_different_lengths_meet_on_one_grid():
    import numpy as np

    first = (np.array([1.0, 2.0, 4.0]), np.array([0.0, 1.0, 3.0]))
    second = (np.array([2.0, 3.0, 5.0]), np.array([2.0, 3.0, 5.0]))
    grid, values = _common([first, second])
    assert grid[0] == 2.0 and grid[-1] == 4.0  # where both were measured
    assert np.allclose(values, [grid - 1.0, grid])
    same, stacked = _common([first, first])
    assert same.tolist() == [1.0, 2.0, 4.0] and stacked.shape == (2, 3)


def test_points_that_runs_share_are_kept_thinned_to_both_ends():
    import numpy as np

    steps = np.arange(1.0, 1502.0)
    grid, values = _common([(steps, 2 * steps), (steps, 3 * steps)])
    assert len(grid) == 200 and (grid[0], grid[-1]) == (1.0, 1501.0)
    assert np.array_equal(values, [2 * grid, 3 * grid])


def test_curves_are_means_and_paired_differences_of_what_the_runs_logged(stored: Path, runs: InProcess, tmp_path: Path):
    compared(tmp_path, "c.yaml", RANDOM, seeds="0,3,7", against="random", metric="loss")
    logged = {
        arm: [
            [float(line["validate_loss"]) for line in table(path)]
            for path in sorted(stored.glob(f"{arm}/*/2*/metrics.csv"))
        ]
        for arm in ("c", "random")
    }
    kept = table(stored / "curves.csv")
    last = {(line["arm"], line["curve"]): float(line["mean"]) for line in kept}
    assert last["c", "validate loss"] == pytest.approx(fmean(run[-1] for run in logged["c"]), rel=1e-5)
    pairs = zip(logged["c"], logged["random"], strict=True)
    assert last["c", "difference"] == pytest.approx(fmean(a[-1] - b[-1] for a, b in pairs), rel=1e-4)
    assert ("random", "difference") not in last and "train_flops" in kept[0]


def test_curves_run_along_steps_where_those_are_matched(stored: Path, runs: InProcess, tmp_path: Path):
    compared(tmp_path, "c.yaml", RANDOM, seeds="0,3,7", match="steps")
    lines = [line for line in table(stored / "curves.csv") if line["curve"] != "difference"]
    assert [line["step"] for line in lines if line["arm"] == "c"] == ["4", "8"]


def test_gradients_of_new_units_are_those_that_the_runs_logged(stored: Path, runs: InProcess, tmp_path: Path):
    result = compared(tmp_path, "c.yaml", RANDOM, seeds="0,3,7")
    run = result["arms"]["random"]["runs"][1]
    lines = [json.loads(line) for line in (stored / run["folder"] / "events.jsonl").read_text().splitlines()]
    logged = {str(line["step"] - 4): line["gradient_norms"] for line in lines if line["event"] == "new_units"}
    (growth,) = run["growths"]
    assert growth["step"] == 4 and list(growth["gradient_norms"]) == ["1", "2", "4"] == list(logged)
    for after, norms in logged.items():
        assert growth["gradient_norms"][after] == pytest.approx(sum(norm**2 for norm in norms.values()) ** 0.5)
    shown = next(line for line in result["lines"] if "gradient norm of new units" in line)
    mean = fmean(one["growths"][0]["gradient_norms"]["1"] for one in result["arms"]["random"]["runs"])
    assert f"| random                                 | {mean:.3g}" in shown


def test_a_moved_folder_is_still_collected(stored: Path, runs: InProcess, tmp_path: Path):
    shutil.move(stored, tmp_path / "moved" / "out")
    compared(tmp_path / "moved", "c.yaml", RANDOM, seeds="1")
    assert runs.made == []


def test_another_arm_may_be_what_the_rest_is_held_against(stored: Path, tmp_path: Path):
    seeds = "0,3,7"
    plain = compared(tmp_path, "c.yaml", RANDOM, seeds=seeds)["arms"]["random"]["difference"]
    turned = compared(tmp_path, "c.yaml", RANDOM, seeds=seeds, against="random")["arms"]
    assert turned["random"]["difference"] is None
    assert turned["c"]["difference"]["mean"] == pytest.approx(-plain["mean"])


def test_other_metrics_and_splits(stored: Path, tmp_path: Path):
    result = compared(tmp_path, "c.yaml", RANDOM, seeds="0,3,7", split="validate", metric="loss")
    written = [json.loads(path.read_text())["validate"]["loss"] for path in stored.glob("c/*/2*/result.json")]
    assert result["arms"]["c"]["mean"] == pytest.approx(fmean(written))
    assert result["higher_is_better"] is False
