"""What all experiments share; each config changes what it must."""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
  """A config with every field that train.py and prune.py read."""
  c = ml_collections.ConfigDict()
  c.name = ""
  # Fraction of the dense MACs to remove, in [0, 1).
  c.ratio = 0.7
  c.seed = 0
  # Folder of the dense model (train.py's output).
  c.checkpoint = ""

  c.data = ml_collections.ConfigDict()
  c.data.name = ""
  # Folder of the source files; empty for COMP_JAX_DATA.
  c.data.dir = ""
  # Tokens of a text, longer ones are cut.
  c.data.text_length = 32
  # Splits that are trained on, one after the other in an epoch's numbering.
  c.data.train_on = ("train",)
  # Splits that are reported; `select` alone is ever chosen on.
  c.data.report_splits = ("select",)
  c.data.augment = ml_collections.ConfigDict()
  c.data.augment.crop_scale = (0.5, 1.0)
  c.data.augment.flip = 0.5
  c.data.augment.jitter = 0.0
  c.data.augment.word_dropout = 0.0
  # Random operations of BLIP's ten on each picture.
  c.data.augment.operations = 0
  # Probability that a pair of pictures changes places, and left and right in
  # its text with it.
  c.data.augment.swap = 0.0

  c.task = ml_collections.ConfigDict()
  # Features that momentum contrast remembers (BLIP's retrieval; CLIP with a
  # queue above 0), a whole number of training batches.
  c.task.queue = 0
  c.task.momentum = 0.995
  # Weight of the twins' similarities, and steps over which it rises from 0.
  c.task.distill = 0.4
  c.task.ramp = 0
  # Candidates of a query that BLIP's matching head judges; 0 for none.
  c.task.rerank = 128
  # Different answers to a question that are trained on, and their tokens.
  c.task.answers = 10
  c.task.answer_length = 10
  # Most frequent answers of train of which the likeliest is taken in
  # evaluation; 0 writes an answer freely.
  c.task.rank = 0

  c.model = ml_collections.ConfigDict()
  # Empty prunes whatever model the checkpoint holds.
  c.model.preset = ""
  # Pixels; a multiple of the preset's patch size.
  c.model.image_size = 64
  # Start train.py from the pretrained packages of the preset.
  c.model.pretrained = False
  # What an attention unit is: head or channel.
  c.model.granularity = "head"
  c.model.dtype = "float32"
  c.model.remat = False
  # Layers per step of the layer scan.
  c.model.unroll = 1
  # Floors of pruning, per layer.
  c.model.min_heads = 1
  c.model.min_neurons = 32

  c.recipe = ml_collections.ConfigDict()
  c.recipe.name = "comp"
  # taylor or wanda: how units are scored by CoMP, its ablations and controls
  # and simple joint pruning. Other baselines have a score of their own.
  c.recipe.estimator = "taylor"
  # Fields of recipes.recipe.Recipe that replace the recipe's own.
  c.recipe.score = ml_collections.config_dict.placeholder(str)
  c.recipe.cip = ml_collections.config_dict.placeholder(bool)
  c.recipe.cit = ml_collections.config_dict.placeholder(bool)
  c.recipe.reduce = ml_collections.config_dict.placeholder(str)
  c.recipe.standardise = ml_collections.config_dict.placeholder(str)
  c.recipe.rule = ml_collections.config_dict.placeholder(str)
  c.recipe.combine = ml_collections.config_dict.placeholder(str)
  c.recipe.schedule = ml_collections.config_dict.placeholder(str)
  c.recipe.prunes = ml_collections.config_dict.placeholder(str)
  c.recipe.accumulate = ml_collections.config_dict.placeholder(str)
  c.recipe.fade = ml_collections.config_dict.placeholder(str)
  c.recipe.unit_cost = ml_collections.config_dict.placeholder(str)
  # Fields of core.mps.Options.
  c.recipe.strategy = ml_collections.ConfigDict()
  c.recipe.strategy.explore = ml_collections.config_dict.placeholder(float)
  c.recipe.strategy.temperature = ml_collections.config_dict.placeholder(float)
  c.recipe.strategy.history = ml_collections.config_dict.placeholder(float)
  c.recipe.strategy.max_interval = ml_collections.config_dict.placeholder(int)
  c.recipe.strategy.explore_within = ml_collections.config_dict.placeholder(
    float
  )
  c.recipe.strategy.scarcity = ml_collections.config_dict.placeholder(float)
  c.recipe.strategy.cost_aware = ml_collections.config_dict.placeholder(bool)
  c.recipe.strategy.cold_start = ml_collections.config_dict.placeholder(str)

  c.prune = ml_collections.ConfigDict()
  # Modes that may prune; empty for all that the model has.
  c.prune.modes = ()
  # The distance to the target is cut into this many stages.
  c.prune.num_stages = 20
  c.prune.max_stages = 40
  c.prune.warmup_stages = 1
  # A mode whose step would remove less than this share of a stage's MACs rests
  # while others can do more.
  c.prune.least_step = 0.1
  # Arrive within max_stages: modes rest whose step would leave more than the
  # later stages can remove, and where the largest steps are not enough, they
  # grow. Else a search may end above its target, and the rest goes at once and
  # untrained (docs/results/flickr8k_retrieval.md).
  c.prune.keep_pace = True
  # Training steps of a stage.
  c.prune.stage_steps = 20
  # ... whose batches lie on the devices at once; 0: all of a stage's.
  c.prune.chunk = 0
  c.prune.batch_size = 64
  # Parts of a batch whose gradients are summed.
  c.prune.microbatches = 1
  c.prune.learning_rate = 1e-4
  c.prune.weight_decay = 0.05
  # Global norm of the gradients; 0 clips none.
  c.prune.clip = 1.0
  # What decays: matrices, or all (norms, biases and scales too).
  c.prune.decay = "matrices"
  # Examples of `select` that MPS validates on.
  c.prune.validation = 256
  c.prune.validation_chunk = 128
  # ... of which thresholds are bisected on this many.
  c.prune.calibration = 128
  # loss, or what the task has beside it: recall (mean of t2i_r10 and i2t_r10),
  # accuracy.
  c.prune.metric = "loss"
  # Cost that the strategy learns from: eq8, immediate (before the stage's
  # training) or paired (against the same training without the stage's cut).
  c.prune.cost = "eq8"
  c.prune.save_every = 1

  c.finetune = ml_collections.ConfigDict()
  # On top of the steps that the search left of its max_stages.
  c.finetune.steps = 200
  c.finetune.chunk = 20
  c.finetune.batch_size = 64
  c.finetune.microbatches = 1
  c.finetune.learning_rate = 3e-4
  c.finetune.weight_decay = 0.05
  c.finetune.clip = 1.0
  c.finetune.decay = "matrices"
  c.finetune.warmup = 20
  c.finetune.save_every = 1
  # static (the deployed graph) or threshold (the paper's).
  c.finetune.tokens = "static"

  c.train = ml_collections.ConfigDict()
  c.train.steps = 1000
  c.train.chunk = 20
  c.train.batch_size = 128
  c.train.microbatches = 1
  c.train.learning_rate = 1e-3
  c.train.weight_decay = 0.05
  c.train.clip = 1.0
  c.train.decay = "matrices"
  c.train.warmup = 100
  c.train.save_every = 5
  # Factors on the rate, by path: (("vision/.*", 0.1),) trains that tower at a
  # tenth of it, 0 freezes it. The first pattern that matches a path wins.
  c.train.rates = ()
  # Training examples that the projections of pretrained towers are fitted on
  # before the first step (a ridge map); 0 starts them at random.
  c.train.ridge_examples = 0
  # Folder of a model to go on from instead.
  c.train.start = ""
  # Folder of a model that has the same towers, to begin those with.
  c.train.towers = ""

  c.evaluate = ml_collections.ConfigDict()
  c.evaluate.batch_size = 128
  # Rows of the main table that prune.py evaluates; each costs a pass over
  # every reported split.
  c.evaluate.rows = (
    "dense",
    "masked",
    "compacted",
    "finetuned",
    "finetuned_threshold",
  )

  # replicated, or fully_sharded (large arrays split over the devices).
  c.sharding = "replicated"
  return c
