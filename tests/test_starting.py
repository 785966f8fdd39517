"""`growkit init`: what it writes runs to a grown model, and what it cannot use ends with one message."""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner, Result

import growkit
from growkit.cli import app
from growkit.config import Config, load_config
from growkit.starting.draft import Draft, draft
from growkit.starting.page import Section, flow, page
from growkit.starting.recognise import recognise

SHORT = [
    "train.epochs=2",
    "growth.when.start=1",
    "growth.when.events=1",
    "run.tensorboard=false",
    "train.precision=fp32",
]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder with a cache of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


def init(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["init", *arguments])


def written(*arguments: str) -> Config:
    """The settings of an init that must work, in the only YAML file there."""
    result = init(*arguments)
    assert result.exit_code == 0, (result.output, result.exception)
    (file,) = Path().glob("*.yaml")
    assert f"growkit run {file}" in result.output
    return load_config(file)


def decided(place: str, *overrides: str, target: str | None = None) -> Draft:
    """The settings that are chosen, before they are tried."""
    return draft(recognise(Path(place)), target, overrides)


def refused(*arguments: str) -> str:
    """The message of an init that must end with code 2, one line, and nothing written."""
    before = sorted(Path().rglob("*"))
    result = init(*arguments)
    assert result.exit_code == 2, (result.output, result.exception)
    assert result.stderr.startswith("growkit: ") and result.stderr.count("\n") == 1
    assert sorted(Path().rglob("*")) == before
    return result.stderr


def grows(file: str) -> growkit.RunResult:
    """A short run of a file, which must grow in verified width."""
    done = growkit.run(load_config(file, SHORT), observers=())
    assert done.events[0].grown and done.events[0].change.worst <= 1e-5
    return done


def images(
    root: Path, classes: tuple[str, ...] = ("cat", "dog"), each: int = 10, size: tuple[int, int] = (12, 12), mode="RGB"
) -> Path:
    rng = np.random.default_rng(0)
    for name in classes:
        (root / name).mkdir(parents=True)
        for number in range(each):
            pixels = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
            Image.fromarray(pixels).convert(mode).save(root / name / f"{number}.png")
    return root


def table(file: str, header: str, row: Callable[[int], str], rows: int = 60) -> str:
    Path(file).write_text("\n".join([header, *map(row, range(rows))]) + "\n")
    return file


# --- what it writes


def test_a_folder_of_images_grows_a_model():
    config = written(str(images(Path("pets"))))
    assert (config.data.name, config.model.name, config.model.block_width) == ("imagefolder", "wrn", 0.25)
    done = grows("pets.yaml")
    assert done.result["inputs"]["shape"] == [3, 12, 12]


@pytest.mark.slow
def test_larger_images_grow_a_resnet_with_the_stem_of_imagenet():
    config = written(str(images(Path("photos"), size=(80, 70))))
    assert (config.model.name, config.model.stem, config.model.width) == ("resnet", "imagenet", 0.25)
    grows("photos.yaml")


def test_a_table_of_classes_grows_a_model():
    table("flowers.csv", "length,colour,species", lambda k: f"{k % 7},{'rg'[k % 2]},{'abc'[k % 3]}")
    config = written("flowers.csv")
    assert (config.data.target, config.data.task, config.model.name) == ("species", "classification", "mlp")
    assert grows("flowers.yaml").result["test"]["accuracy"] is not None


def test_a_table_of_values_grows_a_model():
    table("houses.csv", "area;rooms;price", lambda k: f"{k * 1.5};{k % 4};{k * 3.25}")
    config = written("houses.csv")
    assert (config.data.target, config.data.task, config.data.delimiter) == ("price", "regression", ";")
    assert grows("houses.yaml").result["test"]["accuracy"] is None


def test_a_text_grows_a_model():
    Path("book.txt").write_text("It was the best of times, it was the worst of times.\n" * 40)
    assert written("book.txt").model.name == "lstm"
    assert grows("book.yaml").result["test"]["perplexity"] > 1.0


