"""Prunes a dense vision-language model, compacts it, fine-tunes it and reports.

python prune.py --config=configs/emoji_tiny.py --workdir=runs/demo
"""

from absl import flags

from comp_jax.cli import shell

DRY_RUN = flags.DEFINE_bool(
  "dry_run", False, "Print what each mode can remove, and change nothing."
)


def main(config, workdir):
  """Runs the job; 0 when it is done, 130 when a signal stopped it."""
  from comp_jax.report import tables, write
  from comp_jax.train import dry_run, fit, pruning

  if DRY_RUN.value:
    dry_run.show(config)
    return 0
  try:
    report, samples = pruning.run(config, workdir)
  except fit.Interrupted:
    print(f"stopped; run the same command again to resume {workdir}")
    return 130
  write.write(workdir, report, samples)
  tables.print_summary(report)
  print(f"model: {workdir / 'model'}   report: {workdir / 'report.html'}")
  return 0


if __name__ == "__main__":
  shell.run(main, name="prune.py", needs_workdir=lambda: not DRY_RUN.value)
