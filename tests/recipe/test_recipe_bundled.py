"""The bundled recipes, and the commands that list, show and copy them."""

import json
from pathlib import Path

import jsonschema
import pytest
from typer.testing import CliRunner

from rmtrain.cli.recipes import app
from rmtrain.errors import RecipeError
from rmtrain.recipe import bundled
from rmtrain.recipe.load import json_schema, load_recipe

CONFIGS = Path(__file__).parents[2] / "configs"
NAMES = sorted(path.stem for path in CONFIGS.glob("*.yaml"))


def test_the_repositorys_recipes_are_the_shipped_ones() -> None:
    assert [recipe.name for recipe in bundled.bundled_recipes()] == NAMES
    assert {"quickstart", "smollm2_135m", "mistral_lora", "mistral_qlora", "mistral_full", "baseline_rlhflow"} <= {
        *NAMES
    }


@pytest.mark.parametrize("name", NAMES)
def test_a_shipped_recipe_loads_and_says_what_it_needs(name: str) -> None:
    path = CONFIGS / f"{name}.yaml"
    loaded = load_recipe(path)
    assert loaded.name == name
    lines = path.read_text(encoding="utf-8").splitlines()
    assert lines[0] == "# yaml-language-server: $schema=schema.json"
    header = "\n".join(line for line in lines if line.startswith("#"))
    assert "\n# Needs: " in header
    assert "\n# Launch: rmtrain " in header
    assert max(map(len, lines)) <= 120
    assert 10 < len(bundled.find(name).purpose) < 110
    jsonschema.validate(loaded.recipe.model_dump(mode="json", exclude_unset=True), json_schema())


def test_the_main_recipe_is_what_its_users_were_promised() -> None:
    recipe = load_recipe(CONFIGS / "mistral_lora.yaml").recipe
    assert recipe.model.name == "mistralai/Mistral-7B-Instruct-v0.2"
    assert recipe.data.source == "JayHyeon/UFB_xai"
    assert (recipe.data.holdout.validation, recipe.data.holdout.test) == (10_000, 13_967)
    assert recipe.lora is not None
    assert (recipe.lora.rank, recipe.lora.alpha) == (32, 64)
    assert (recipe.optim.learning_rate, recipe.optim.global_batch_size, recipe.optim.epochs) == (5e-5, 128, 1)
    assert recipe.loss.centering == 0.01


def test_full_fine_tuning_recipes_have_no_adapters() -> None:
    for name in "mistral_full", "baseline_rlhflow":
        assert load_recipe(CONFIGS / f"{name}.yaml").recipe.lora is None


# copy


def test_a_copy_loads_and_points_to_no_schema_that_is_not_there(tmp_path: Path) -> None:
    target = bundled.copy("mistral_lora", tmp_path)
    assert target == tmp_path / "mistral_lora.yaml"
    assert "schema.json" not in target.read_text(encoding="utf-8")
    assert load_recipe(target).recipe == load_recipe(CONFIGS / "mistral_lora.yaml").recipe


def test_a_copy_goes_to_the_working_folder_and_makes_parents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert bundled.copy("quickstart") == Path("quickstart.yaml")
    assert bundled.copy("quickstart", "a/b/c.yaml").is_file()


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    target = tmp_path / "quickstart.yaml"
    target.write_text("mine")
    dangling = tmp_path / "link.yaml"
    dangling.symlink_to(tmp_path / "nowhere.yaml")
    for destination in tmp_path, target, dangling:
        with pytest.raises(RecipeError, match="exists and was not changed") as raised:
            bundled.copy("quickstart", destination)
        assert raised.value.exit_code == 2
    assert target.read_text() == "mine"
    assert not (tmp_path / "nowhere.yaml").exists()


def test_a_copy_to_where_no_file_can_be_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RecipeError, match=r"can't be written|exists"):
        bundled.copy("quickstart", tmp_path / "file" / "x.yaml")


@pytest.mark.parametrize("name", ["nope", "../quickstart", "", "schema"])
def test_an_unknown_name_lists_the_others(name: str) -> None:
    with pytest.raises(RecipeError, match="no bundled recipe has this name") as raised:
        bundled.find(name)
    assert "mistral_lora" in raised.value.hint


# commands


def test_list_names_every_recipe_and_its_purpose() -> None:
    result = CliRunner().invoke(app, ["list"], env={"COLUMNS": "200"})
    assert result.exit_code == 0
    for recipe in bundled.bundled_recipes():
        assert any(recipe.name in line and recipe.purpose in line for line in result.stdout.splitlines())


def test_show_prints_the_file_and_schema_the_schema() -> None:
    assert CliRunner().invoke(app, ["show", "quickstart"]).stdout == (CONFIGS / "quickstart.yaml").read_text("utf-8")
    assert json.loads(CliRunner().invoke(app, ["schema"]).stdout) == json_schema()


def test_copy_says_what_to_do_next(tmp_path: Path) -> None:
    target = tmp_path / "mine.yaml"
    result = CliRunner().invoke(app, ["copy", "quickstart", str(target)])
    assert result.stdout == f"wrote {target}\nnext: rmtrain train {target}\n"
    again = CliRunner().invoke(app, ["copy", "quickstart", str(target)])
    assert isinstance(again.exception, RecipeError)
    assert again.exception.exit_code == 2