@pytest.mark.slow
def test_a_longer_text_grows_a_transformer():
    letters = np.random.default_rng(0).choice(list(b"abcdefgh \n"), 600_000).astype(np.uint8)
    Path("book.txt").write_bytes(letters.tobytes())
    assert written("book.txt").model.name == "gpt"
    growkit.run(load_config("book.yaml", [*SHORT, "data.limit=200"]), observers=())


@pytest.mark.slow
def test_pairs_of_texts_grow_a_model():
    Path("words.tsv").write_text("".join(f"word{k}\t{k}drow\n" for k in range(60)))
    assert written("words.tsv").model.name == "seq2seq"
    grows("words.yaml")


def test_arrays_grow_a_model():
    np.savez("digits.npz", train_images=np.zeros((40, 8, 8), np.uint8), train_labels=np.arange(40) % 4)
    config = written("digits.npz")
    assert (config.data.name, config.data.augment.flip) == ("npz", False)
    grows("digits.yaml")


def test_what_is_written_says_what_else_it_could_be():
    images(Path("pets"))
    init("pets")
    lines = Path("pets.yaml").read_text().splitlines()
    plain = [line for before, line in pairwise(lines[2:]) if ": " in line and "#" not in before + line]
    assert plain == []


# --- how it decides


def test_images_of_several_sizes_are_cut_to_one():
    folder = images(Path("photos"), size=(70, 50))
    Image.new("RGB", (90, 60)).save(folder / "cat" / "wide.png")
    assert decided("photos").values["data"]["size"] == 48


def test_grey_images_of_letters_are_not_mirrored():
    data = decided(str(images(Path("letters"), classes=("a", "b"), mode="L"))).values["data"]
    assert (data["mode"], data["augment"]["flip"]) == ("grey", False)


def test_the_only_folder_in_a_folder_is_taken():
    images(Path("outer/inner"))
    made = decided("outer")
    assert made.notes == ["the only folder in outer is taken: outer/inner"]
    assert made.values["data"]["path"] == "outer/inner"


def test_parts_of_their_own_are_kept():
    images(Path("photos/train"))
    images(Path("photos/test"), each=5)
    assert decided("photos").found == "20 images (12x12, rgb) of 2 classes: cat 10, dog 10, 10 more for test"


@pytest.mark.parametrize(
    ("header", "said", "target"), [("a,Label,b", None, "Label"), ("a,b,c", None, "c"), ("a,Label,b", "a", "a")]
)
def test_the_target_is_guessed_unless_it_is_said(header: str, said: str | None, target: str):
    made = decided(table("t.csv", header, lambda k: f"{k % 2},{k % 3},{k % 4}"), target=said)
    assert made.values["data"]["target"] == target
    assert any("--target names another" in note for note in made.notes) == (said is None)


def test_columns_that_say_nothing_are_left_out_and_named():
    table(
        "people.csv",
        "id,name,age,sex,fare,y",
        lambda k: f"{k},person {k},{'' if k == 3 else k},{'fm'[k % 2]},{'NA' if k == 5 else k},{k % 2}",
    )
    made = decided("people.csv")
    assert made.values["data"]["ignore"] == ["id", "name", "age", "fare"]
    for reason in (
        "'id' is left out: it counts the rows",
        "'name' is left out: it is text with 60 values in 60 rows",
        "'age' is left out: it has empty cells, in 1 of 60 rows",
        "'fare' is left out: it has no number in 1 of 60 rows",
    ):
        assert f"column {reason}" in made.notes


def test_a_rare_class_leaves_less_to_hold_out():
    table("few.csv", "a,b,y", lambda k: f"{k},{k % 3},{'xy'[k % 2]}", rows=4)
    split = decided("few.csv").values["data"]["split"]
    assert (split["validate"], split["diagnose"], split["accept"]) == (0.1, 0.0, 0.0)


def test_classes_so_rare_that_nothing_can_be_held_out_is_said():
    table("rare.csv", "a,y", lambda k: f"{k},{f'rare{k}' if k < 6 else 'often'}", rows=60)
    made = decided("rare.csv")
    assert made.values["data"]["split"]["test"] == 0.0
    assert "no samples are held out for test and validate, for some classes have too few" in made.notes


