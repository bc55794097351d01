"""Configuration files: values, positions, and the one line that a faulty file gets."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flatsat.errors import ConfigError, FlatSatError
from flatsat.harness.config import (
    RunFile,
    TomlDocument,
    TomlModel,
    load_lab_boards,
    load_recipes,
    load_run,
    load_toml,
    read_toml,
)
from flatsat.jobspec import MeasurePlan


class Step(TomlModel):
    use: str
    epochs: int = 1


class Recipe(TomlModel):
    workload: str
    step: tuple[Step, ...] = ()


class File(TomlModel):
    recipe: dict[str, Recipe]


def fault(tmp_path: Path, text: str | bytes, model: type[TomlModel] = File) -> ConfigError:
    """Return the error that a file gets, after checks that hold for every one."""
    path = tmp_path / "a.toml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ConfigError) as caught:
        load_toml(path, model)
    error = caught.value
    assert str(error).startswith(f"{path}:")
    assert "\n" not in str(error)
    assert error.exit_code == 2
    return error


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        (
            '[recipe.deep]\nworkload = "a"\n[[recipe.deep.step]]\nuse = "x"\n'
            '[[recipe.deep.step]]\nuse = "y"\nepoch = 4\n',
            7,
            "unknown key 'epoch' in [recipe.deep.step]; did you mean 'epochs'?",
        ),
        (
            'recipe.deep = {workload = "a", step = [\n{use = "x"},\n{use = "y", epohcs = 2}]}',
            3,
            "did you mean 'epochs'?",
        ),
        ('# c\nrecipe."a b".workloud = "x"', 2, "in [recipe.\"a b\"]; did you mean 'workload'?"),
        ("[recipe.x]\n'workload' = 3", 2, "'workload' in [recipe.x] must be text in quotes, not 3"),
        ("recipe = 4", 1, "'recipe' at the top level must be a table, not 4"),
        ("[recipe.deep]\n", 1, "missing key 'workload' in [recipe.deep]"),
        ('\n\n[recipe.d]\nworkload = "a"\nstep = 7\n', 5, "'step' in [recipe.d] must be an array"),
        ("# c\n[plan.wall]\nx = 1\n[recipe.a]", 2, "unknown key 'plan' at the top level"),
        ("recipe.a.x = 1\nrecipe.b = 2\n", 1, "unknown key 'x' in [recipe.a]"),
        ("[recipe.a]\nworkload = 'x'\n[plan.b]\n[plan]\n", 4, "unknown key 'plan'"),
        ("colour = 1\n[recipe]", 1, "unknown key 'colour' at the top level"),
    ],
)
def test_a_fault_names_line_key_table_and_nearest_name(
    tmp_path: Path, text: str, line: int, words: str
) -> None:
    error = fault(tmp_path, text)
    assert error.line == line
    assert words in str(error)


def test_a_mistyped_required_key_counts_as_one_fault(tmp_path: Path) -> None:
    assert "more" not in str(fault(tmp_path, 'recipe.d.workloud = "a"'))
    assert str(fault(tmp_path, "a = 1\nb = 2\n[recipe]")).count("(and 1 more)") == 1


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("a = 1\nb 2\n", 2),
        ('a = "open', 1),
        ("a = 1\na = 2", 2),
        ("[t]\n[t]\n", 2),
        ("a = [1,\n2\n", 2),
        ("a = 1\n\x00", 2),
    ],
)
def test_a_syntax_error_names_its_line(tmp_path: Path, text: str, line: int) -> None:
    error = fault(tmp_path, text)
    assert "not valid TOML" in str(error)
    assert error.line == line


def test_text_that_is_not_utf8_names_its_line(tmp_path: Path) -> None:
    error = fault(tmp_path, b'a = 1\nb = "\xff"\n')
    assert (error.line, "UTF-8" in str(error)) == (2, True)


def test_a_file_may_start_with_a_byte_order_mark_and_end_lines_with_crlf(tmp_path: Path) -> None:
    path = tmp_path / "a.toml"
    path.write_bytes(b'\xef\xbb\xbf[recipe.d]\r\nworkload = "a"\r\n')
    assert load_toml(path, File).recipe["d"].workload == "a"


def test_deep_nesting_is_an_error_not_a_crash(tmp_path: Path) -> None:
    path = tmp_path / "a.toml"
    path.write_text("a = " + "[" * 100_000)
    with pytest.raises(ConfigError):
        read_toml(path)


def test_a_missing_file_names_its_neighbour(tmp_path: Path) -> None:
    (tmp_path / "recipes.toml").write_text("")
    with pytest.raises(ConfigError, match=r"no such file.*did you mean .*recipes\.toml"):
        read_toml(tmp_path / "recipe.toml")
    with pytest.raises(ConfigError, match=r"no such file.*no folder"):
        read_toml(tmp_path / "nowhere" / "recipe.toml")
    with pytest.raises(ConfigError, match="is a folder"):
        read_toml(tmp_path)
    with pytest.raises(ConfigError, match="can't be read"):
        read_toml(tmp_path / "recipes.toml" / "x.toml")


# Positions: any file made of tables, arrays of tables, inline tables, dotted and quoted keys.

BARE = st.text("abcxyz09_-", min_size=1, max_size=4)
QUOTED = st.text("ab .\"'#=]ü\\", min_size=1, max_size=4)
LEAF = st.sampled_from(["1", "true", '"t = 1"', "'#'", "[1, 2]", "1979-05-27", '"""a\nb"""'])


def shown(part: str, *, quoted: bool) -> str:
    if not quoted:
        return part
    return '"' + part.replace("\\", "\\\\").replace('"', '\\"') + '"'


@st.composite
def documents(draw: st.DrawFn) -> tuple[str, dict[tuple[str | int, ...], int]]:
    """Draw a TOML text, and the line of each table and key."""
    lines: list[str] = []
    where: dict[tuple[str | int, ...], int] = {}
    counts: dict[tuple[str, ...], int] = {}
    taken: set[tuple[str, ...]] = set()

    def key(used: set[str]) -> tuple[str, str]:
        quoted = draw(st.booleans())
        part = draw((QUOTED if quoted else BARE).filter(lambda p: p not in used))
        used.add(part)
        return part, shown(part, quoted=quoted)

    def pairs(table: tuple[str | int, ...]) -> None:
        used: set[str] = set()
        for _ in range(draw(st.integers(0, 3))):
            part, text = key(used)
            path = (*table, part)
            form = draw(st.sampled_from(["leaf", "dotted", "inline", "array"]))
            line = len("\n".join(lines).split("\n")) + 1 if lines else 1
            if form == "dotted":
                inner, inner_text = key(set())
                lines.append(f"{text} . {inner_text} = {draw(LEAF)}  # x = 1")
                where[path] = where[(*path, inner)] = line
            elif form == "inline":
                inner, inner_text = key(set())
                lines.append(f"{text} = {{ {inner_text} = 1 }}")
                where[path] = where[(*path, inner)] = line
            elif form == "array":
                lines.append(f"{text} = [\n  {{ a = 1 }}, # c\n  2,\n]")
                where[path] = line
                where[(*path, 0)] = where[(*path, 0, "a")] = line + 1
                where[(*path, 1)] = line + 2
            else:
                lines.append(f"{text} = {draw(LEAF)}")
                where[path] = line

    pairs(())
    roots: set[str] = {str(path[0]) for path in where}
    for _ in range(draw(st.integers(0, 4))):
        name, text = key(roots)
        roots.discard(name)
        array = draw(st.booleans()) if (name,) not in taken else (name,) in counts
        if (name,) in taken and not array:
            continue
        if any(path[0] == name for path in where) and (name,) not in counts:
            continue
        taken.add((name,))
        line = len("\n".join(lines).split("\n")) + 1 if lines else 1
        if not array and draw(st.booleans()):
            inner, inner_text = key(set())
            lines.append(f"[{text} . {inner_text}]")
            where[(name,)] = where[(name, inner)] = line
            pairs((name, inner))
        elif array:
            index = counts[(name,)] = counts.get((name,), -1) + 1
            lines.append(f"[[ {text} ]]")
            where[(name, index)] = line
            pairs((name, index))
        else:
            lines.append(f"[{text}]")
            where[(name,)] = line
            pairs((name,))
    return "\n".join(lines), where


@given(documents())
def test_every_key_is_found_on_its_line(
    drawn: tuple[str, dict[tuple[str | int, ...], int]],
) -> None:
    text, where = drawn
    values = tomllib.loads(text)
    document = TomlDocument(Path("a.toml"), text, values)
    for path, line in where.items():
        found: object = values
        for part in path:
            found = found[part]  # type: ignore[index]
        assert document.line(path) == line, (path, text)
        # What isn't there is told by the table around it.
        assert document.line((*path, "not there")) == line


# Run files

RUN = '[run]\nname = "nightly"\n'
RECIPE = '[recipe.dense]\nworkload = "mnist-mini/lenet5"\n'


def write(tmp_path: Path, text: str, name: str = "run.toml") -> Path:
    path = tmp_path / name
    path.write_text(text)
    return path


def test_a_run_file_has_the_defaults_of_the_measure_plan(tmp_path: Path) -> None:
    config = load_run(write(tmp_path, RUN + RECIPE))
    assert config.file.plan.wall.measure_plan() == MeasurePlan()
    assert config.file.matrix.boards == ("host",)
    assert [spec.name for spec in config.recipes] == ["dense"]
    stored = config.file.model_dump(mode="json", by_alias=True)
    assert RunFile.model_validate(stored) == config.file


def test_included_recipes_come_first_and_the_matrix_chooses(tmp_path: Path) -> None:
    write(tmp_path, RECIPE.replace("dense", "other"), "recipes.toml")
    head = '[run]\nname = "n"\ninclude = ["recipes.toml"]\n'
    both = load_run(write(tmp_path, head + RECIPE))
    assert [spec.name for spec in both.recipes] == ["other", "dense"]
    chosen = load_run(write(tmp_path, head + '[matrix]\nrecipes = ["dense"]\n' + RECIPE))
    assert [spec.name for spec in chosen.recipes] == ["dense"]
    assert list(load_recipes(write(tmp_path, head + RECIPE))) == ["other", "dense"]


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ('[run]\nname = "a b"', 2, "may hold letters"),
        ('[run]\nname = "a"\nreuse = "weekly"', 3, 'use "never", "always" or "within 7d"'),
        ('[run]\nname = "a"\nreuse = "within 0d"', 3, "is no rule"),
        (RUN + '[matrix]\njobs = [\n"latency",\n"accurac"]', 6, "did you mean 'accuracy'?"),
        (RUN + "[plan.wall]\nproceses = 3", 4, "did you mean 'processes'?"),
        (RUN + "[plan.wall]\nprocesses = 0", 4, "greater than or equal to 1, not 0"),
        (RUN + "[plan.wall]\nmin_s = inf", 4, "finite"),
        ('[run]\nname = "a"\ninclude = [1, "x"]', 3, "'include' in [run] must be text"),
        (RUN + "[matrix]\nboards = []", 4, "needs at least one entry"),
        (RUN + "[matrix]\nthreads = [1, 1]", 4, "names something twice"),
        (RUN + "[gate]\nlatency = { slower_then = 0.1 }", 4, "did you mean 'slower_than'?"),
        ("schema = 2\n" + RUN, 1, "unknown value 2 of 'schema'"),
        (RUN + '[matrix]\nrecipes = ["dens"]\n' + RECIPE, 4, "did you mean 'dense'?"),
        (RUN, 1, "nothing to measure"),
        ('[run]\nname = "a"\nrequired = ["em1"]\n' + RECIPE, 3, "unknown board 'em1'"),
        ('[run]\nname = "a"\ninclude = ["no.toml"]', 3, "no such file"),
        (RUN + '[recipe."a b"]\nworkload = "x"', 3, "may hold letters"),
        (RUN + '[recipe.d]\nworkload = "mnistmini/lenet5"', 4, "did you mean 'mnist-mini'?"),
        (
            RUN + RECIPE + '[[recipe.dense.step]]\nuse = "fine-tune"\nepoch = 3',
            7,
            "unknown key 'epoch' in [recipe.dense.step]; did you mean 'epochs'?",
        ),
        (
            RUN + RECIPE + '[[recipe.dense.step]]\nuse = "fine-tun"',
            6,
            "did you mean 'fine-tune'?",
        ),
        (
            RUN + RECIPE + '[[recipe.dense.step]]\nuse = "linear-quantise"\n'
            '[[recipe.dense.step]]\nuse = "fine-tune"',
            8,
            "can't follow",
        ),
    ],
)
def test_a_run_file_that_cannot_run_says_where_and_why(
    tmp_path: Path, text: str, line: int, words: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        load_run(write(tmp_path, text))
    assert caught.value.line == line
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_recipe_of_two_files_is_refused(tmp_path: Path) -> None:
    write(tmp_path, RECIPE, "recipes.toml")
    head = '[run]\nname = "n"\ninclude = ["recipes.toml"]\n'
    with pytest.raises(ConfigError, match="included file as well"):
        load_run(write(tmp_path, head + RECIPE))


def test_a_fault_in_an_included_file_names_that_file(tmp_path: Path) -> None:
    write(tmp_path, '[recipe.d]\nworkload = "nothing"\n', "recipes.toml")
    with pytest.raises(ConfigError, match=r"recipes\.toml:2: "):
        load_run(write(tmp_path, '[run]\nname = "n"\ninclude = ["recipes.toml"]\n'))


# Lab files


def test_a_lab_without_a_file_has_no_boards_of_its_own(tmp_path: Path) -> None:
    assert load_lab_boards(tmp_path) == {}


def test_boards_of_a_lab_keep_their_settings(tmp_path: Path) -> None:
    write(tmp_path, '[board.bench]\nkind = "host"\n', "lab.toml")
    assert load_lab_boards(tmp_path) == {"bench": {"kind": "host"}}


EM1 = """
[board.em1]
kind = "linux"
links = [
  { via = "ssh", host = "em1.lab", user = "pi", key = ["~/.ssh/em1"], known_hosts = "lab_hosts" },
  { via = "serial", port = "/dev/ttyUSB0", baud = 921600, user = "pi" },
]
provision_via = "ssh"
store = "/var/lib/flatsat"
"""


def test_a_board_has_a_list_of_links_in_either_form_of_tables(tmp_path: Path) -> None:
    write(tmp_path, EM1, "lab.toml")
    (first, second) = load_lab_boards(tmp_path)["em1"]["links"]  # type: ignore[misc]
    assert (first["key"], second["baud"]) == (["~/.ssh/em1"], 921600)
    blocks = '[board.em1]\nkind = "linux"\n[[board.em1.links]]\nvia = "serial"\nport = "/dev/x"\n'
    write(tmp_path, blocks, "lab.toml")
    links = [{"via": "serial", "port": "/dev/x"}]
    assert load_lab_boards(tmp_path) == {"em1": {"kind": "linux", "links": links}}


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ('[board.em1]\nkind = "linux"\nstore = "/x"\n', 2, "has no links"),
        (EM1.replace("baud", "boud"), 4, "links[1]: no setting is called 'boud'"),
        (EM1.replace("provision_via", "provison_via"), 8, "did you mean 'provision_via'?"),
        (EM1 + 'link = "uart"\n', 10, "link can't be 'uart'"),
        (EM1 + "python = 3\n", 10, "python must be a str"),
        ('[board.em1]\nkind = "hots"\n', 2, "did you mean 'host'?"),
        ('[board.em1]\nkind = "raspberry-pi"\n', 2, "host"),
        ("[board.em1]\n", 1, "missing key 'kind'"),
        ('[board.em1]\nkind = "host"\ncolour = 1\n', 3, "colour"),
        ('[boards.em1]\nkind = "host"\n', 1, "did you mean 'board'?"),
    ],
)
def test_a_board_that_cannot_be_made_says_where_and_why(
    tmp_path: Path, text: str, line: int, words: str
) -> None:
    write(tmp_path, text, "lab.toml")
    with pytest.raises(FlatSatError) as caught:
        load_lab_boards(tmp_path)
    assert isinstance(caught.value, ConfigError)
    assert (caught.value.line, words in str(caught.value)) == (line, True)
