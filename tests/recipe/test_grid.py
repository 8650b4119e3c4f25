"""KEY=A,B,C as the settings of a grid."""

from pathlib import Path

import pytest

from rmtrain.errors import InputError, RecipeError
from rmtrain.recipe.grid import grid, shortened


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text("model: {name: base}\ndata: {source: demo}\noptim: {epochs: 2}\nrun: {seed: 4}\n")
    return path


def test_a_grid_has_every_combination_and_fixed_keys_in_all(recipe: Path) -> None:
    settings = grid(recipe, ["optim.learning_rate=1e-4,1e-3", "optim.betas=[0.9,0.99],[0.9,0.999]", "data.min_gap=0.5"])
    assert [setting.number for setting in settings] == [1, 2, 3, 4]
    assert settings[1].label == "optim.learning_rate=1e-4, optim.betas=[0.9,0.999]"
    values = [(s.loaded.recipe.optim.learning_rate, s.loaded.recipe.optim.betas[1]) for s in settings]
    assert values == [(1e-4, 0.99), (1e-4, 0.999), (1e-3, 0.99), (1e-3, 0.999)]
    assert {setting.loaded.recipe.data.min_gap for setting in settings} == {0.5}
    assert settings[0].with_seed(2).run.seed == 6


def test_a_comma_in_quotes_or_brackets_belongs_to_the_value(recipe: Path) -> None:
    (only,) = grid(recipe, ['data.source="a,b.jsonl"'])
    assert only.loaded.recipe.data.source == "a,b.jsonl"
    assert only.label == "the recipe"
    two = grid(recipe, ["data.source={train: a, validation: b},{train: c, validation: b}"])
    assert [setting.loaded.recipe.data.source for setting in two] == [
        {"train": "a", "validation": "b"},
        {"train": "c", "validation": "b"},
    ]


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("optim.learning_rate=1e-4,,1e-3", "a value is empty"),
        ("optim.learning_rate=1e-4,1.0e-4", "same setting"),
        ("run.seed=1,2", "--seeds"),
        (f"run.save_every={','.join(map(str, range(1, 1200)))}", "more than 1,000"),
    ],
)
def test_what_is_no_grid_is_refused(recipe: Path, argument: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        grid(recipe, [argument])


def test_a_fault_of_one_setting_is_the_recipes_own_error(recipe: Path) -> None:
    with pytest.raises(RecipeError, match="learning_rate"):
        grid(recipe, ["optim.learning_rate=1e-4,fast"])


def test_a_shorter_setting_has_a_share_of_the_steps_or_of_the_epochs(recipe: Path) -> None:
    (by_epochs,) = grid(recipe, [])
    assert shortened(by_epochs, 0.25).loaded.recipe.optim.epochs == 0.5
    (by_steps,) = grid(recipe, ["optim.max_steps=10"])
    short = shortened(by_steps, 0.25)
    assert (short.loaded.recipe.optim.max_steps, short.label) == (2, by_steps.label)