def test_a_second_table_is_for_the_test():
    Path("data").mkdir()
    for name in ("train", "test"):
        table(f"data/{name}.csv", "a,y", lambda k: f"{k % 5},{k % 2}")
    assert decided("data").values["data"]["test_path"] == "data/test.csv"


def test_a_file_about_the_data_is_no_data():
    images(Path("pets"))
    Path("pets/README.txt").write_text("Pictures of pets.\n")
    assert recognise(Path("pets")).kind == "images"


@pytest.mark.parametrize(
    ("name", "content", "kind"),
    [
        ("a.txt", "one\tun\ntwo\tdeux\n", "pairs"),
        ("a.tsv", "x\ty\n1\t2\n3\t4\n", "table"),
        ("a.tsv", "one\tun\ntwo\tdeux\n", "pairs"),
        ("a.txt", "one\ntwo\tdeux\n", "text"),
        ("a.py", "print(1)\n", "text"),
    ],
)
def test_a_file_is_known_by_its_lines(name: str, content: str, kind: str):
    Path(name).write_text(content)
    assert recognise(Path(name)).kind == kind
    assert recognise(Path(name), "text").kind == "text"


def test_settings_go_on_top_and_say_so():
    images(Path("pets"))
    config = written("pets", "data.size=8", "train.epochs=10", "growth.initializer=random")
    assert (config.data.size, config.train.epochs, config.growth.initializer.name) == (8, 10, "random")
    assert config.growth.when.start == 2  # a fifth of the epochs
    assert re.search("size: 8 +# as given to growkit init", Path("pets.yaml").read_text())


def test_a_whole_section_drops_what_was_said_of_its_keys():
    table("t.csv", "a,y", lambda k: f"{k % 5},{k % 2}")
    written("t.csv", "model={name: mlp, hidden: [8]}")
    assert "model:  # as given to growkit init\n  name: mlp\n  hidden: [8]\n" in Path("t.yaml").read_text()


def test_broken_images_are_named_or_left_out_as_in_a_run():
    folder = images(Path("pets"))
    (folder / "cat" / "3.png").write_bytes((folder / "cat" / "3.png").read_bytes()[:60])
    message = refused("pets")
    assert "pets/cat/3.png: an image must be one that can be decoded" in message
    assert "`growkit init pets data.skip_broken=true`" in message
    result = init("pets", "data.skip_broken=true")
    assert result.exit_code == 0 and "1 of 20 images were left out: cat/3.png" in result.output


# --- what it refuses


def test_a_place_that_is_missing():
    assert "nowhere: there is no such file or folder" in refused("nowhere")


@pytest.mark.parametrize("name", ["a" * 5000, "caf\udce9"])
def test_a_place_that_cannot_be(name: str):
    assert "cannot be looked at" in (message := refused(name)) or "must be UTF-8" in message


def test_an_empty_folder_says_what_was_looked_for():
    Path("void").mkdir()
    message = refused("void")
    assert "looked for images in a folder for each class" in message and message.endswith("found an empty folder\n")


def test_a_folder_of_mixed_things_says_what_was_found():
    Path("mixed").mkdir()
    table("mixed/a.csv", "a,y", lambda k: f"{k},{k % 2}")
    Path("mixed/b.txt").write_text("text\n")
    assert "found 2: table (mixed/a.csv), text (mixed/b.txt); name one file" in refused("mixed")
    assert recognise(Path("mixed"), "table").path == Path("mixed/a.csv")


def test_images_without_classes():
    images(Path("flat"), classes=(".",))
    assert "found 10 images without folders of classes" in refused("flat")


def test_one_class():
    assert "at least two classes" in refused(str(images(Path("pets"), classes=("cat",))))


def test_parts_by_other_names():
    images(Path("photos"), classes=("Training/cat", "Training/dog", "Testing/cat"))
    assert "Testing, Training look like parts of the data" in refused("photos")


