"""The executors: they run the jobs of a comparison on this machine, on SLURM, or in this process."""
