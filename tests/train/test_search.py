"""The search loop: resumed runs, device counts, NaN, finished searches."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from comp_jax import errors
from comp_jax.models import families
from comp_jax.train import (
  checkpoints,
  finite,
  fit,
  metrics,
  preemption,
  search,
  sharding,
)
from tests.models import model_kit
from tests.train import kit

PLAN = search.Plan(warmup_stages=1, max_stages=4)
CLEAN = jnp.ones((kit.STEPS, kit.BATCH))


def make_stage():
  """The kit's, with a loss that a batch can poison; compiled once for all."""
  stage = kit.make_stage(ratio=0.3)
  clean = stage.objective.loss

  def loss(output, batch):
    return clean(output, batch) * batch.get("poison", CLEAN[0])[0]

  objective = dataclasses.replace(stage.objective, loss=loss)
  return dataclasses.replace(stage, objective=objective)


def batches_of(start):
  for batch in kit.batches(start):
    yield {**batch, "poison": CLEAN}


class Watch(preemption.Watch):
  """Asks to stop once `after` stages were seen."""

  def __init__(self, after: int = 10**6):
    super().__init__()
    self.left = after

  def requested(self) -> bool:
    self.left -= 1
    return self.left <= 0


def run(
  folder,
  *,
  devices=1,
  rules=sharding.REPLICATED,
  watch=None,
  stage=None,
  params=None,
  batches=None,
  plan=PLAN,
):
  stage = make_stage() if stage is None else stage
  params = families.initial_params(kit.spec(), 0) if params is None else params
  folder.mkdir(parents=True, exist_ok=True)
  with checkpoints.Checkpoints(folder / "checkpoints") as saved:
    return search.search(
      stage,
      lambda p, s: stage.initial(p, s, 0),
      params,
      plan,
      batches_of if batches is None else batches,
      kit.select(),
      mesh=sharding.make_mesh(jax.devices()[:devices]),
      rules=rules,
      checkpoints=saved,
      writer=lambda first: metrics.MetricWriter(folder, first),
      watch=watch or Watch(),
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
  """A search that keeps its last stage alone."""
  folder = tmp_path_factory.mktemp("whole")
  found = run(folder, plan=dataclasses.replace(PLAN, save_every=100))
  assert kept(folder) == found.stages == PLAN.total
  return found


def kept(folder):
  """The stage that a run which was stopped after its search begins with."""
  with checkpoints.Checkpoints(folder / "checkpoints") as saved:
    return saved.latest()


def without_clock(history):
  return [{k: v for k, v in row.items() if k != "seconds"} for row in history]


# Whole runs, killed, resume each time (test_kill.py).
@pytest.mark.slow
def test_an_interrupted_search_ends_with_the_same_bits(whole, tmp_path):
  with pytest.raises(fit.Interrupted):
    run(tmp_path, watch=Watch(2))
  with pytest.raises(fit.Interrupted):
    run(tmp_path, watch=Watch(2))
  resumed = run(tmp_path)
  kit.same_bits(resumed.state, whole.state)
  assert without_clock(resumed.history) == without_clock(whole.history)
  assert resumed.probe == whole.probe
  lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
  assert [json.loads(line)["step"] for line in lines] == list(range(5))


def test_the_last_stage_is_kept_though_it_comes_early(tmp_path, monkeypatch):
  monkeypatch.setattr(search, "ARRIVED", 0.25)
  found = run(tmp_path, plan=dataclasses.replace(PLAN, save_every=100))
  assert kept(tmp_path) == found.stages < PLAN.total


def test_the_whole_search_compiles_its_stage_once(whole):
  assert whole.compilations == 1
  assert whole.stages == 5


def split(found):
  """Whether a weight lies in parts on the devices."""
  kernel = found.state.params["vision"]["patch_embed"]["kernel"]
  return kernel.sharding.shard_shape(kernel.shape) != kernel.shape


def same_choices(found, whole):
  """Asserts equal modes, units and tokens, and weights that are close."""
  assert [row["mode"] for row in found.history] == [
    row["mode"] for row in whole.history
  ]
  jax.tree.map(
    np.testing.assert_array_equal, found.state.masks, whole.state.masks
  )
  jax.tree.map(
    np.testing.assert_array_equal, found.state.counts, whole.state.counts
  )
  # Where a gradient is next to nothing Adam takes a whole step either way.
  away = jax.tree.map(
    lambda a, b: jnp.abs(jnp.asarray(a) - jnp.asarray(b)).ravel(),
    jax.device_get(found.state.params),
    jax.device_get(whole.state.params),
  )
  away = jnp.concatenate(jax.tree.leaves(away))
  assert jnp.mean(away) < 2e-6


def warned(monkeypatch):
  """A random model has nothing to lose: so harm is told at once."""
  for bound in ("HARM", "ARRIVED", "SHORT"):
    monkeypatch.setattr(search, bound, -1.0)


def same_warnings(found, said):
  """Asserts that both were told once, while it ran and in its result."""
  assert said.count("learning_rate may be too high") == 1
  assert said.count("of the dense MACs above its target") == 1
  assert [warning in said for warning in found.warnings] == [True, True]
  assert "raise config.prune.max_stages" in found.warnings[1]


def test_batches_that_come_in_parts_change_no_choice(
  whole, tmp_path, monkeypatch, capsys
):
  monkeypatch.setattr(sharding, "_SMALL", 0)
  warned(monkeypatch)

  def parts(start):
    first, done = divmod(start, kit.STEPS)
    for batches in batches_of(first):
      for step in range(done, kit.STEPS):
        yield {k: v[step : step + 1] for k, v in batches.items()}
      done = 0

  options = {
    "devices": 4,
    "rules": sharding.FULLY_SHARDED,
    "batches": parts,
    "plan": dataclasses.replace(PLAN, parts=kit.STEPS),
  }
  with pytest.raises(fit.Interrupted):
    run(tmp_path, watch=Watch(2), **options)
  found = run(tmp_path, **options)
  same_warnings(found, capsys.readouterr().out)
  # One program for all parts of all stages.
  assert found.compilations == whole.compilations == 1
  assert split(found)
  same_choices(found, whole)
  for row, other in zip(found.history, whole.history, strict=True):
    assert row["loss"] == pytest.approx(other["loss"], abs=1e-5)
    assert row["metric"] == pytest.approx(other["metric"], abs=1e-4)


def test_paired_costs_need_all_batches_of_a_stage(tmp_path):
  plan = dataclasses.replace(PLAN, parts=2)
  with pytest.raises(ValueError, match="all batches of a stage at once"):
    run(tmp_path, stage=kit.make_stage(cost="paired"), plan=plan)


# In parts (above) it runs sharded each time, as does a step (test_sharding.py).
@pytest.mark.parametrize(
  ("devices", "rules"),
  [(8, sharding.REPLICATED)]
  + model_kit.slow_cases((2, sharding.REPLICATED), (4, sharding.FULLY_SHARDED)),
)
def test_neither_devices_nor_shardings_change_a_choice(
  whole, tmp_path, capsys, monkeypatch, devices, rules
):
  monkeypatch.setattr(sharding, "_SMALL", 0)  # Or nothing here were split.
  warned(monkeypatch)
  other = run(tmp_path, devices=devices, rules=rules)
  assert split(other) == (rules is sharding.FULLY_SHARDED)
  same_choices(other, whole)
  first, same = other.history[0], whole.history[0]
  assert first["loss"] == pytest.approx(same["loss"], abs=1e-5)
  same_warnings(other, capsys.readouterr().out)


def test_nan_stops_at_its_step_and_keeps_the_last_checkpoint(tmp_path):
  def poisoned(start):
    for index, batch in enumerate(kit.batches(start), start):
      # The second step of the third stage.
      factor = CLEAN.at[1].set(jnp.nan) if index == 2 else CLEAN
      yield {**batch, "poison": factor}

  with pytest.raises(errors.UserError, match="not finite at step 5"):
    run(tmp_path, batches=poisoned)
  assert kept(tmp_path) == 2


def test_nan_of_the_last_update_is_not_saved(tmp_path):
  """Every loss of its stage is finite: it comes after them."""
  at_five = lambda step: jnp.where(step == 5, jnp.inf, 1e-3)  # noqa: E731
  optimizer = fit.adamw(at_five, 0.05, 1.0)
  stage = dataclasses.replace(make_stage(), optimizer=optimizer)
  with pytest.raises(finite.NotFinite, match="not finite after step 5"):
    run(tmp_path, stage=stage)
  assert kept(tmp_path) == 2


def test_a_checkpoint_with_nan_is_named(tmp_path):
  params = families.initial_params(kit.spec(), 0)
  params["vision"]["cls_token"] = params["vision"]["cls_token"] * jnp.nan
  with pytest.raises(errors.UserError, match="not finite"):
    run(tmp_path, params=params)


@pytest.mark.parametrize(
  ("mode", "fraction", "told"),
  [
    ("vision_tokens", 0.301, ""),
    ("vision_tokens", 0.315, ""),
    ("text_tokens", 0.6, "ended 30.0% of the dense MACs above"),
    ("none", 0.6, "no mode could remove more"),
    ("none", 0.301, ""),
  ],
)
def test_a_search_whose_stages_were_too_few_is_told(mode, fraction, told):
  history = [{"mode": "warmup"}, {"mode": mode, "macs_fraction": fraction}]
  said = search.short(history, 0.3)
  assert told in said and bool(said) == bool(told)
  # What it did not use goes to fine-tuning.
  assert search.ran(history) == (1 if mode == "none" else 2)


@pytest.mark.parametrize(
  ("metrics_", "told"),
  [
    ((-1.87, -1.9, -1.91), ""),
    ((-1.87, -1.9, -2.31), "from -1.87 to -2.31"),
    ((0.5, 0.55, 0.44), "from 0.5 to 0.44"),
    ((-1.87, -2.31, -1.8), ""),
  ],
)
def test_a_warm_up_that_harms_is_told(metrics_, told):
  before, middle, after = metrics_
  warmup = [
    {"mode": "warmup", "metric_before": before, "metric": middle},
    {"mode": "warmup", "metric_before": middle, "metric": after},
  ]
  pruned = {"mode": "all", "metric_before": after, "metric": 1e3 * before}
  said = search.harmful([*warmup, pruned])
  assert told in said and bool(said) == bool(told)
