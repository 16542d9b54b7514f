"""What all trials share, wherever it was said."""

from pathlib import Path

from resnet_ops.recipes.reading import configure
from resnet_ops.study.config import StudyConfig
from resnet_ops.tuning.config import TuneConfig


def test_where_trials_run_is_an_option_of_the_search() -> None:
    config = TuneConfig.of(device="cpu", wait=5, given={"epochs": 3})
    assert config.train_options == {"device": "cpu", "wait": 5.0, "epochs": 3}


def test_searches_that_were_begun_before_have_it_among_the_options_of_train() -> None:
    config = TuneConfig.model_validate_json('{"depths": "8", "given": {"device": "cpu", "max_failures": 1, "lr": 0.1}}')
    assert config.train_options == {"device": "cpu", "max_failures": 1, "lr": 0.1}
    assert config.model_copy(update={"max_failures": 2}).train_options["max_failures"] == 2


def test_a_recipe_says_where_trials_run_unless_the_search_does(tmp_path: Path) -> None:
    recipe = tmp_path / "mine.toml"
    recipe.write_text('device = "cpu"\nwait = 7\n')
    config = TuneConfig.of(wait=5, given={"recipe": str(recipe)})
    base = configure(**config.train_options)
    assert (base.device, base.wait) == ("cpu", 5)


def test_what_may_change_is_said_by_the_fields() -> None:
    where = {"device", "cluster", "wait", "max_failures", "data_root", "cache_dir", "track"}
    for config in (TuneConfig, StudyConfig):
        assert where | {"nodes"} <= config.changeable_on_resume()
        assert not {"seeds", "depths", "lr", "epochs", "seed", "cpus_per_trial"} & config.changeable_on_resume()