def test_a_class_without_images():
    (images(Path("pets")) / "eel").mkdir()
    assert "pets/eel: a class must have an image" in refused("pets")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a,b,y\n1,2,3\n1,2\n", "t.csv:3: a row must have 3 cells as the header has, got 2"),
        (b"a,y\ncaf\xe9,1\n", "t.csv:2: a table must be UTF-8, but byte 7 is 0xe9"),
        (b"", "t.csv:1: the first line must name every column once"),
        (b",a,y\n0,1,2\n", "pandas writes a column without a name, unless to_csv gets index=False"),
        (b"a,y\n1,5\n2,5\n3,5\n", "column 'y' has the same value in all rows"),
        (b"a,y\n1,2\n2,NA\n3,5\n", "column 'y' holds 'NA' among numbers (t.csv:3); drop such rows"),
        (b"y\n1\n2\n3\n", "a column to predict 'y' from, but it is the only one"),
        (b"a,y\n,1\n2,2\n3,3\n", "a column to predict 'y' from, but 'a' has empty cells, in 1 of 3 rows"),
        (b"a,word\n1,b\n2,c\n3,d\n", "column 'word' is text with 3 values in 3 rows, too many for classes"),
    ],
)
def test_a_table_that_cannot_be_used(content: bytes, message: str):
    Path("t.csv").write_bytes(content)
    assert message in refused("t.csv")


def test_a_target_that_is_no_column():
    table("t.csv", "height,kind", lambda k: f"{k},{'ab'[k % 2]}")
    assert "data.target must name a column, got 'knid'; did you mean 'kind'?" in refused("t.csv", "--target", "knid")


def test_a_target_where_there_is_no_table():
    Path("book.txt").write_text("text\n" * 100)
    assert "--target names a column of a table" in refused("book.txt", "--target", "y")


def test_a_text_that_is_not_utf8():
    Path("book.txt").write_bytes(b"one\ntwo\nthr\xe9e\n" * 40)
    assert "book.txt:3: a text must be UTF-8" in refused("book.txt")


def test_a_file_of_another_kind():
    Path("model.pt").write_bytes(bytes(range(256)))
    assert "model.pt: not a file that can be used" in refused("model.pt")


def test_a_file_that_is_there_is_kept_unless_forced():
    table("t.csv", "a,y", lambda k: f"{k % 5},{k % 2}")
    Path("t.yaml").write_text("mine\n")
    assert "t.yaml: is there already" in refused("t.csv")
    assert Path("t.yaml").read_text() == "mine\n"
    assert init("t.csv", "--force").exit_code == 0
    assert load_config("t.yaml").data.name == "tabular"


@pytest.mark.parametrize(
    ("out", "message"),
    [("no/t.yaml", "its folder does not exist"), ("t.json", "must name a .yaml file"), ("dir.yaml", "is a folder")],
)
def test_a_file_that_cannot_be_written(out: str, message: str):
    table("t.csv", "a,y", lambda k: f"{k % 5},{k % 2}")
    Path("dir.yaml").mkdir()
    assert message in refused("t.csv", "--out", out)


def test_a_setting_that_is_wrong_is_named():
    table("t.csv", "a,y", lambda k: f"{k % 5},{k % 2}")
    assert "override 'train.epoch=3': train.epoch: unknown setting; did you mean 'epochs'?" in " ".join(
        init("t.csv", "train.epoch=3").stderr.split()
    )


def test_an_unknown_kind():
    Path("book.txt").write_text("text\n" * 100)
    assert "--kind must be one of images, table, text, pairs, arrays" in refused("book.txt", "--kind", "sound")


# --- the page


@pytest.mark.parametrize(
    "value",
    [
        "plain",
        "a, b",
        "{x: 1}",
        "# no comment",
        "two\nlines",
        "yes",
        "1e-3",
        "it's",
        '"',
        "\u2028",
        "",
        None,
        5e-4,
        [["*"]],
    ],
)
def test_a_value_on_one_line_is_read_back(value: object, here: Path):
    from growkit.config.yaml import parse

    line = f"key: {flow({'inner': [value]})}"
    assert len(line.splitlines()) == 1
    assert parse(line).value == {"key": {"inner": [value]}}


def test_names_from_the_data_cannot_leave_their_comment():
    from growkit.config.yaml import parse

    section = Section()
    section.put("a", 1, "column 'x\ntrain: {epochs: 3}'\u2028seed: 5")
    text = page(["head\nseed: 7"], {"data": section.values}, {("data", "a"): section.comments["a"]})
    assert parse(text).value == {"data": {"a": 1}}
