"""Trains a dense model.

python train.py --config=configs/emoji_tiny.py --workdir=runs/emoji_dense
"""

from comp_jax.cli import shell


def main(config, workdir):
  """Runs the job; 0 when it is done, 130 when a signal stopped it."""
  from comp_jax.train import dense, fit

  try:
    results = dense.run(config, workdir)
  except fit.Interrupted:
    print(f"stopped; run the same command again to resume {workdir}")
    return 130
  for split, values in results.items():
    row = "  ".join(f"{name} {value:.3f}" for name, value in values.items())
    print(f"{split}: {row}")
  print(f"model: {workdir / 'model'}")
  return 0


if __name__ == "__main__":
  shell.run(main, name="train.py")
