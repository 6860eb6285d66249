"""What gpu_suite.py measures with: plan, networks, runs, timing, ceilings, and the suite that goes through the plan."""
